"""Attention in padded blocks against its reference, gradients included."""

import pytest
import torch

from mnmt_scale.kernels.ops import block_attention as ops
from mnmt_scale.kernels.reference.block_attention import block_attention as reference
from mnmt_scale.model.attention import attention_layout
from tests.support.batches import batch_of, random_lengths

HEADS, D = 2, 12


def layouts(max_waste, lengths=None):
    batch = batch_of(lengths or random_lengths(11, seed=2), max_waste=max_waste)
    layout = attention_layout(batch, HEADS)
    sizes = batch.source_ids.shape[0], batch.target_in.shape[0]
    return {
        "encoder": (layout.encoder_self, sizes[0], sizes[0]),
        "decoder": (layout.decoder_self, sizes[1], sizes[1]),
        "cross": (layout.cross, sizes[1], sizes[0]),
    }


def tensors(queries, keys, dtype):
    g = torch.Generator().manual_seed(0)
    sizes = (queries, keys, keys, queries)
    q, k, v, d = (torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype) for n in sizes)
    return [x.requires_grad_() for x in (q, k, v)], d


def run(op, inputs, d, layout):
    out = op(*inputs, layout)
    return out, *torch.autograd.grad(out, inputs, d)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("max_waste", [0.0, 0.2, 1.0])
def test_equals_reference(kind, max_waste):
    layout, queries, keys = layouts(max_waste)[kind]
    inputs, d = tensors(queries, keys, torch.float64)
    for a, b in zip(run(ops.block_attention, inputs, d, layout), run(reference, inputs, d, layout), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_bf16_against_the_fp64_truth(kind):
    layout, queries, keys = layouts(0.3)[kind]
    inputs, d = tensors(queries, keys, torch.bfloat16)
    truth = run(reference, [x.detach().double().requires_grad_() for x in inputs], d.double(), layout)
    for a, b in zip(run(ops.block_attention, inputs, d, layout), truth, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() <= 0.02 * b.norm()


def test_padding_cells_neither_give_nor_take():
    """Whatever the gradient of other sentences, a sentence alone gets what it gets in company."""
    lengths = [(3, 2, 0), (9, 8, 0), (5, 7, 0)]
    together, queries, keys = layouts(1.0, lengths)["cross"]
    inputs, d = tensors(queries, keys, torch.float64)
    grads = run(ops.block_attention, inputs, d, together)
    u = s = 0
    for source, target, _ in lengths:
        alone, *_ = layouts(1.0, [(source, target, 0)])["cross"]
        q, k, v = inputs[0][u : u + target], inputs[1][s : s + source], inputs[2][s : s + source]
        part = [x.detach().requires_grad_() for x in (q, k, v)]
        out = run(ops.block_attention, part, d[u : u + target], alone)
        for whole, one, (a, n) in zip(grads, out, [(u, target), (u, target), (s, source), (s, source)], strict=True):
            torch.testing.assert_close(whole[a : a + n], one)
        u, s = u + target, s + source


def test_gradcheck():
    layout, queries, keys = layouts(1.0, [(2, 3, 0), (4, 2, 0)])["cross"]
    inputs, _ = tensors(queries, keys, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: ops.block_attention(*x, layout), inputs)


def test_long_blocks_take_the_reference(monkeypatch):
    layout, queries, keys = layouts(0.2)["encoder"]
    inputs, d = tensors(queries, keys, torch.float64)
    expected = run(ops.block_attention, inputs, d, layout)
    monkeypatch.setattr(ops, "MAX_POSITIONS", 3)
    monkeypatch.setattr(ops._BlockAttention, "apply", lambda *a: pytest.fail("kept the probabilities of long blocks"))
    for a, b in zip(run(ops.block_attention, inputs, d, layout), expected, strict=True):
        torch.testing.assert_close(a, b)
