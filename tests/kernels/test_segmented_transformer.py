"""The project's own Transformer with its layers exchanged for segmented ones: Gram against one backward pass a task."""

import pytest
import torch
from torch import nn

from mnmt_scale.kernels.ops.segmented_output import segmented_linear_cross_entropy
from mnmt_scale.kernels.ops.segmented_wgrad import segmented_embedding, segmented_layer_norm, segmented_linear
from mnmt_scale.kernels.ops.task_tape import TaskTape
from mnmt_scale.kernels.segments import Segments
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.transformer import Transformer
from tests.support.batches import batch_of, random_lengths

from .segmented_model import gram_of

V = 60


def make_model(**changes):
    torch.manual_seed(0)
    sizes = dict(d_model=16, d_ffn=24, heads=4, encoder_layers=2, decoder_layers=2, dropout=0.0, attention_dropout=0.0)
    model = Transformer(ModelConfig(**{**sizes, **changes}), V).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
    return model


def exchange(model, batch, tape):
    """Every layer's ``forward`` for its segmented one; what reads the encoder's output has source rows."""
    source, target = Segments.of(batch.source_segments), Segments.of(batch.target_segments)
    both = Segments.joined(source, target)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            module.forward = lambda ids, m=module, n=name: segmented_embedding(ids, m.weight, both, tape, "table", n)
        reads_memory = "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name
        to = (source if name.startswith("encoder.") or reads_memory else target, tape, name[:7], name)
        if isinstance(module, nn.Linear):
            module.forward = lambda x, m=module, to=to: segmented_linear(x, m.weight, m.bias, *to)
        elif isinstance(module, nn.LayerNorm):
            module.forward = lambda x, m=module, to=to: segmented_layer_norm(x, m.weight, m.bias, m.eps, *to)


def measured(model, batch, scales, **hooks):
    tape = TaskTape(len(batch.tasks), [0.5, 0.0, 2.0], **hooks)
    exchange(model, batch, tape)
    token_scale = scales.repeat_interleave(torch.tensor(batch.target_segments).diff())
    segments, ids = Segments.of(batch.target_segments), torch.cat((batch.source_ids, batch.target_in))
    total, *_ = segmented_linear_cross_entropy(model.hidden(batch), model.shared.weight, batch.target_out, token_scale,
                                               segments, tape, "table", 0.1, embedding_ids=ids, name="shared")  # fmt: skip
    total.backward()
    return tape


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm": "post"}, {"norm_affine": False}, {"activation_checkpointing": True}, {"attention": "packed"}],
    ids=["pre-norm", "post-norm", "no affine", "checkpointing", "packed"],
)
def test_gram_of_the_transformer(changes):
    batch = batch_of(random_lengths(9, tasks=2, longest=9), tasks=3, vocabulary=V)
    scales = torch.tensor([0.1, 0.2, 0.3]).double()
    model = make_model(**changes)
    model.label_smoothing = 0.1
    parameters = dict(model.named_parameters())
    gradients = [torch.autograd.grad(model(batch, scales * torch.eye(3)[k]).total, list(parameters.values())) for k in range(3)]
    truth = {name: torch.stack(g) for name, g in zip(parameters, zip(*gradients, strict=True), strict=True)}
    tape = measured(model, batch, scales)
    expected = gram_of(truth)
    assert (tape.gram - expected).abs().max() <= 1e-9 * expected.abs().max()  # the model's scales are rounded to fp32
    assert set(tape.groups) == {"encoder", "decoder", "table"}
    for name, p in parameters.items():
        torch.testing.assert_close(p.grad, 0.5 * truth[name][0] + 2 * truth[name][2], rtol=1e-6, atol=1e-9)


def test_every_rank_reduces_in_the_same_order():
    """Also one without sentences, whose attention takes another path."""
    orders = []
    for lengths in (random_lengths(9, tasks=3, longest=9), random_lengths(2, tasks=1), []):
        names, model = [], make_model()

        def reduce(name, stacked, rows, names=names):
            names.append((name, stacked.shape))
            return stacked

        batch = batch_of(lengths, tasks=3, vocabulary=V)
        measured(model, batch, torch.ones(3).double(), reduce=reduce, shared_ids=lambda ids: torch.arange(V))
        assert sorted({name for name, _ in names}) == sorted(dict(model.named_parameters()))
        orders.append(names)
    assert orders[0] == orders[1] == orders[2]
