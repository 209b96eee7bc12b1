"""Decoding with caches gives what the training forward pass gives, position by position."""

from __future__ import annotations

import pytest
import torch

from mnmt_scale.data.packing import pack_batch
from mnmt_scale.evaluation.config import EvaluationConfig
from mnmt_scale.evaluation.decode import Special, decode_ids
from mnmt_scale.model import incremental
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.incremental import Decoder, DecodingState
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.tasks import Task
from tests.support.memory_store import MemoryTokenizer

TOKENIZER = MemoryTokenizer(["de", "en"], 60)
TASK = Task("de", "en", 0)
EOS = TOKENIZER.eos


def make_model(**settings) -> Transformer:
    torch.manual_seed(3)
    config = ModelConfig(encoder_layers=2, decoder_layers=3, d_model=32, d_ffn=48, heads=4, max_positions=40, **settings)
    model = Transformer(config, TOKENIZER.vocabulary_size).eval()
    with torch.no_grad():  # norms and biases away from where they begin, or a forgotten one would not show
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def sentences(count: int, longest: int, seed: int = 1) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=g).tolist()
    return [torch.randint(TOKENIZER.first_word, 60, (n,), generator=g).tolist() for n in lengths]


def teacher_forced(model: Transformer, sources: list, targets: list) -> list[torch.Tensor]:
    """Logits [n + 2, V] of each sentence: row i is what follows ``</s> tag w1 .. wi-1``."""
    batch = pack_batch(sources, targets, [0] * len(sources), [TASK], TOKENIZER)
    logits = model.hidden(batch) @ model.shared.weight.T
    return list(logits.split([len(t) + 2 for t in targets]))


def padded(sources: list) -> tuple[torch.Tensor, torch.Tensor]:
    framed = [[TOKENIZER.tag_id("de"), *s, EOS] for s in sources]
    width = max(map(len, framed))
    ids = torch.tensor([f + [TOKENIZER.pad] * (width - len(f)) for f in framed])
    return ids, torch.tensor([len(f) for f in framed])


def begin(model: Transformer, sources: list, beam: int) -> tuple[DecodingState, torch.Tensor]:
    state = DecodingState(Decoder(model), *padded(sources), beam)
    prompt = torch.tensor([[EOS, TOKENIZER.tag_id("en")]]).expand(len(sources), 2)
    return state, state.begin(prompt)


@torch.inference_mode()
@pytest.mark.parametrize(
    "settings",
    [{}, {"norm": "post"}, {"norm_affine": False}, {"norm": "post", "norm_affine": False, "activation": "gelu"}],
    ids=["pre", "post", "no-affine", "post-gelu"],
)
def test_equals_teacher_forcing_step_by_step(settings):
    model = make_model(**settings)
    sources, targets = sentences(7, 12), sentences(7, 25, seed=2)
    expected = teacher_forced(model, sources, targets)
    state, logits = begin(model, sources, beam=1)
    for step in range(max(map(len, targets)) + 1):
        for row, target in enumerate(targets):
            if step <= len(target):
                torch.testing.assert_close(logits[row], expected[row][step + 1], rtol=1e-4, atol=1e-4)
        tokens = torch.tensor([[t[step] if step < len(t) else EOS] for t in targets])
        logits = state.step(tokens)


