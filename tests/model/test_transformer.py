"""The Transformer against transformers' M2M100 and against itself in other layouts."""

import math

import pytest
import torch
import torch.nn.functional as F

from mnmt_scale.flow import IGNORE
from mnmt_scale.model.attention import uses_buckets
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.flops import training_flops
from mnmt_scale.model.transformer import Transformer, sinusoids
from mnmt_scale.model.weights import to_hf
from tests.support.batches import batch_of, padded, random_lengths, unpadded

V = 60
SCALES = (0.5, 0.0, 2.0)
LENGTHS = random_lengths(9, tasks=3, seed=3)


def small(**settings) -> ModelConfig:
    sizes = dict(encoder_layers=2, decoder_layers=2, d_model=32, d_ffn=48, heads=4, dropout=0.0, max_positions=64)
    return ModelConfig.model_validate(sizes | settings)


def build(config: ModelConfig, smoothing: float = 0.1, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(config, V, label_smoothing=smoothing)
    with torch.no_grad():  # norms and biases that are not trivial
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
    return model


def gradients(model: Transformer, batch, scales=SCALES):
    model.zero_grad(set_to_none=True)
    losses = model(batch, scales)
    losses.total.backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


def assert_same(one, other, tolerance=1e-5):
    (losses, grads), (losses2, grads2) = one, other
    for field in ("total", "sums", "nlls", "tokens"):
        torch.testing.assert_close(getattr(losses, field), getattr(losses2, field), rtol=tolerance, atol=tolerance)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, grads2[name], rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_m2m100(implementation, activation):
    transformers = pytest.importorskip("transformers")
    config = small(activation=activation)
    model = build(config)
    theirs = transformers.M2M100ForConditionalGeneration(
        transformers.M2M100Config(
            vocab_size=V,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            activation_function=activation,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            encoder_layerdrop=0.0,
            decoder_layerdrop=0.0,
            max_position_embeddings=64,
            scale_embedding=True,
            attn_implementation=implementation,
        )
    )
    missing, unexpected = theirs.load_state_dict(to_hf(model.state_dict(), config), strict=False)
    assert not unexpected
    assert all("embed_tokens" in name or "lm_head" in name for name in missing)
    batch = batch_of(LENGTHS, tasks=3, vocabulary=V)
    inputs = padded(batch)
    labels = inputs.pop("labels")
    logits = theirs.train()(**inputs).logits
    mine = model.hidden(batch) @ model.shared.weight.t()
    torch.testing.assert_close(mine, unpadded(logits, batch.target_offsets), rtol=1e-5, atol=1e-5)

    token_losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=0.1)
    by_task = torch.zeros(3).index_add(0, batch.sentence_task, token_losses.view(labels.shape).sum(1))
    (by_task @ torch.tensor(SCALES)).backward()
    losses, grads = gradients(model, batch)
    torch.testing.assert_close(losses.sums, by_task, rtol=1e-5, atol=1e-5)
    assert losses.tokens.tolist() == list(batch.step_tokens)
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(
            grads[name.removeprefix("model.")], p.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("max_waste", [0.0, 0.3, 1.0])
def test_bucketed_equals_packed(norm, max_waste):
    model = build(small(norm=norm))
    bucketed = batch_of(LENGTHS, tasks=3, vocabulary=V, max_waste=max_waste)
    packed = batch_of(LENGTHS, tasks=3, vocabulary=V, bucketed=False)
    assert bucketed.buckets is not None
    assert packed.buckets is None
    assert_same(gradients(model, bucketed), gradients(model, packed))


def test_equal_lengths_need_no_padding():
    model = build(small())
    lengths = [(7, 5, 0)] * 3 + [(7, 5, 2)] * 2
    bucketed = batch_of(lengths, tasks=3, vocabulary=V)
    assert bucketed.buckets.identity
    assert_same(gradients(model, bucketed), gradients(model, batch_of(lengths, tasks=3, vocabulary=V, bucketed=False)))


def test_packed_setting_leaves_buckets_aside():
    model = build(small(attention="packed"))
    other = build(small())
    batch = batch_of(LENGTHS, tasks=3, vocabulary=V)
    assert_same(gradients(model, batch), gradients(other, batch))


def test_batch_equals_sum_of_its_sentences():
    model = build(small())
    whole_losses, whole = gradients(model, batch_of(LENGTHS, tasks=3, vocabulary=V))
    batch = batch_of(LENGTHS, tasks=3, vocabulary=V)
    hidden = model.hidden(batch)
    summed = {name: torch.zeros_like(g) for name, g in whole.items()}
    nlls = torch.zeros(3)
    for i in range(batch.num_sentences):
        one = _sentence(batch, i)
        k = int(batch.sentence_task[i])
        a, b = batch.target_offsets[i : i + 2].tolist()
        torch.testing.assert_close(model.hidden(one), hidden[a:b], rtol=1e-5, atol=1e-5)
        losses, grads = gradients(model, one)
        nlls += losses.nlls
        assert losses.tokens.tolist() == [b - a - 1 if j == k else 0 for j in range(3)]
        for name, g in grads.items():
            summed[name] += g
    torch.testing.assert_close(nlls, whole_losses.nlls, rtol=1e-5, atol=1e-5)
    for name, g in whole.items():
        torch.testing.assert_close(g, summed[name], rtol=1e-4, atol=1e-5)


def _sentence(batch, i):
    """Sentence i alone, packed."""
    from dataclasses import replace

    a, b = batch.source_offsets[i : i + 2].tolist()
    c, d = batch.target_offsets[i : i + 2].tolist()
    k = int(batch.sentence_task[i])
    return replace(
        batch,
        source_ids=batch.source_ids[a:b],
        target_in=batch.target_in[c:d],
        target_out=batch.target_out[c:d],
        source_offsets=torch.tensor([0, b - a], dtype=torch.int32),
        target_offsets=torch.tensor([0, d - c], dtype=torch.int32),
        source_segments=tuple(0 if j <= k else b - a for j in range(len(batch.source_segments))),
        target_segments=tuple(0 if j <= k else d - c for j in range(len(batch.target_segments))),
        sentence_task=batch.sentence_task[i : i + 1],
        max_source=b - a,
        max_target=d - c,
        buckets=None,
    )


@pytest.mark.parametrize("bucketed", [True, False])
def test_empty_micro_batch_reaches_every_parameter(bucketed):
    model = build(small())
    batch = batch_of([], tasks=3, vocabulary=V, bucketed=bucketed)
    losses, grads = gradients(model, batch)
    assert losses.total.item() == 0.0
    assert losses.sums.tolist() == losses.nlls.tolist() == [0.0] * 3
    assert losses.tokens.tolist() == [0] * 3
    assert all(g is not None and not g.any() for g in grads.values())


def test_activation_checkpointing_changes_nothing_even_with_dropout():
    batch = batch_of(LENGTHS, tasks=3, vocabulary=V)
    results = []
    for recompute in (False, True):
        model = build(small(activation_checkpointing=recompute, dropout=0.3, activation_dropout=0.2))
        torch.manual_seed(7)
        results.append(gradients(model, batch))
    assert_same(*results, tolerance=1e-6)


def test_dropout_acts_in_training_only():
    model = build(small(dropout=0.5))
    batch = batch_of(LENGTHS, tasks=3, vocabulary=V)
    torch.manual_seed(1)
    assert not torch.equal(model.hidden(batch), model.hidden(batch))
    model.eval()
    assert torch.equal(model.hidden(batch), model.hidden(batch))


def test_attention_dropout_acts_on_blocks():
    model = build(small(attention_dropout=0.5))
    batch = batch_of(LENGTHS, tasks=3, vocabulary=V)
    torch.manual_seed(1)
    assert not torch.equal(model.hidden(batch), model.hidden(batch))


def test_evaluation_has_no_label_smoothing():
    model = build(small(), smoothing=0.3).eval()
    losses = model(batch_of(LENGTHS, tasks=3, vocabulary=V), SCALES)
    torch.testing.assert_close(losses.sums, losses.nlls)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_norm_without_parameters_equals_trivial_parameters(norm):
    batch = batch_of(LENGTHS, tasks=3, vocabulary=V)
    bare = build(small(norm=norm, norm_affine=False))
    assert not any("layer_norm" in name for name, _ in bare.named_parameters())
    full = build(small(norm=norm))
    with torch.no_grad():
        for name, p in full.named_parameters():
            if "layer_norm" in name:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
    full.load_state_dict(bare.state_dict(), strict=False)
    losses, grads = gradients(bare, batch)
    losses2, grads2 = gradients(full, batch)
    assert_same((losses, grads), (losses2, {name: grads2[name] for name in grads}))


def test_bf16_is_near_fp32():
    model = build(small())
    batch = batch_of(LENGTHS, tasks=3, vocabulary=V)
    exact = model(batch, SCALES)
    narrow = model.to(torch.bfloat16)(batch, SCALES)
    assert narrow.sums.dtype == torch.float32
    torch.testing.assert_close(narrow.sums, exact.sums, rtol=0.03, atol=0.3)


def test_position_table():
    table = sinusoids(5, 8)
    assert table.shape == (5, 8)
    for row in range(5):
        for i in range(4):
            angle = row * 10000 ** (-i / 3)
            assert table[row, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[row, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_sentence_beyond_the_position_table_is_refused():
    model = build(small(max_positions=8))
    with pytest.raises(AssertionError, match="max_positions"):
        model(batch_of([(9, 4, 0)], vocabulary=V), (1.0,))


def test_state_dict_holds_no_positions_and_no_second_embedding():
    names = list(build(small()).state_dict())
    assert "shared.weight" in names
    assert not any("position" in name or "lm_head" in name or "embed_tokens" in name for name in names)
    post = Transformer(small(norm="post"), V).state_dict()
    assert "encoder.layer_norm.weight" in names
    assert "encoder.layer_norm.weight" not in post


def test_flops_by_hand():
    config = small(encoder_layers=1, decoder_layers=1, d_model=4, d_ffn=8, heads=2)
    batch = batch_of([(3, 2, 0), (5, 4, 0)], vocabulary=V)
    encoder = 8 * (4 * 16 + 2 * 32) + 2 * 4 * (9 + 25)
    decoder = 6 * (6 * 16 + 2 * 32) + 8 * 2 * 16 + 2 * 4 * (3 + 10) + 2 * 4 * (6 + 20)
    predicted = int((batch.target_out != IGNORE).sum())
    assert predicted == 4
    assert training_flops(config, V, batch) == 6 * (encoder + decoder + 4 * V * 4)


def test_scales_must_match_the_tasks():
    model = build(small())
    with pytest.raises(AssertionError, match="scales"):
        model(batch_of(LENGTHS, tasks=3, vocabulary=V), (1.0,))


def test_attention_is_packed_where_its_kernel_takes_heads_of_that_width():
    def bucketed(width, device="cuda", dtype=torch.bfloat16):
        return uses_buckets(ModelConfig(d_model=4 * width, heads=4), device, dtype)

    assert not any(bucketed(width) for width in (8, 32, 64, 128, 256))
    assert all(bucketed(width) for width in (2, 12, 36, 264))
    assert bucketed(64, dtype=torch.float32)
    assert bucketed(64, device="cpu")