@torch.inference_mode()
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_beams_follow_their_ancestors(norm):
    """Hypotheses that were chosen, dropped and continued at random have the logits of their own histories."""
    model, beam = make_model(norm=norm), 3
    sources = sentences(4, 9)
    g = torch.Generator().manual_seed(5)
    state, _ = begin(model, sources, beam)
    histories = [[[] for _ in range(beam)] for _ in sources]
    logits = None
    for _ in range(20):  # more than one capacity of the cache
        parents = torch.randint(0, beam, (4, beam), generator=g)
        tokens = torch.randint(TOKENIZER.first_word, 60, (4, beam), generator=g)
        histories = [[[*histories[b][int(parents[b, k])], int(tokens[b, k])] for k in range(beam)] for b in range(4)]
        logits = state.step(tokens, parents).unflatten(0, (4, beam))
    for b, source in enumerate(sources):
        for k in range(beam):
            expected = teacher_forced(model, [source], [histories[b][k]])[0][-1]
            torch.testing.assert_close(logits[b, k], expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_sentences_that_leave_do_not_disturb_the_others():
    model = make_model()
    sources, targets = sentences(6, 9), [s * 3 for s in sentences(6, 4, seed=4)]
    targets = [t[:3] for t in targets]
    expected = teacher_forced(model, sources, targets)
    state, _ = begin(model, sources, beam=2)
    for step in range(2):
        state.step(torch.tensor([[t[step]] * 2 for t in targets]), torch.zeros(6, 2, dtype=torch.long))
    rows = torch.tensor([5, 1, 2])
    state.keep(rows)
    logits = state.step(torch.tensor([[targets[int(r)][2]] * 2 for r in rows]), torch.ones(3, 2, dtype=torch.long))
    for place, row in enumerate(rows.tolist()):
        for k in range(2):
            torch.testing.assert_close(logits[2 * place + k], expected[row][-1], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_padding_changes_nothing_and_its_id_is_never_read():
    model = make_model()
    sources = sentences(5, 14)
    ids, lengths = padded(sources)
    decoder = Decoder(model)
    hidden, mask = decoder.encode(ids, lengths)
    garbage = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], 59)
    other, _ = decoder.encode(garbage, lengths)
    for row, source in enumerate(sources):
        alone, no_mask = decoder.encode(*padded([source]))
        assert no_mask is None
        assert mask is not None
        torch.testing.assert_close(hidden[row, : lengths[row]], alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other[row, : lengths[row]], alone[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_bf16_stays_near_fp32():
    model = make_model()
    sources, targets = sentences(4, 8), sentences(4, 8, seed=2)
    state, first = begin(model, sources, beam=2)
    narrow, second = begin(make_model().to(torch.bfloat16), sources, beam=2)
    assert second.dtype == torch.bfloat16
    tokens = torch.tensor([[t[0], t[-1]] for t in targets])
    wide, thin = state.step(tokens), narrow.step(tokens)
    for a, b in ((first, second), (wide, thin)):
        assert (a - b.float()).abs().max() < 0.05 * a.abs().max()


@torch.inference_mode()
def test_logits_are_written_where_asked():
    model = make_model()
    sources = sentences(2, 5)
    state, _ = begin(model, sources, beam=2)
    tokens = torch.tensor([[10, 11], [12, 13]])
    wide = torch.full((5, 64), -7.0)
    other, _ = begin(model, sources, beam=2)
    expected = other.step(tokens)
    got = state.step(tokens, out=wide[:4, :60])
    assert got.data_ptr() == wide.data_ptr()
    torch.testing.assert_close(wide[:4, :60], expected)
    assert (wide[:, 60:] == -7).all()
    assert (wide[4] == -7).all()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_are_such_that_a_gpu_copies_none(monkeypatch, dtype):
    """Additive, in the model's dtype, rows at multiples of 8: otherwise torch converts or copies them in every layer."""
    masks = []
    attend = incremental._attend
    monkeypatch.setattr(incremental, "_attend", lambda q, k, v, mask: (masks.append(mask), attend(q, k, v, mask))[1])
    state, _ = begin(make_model().to(dtype), sentences(5, 11), beam=3)
    del masks[:]
    for _ in range(18):  # more than one capacity of the cache
        state.step(torch.full((5, 3), 10), torch.zeros(5, 3, dtype=torch.long))
    assert len(masks) == 18 * 2 * 3
    for mask in masks:
        assert mask.dtype == dtype
        assert mask.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in mask.stride()[:-1])


def test_attention_kernels_that_plan_by_shape_are_left_out(monkeypatch):
    """cuDNN's would be planned anew at every step; afterwards torch chooses as before."""
    seen = []
    attend = incremental._attend
    monkeypatch.setattr(
        incremental, "_attend", lambda *args: (seen.append(torch.backends.cuda.cudnn_sdp_enabled()), attend(*args))[1]
    )
    before = torch.backends.cuda.cudnn_sdp_enabled()
    framed = [[TOKENIZER.tag_id("de"), *s, EOS] for s in sentences(3, 5)]
    decode_ids(Decoder(make_model()), framed, TOKENIZER.tag_id("en"), Special.of(TOKENIZER), EvaluationConfig(beam=2))
    assert not any(seen)
    assert len(seen) > 5
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.gpu
@torch.inference_mode()
def test_gpu_decodes_what_cpu_decodes():
    model, sources = make_model(), sentences(9, 12)
    special = Special.of(TOKENIZER)
    framed = [[TOKENIZER.tag_id("de"), *s, EOS] for s in sources]
    for beam in (1, 4):
        config = EvaluationConfig(beam=beam, max_ratio=1.0, max_extra=3)
        on_cpu = decode_ids(Decoder(model), framed, TOKENIZER.tag_id("en"), special, config)
        on_gpu = decode_ids(Decoder(make_model().to("cuda")), framed, TOKENIZER.tag_id("en"), special, config)
        assert [h.tokens for h in on_gpu] == [h.tokens for h in on_cpu]
