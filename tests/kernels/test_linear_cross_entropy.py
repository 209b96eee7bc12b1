"""The chunked op against its reference, torch's cross-entropy and finite differences."""

import pytest
import torch
import torch.nn.functional as F

from mnmt_scale.flow import IGNORE
from mnmt_scale.kernels.ops import linear_cross_entropy as ops
from mnmt_scale.kernels.reference.linear_cross_entropy import linear_cross_entropy as reference

fused = ops.linear_cross_entropy


def case(T=23, D=8, V=31, dtype=torch.float64, ignored=0.2, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(V, (T,), generator=g)
    targets[torch.rand(T, generator=g) < ignored] = IGNORE
    scale = torch.rand(T, generator=g)
    return hidden, weight, targets, scale


def run(op, hidden, weight, targets, scale, segments, eps, upstream=1.0, **options):
    total, sums, nlls, tokens = op(hidden, weight, targets, scale, segments, eps, **options)
    grads = torch.autograd.grad(total * upstream, (hidden, weight))
    return total, sums, nlls, tokens, *grads


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 5, 8, 22, 23, 24, 1000])
def test_equals_reference_at_every_chunk_boundary(eps, chunk):
    inputs = case(T=24, ignored=0.0)
    segments = (0, 7, 7, 20, 24)
    ours = run(fused, *inputs, segments, eps, chunk_tokens=chunk)
    for a, b in zip(ours, run(reference, *inputs, segments, eps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
def test_narrow_types_against_the_fp64_truth(dtype, tolerance):
    hidden, weight, targets, scale = case(T=200, D=32, V=97, dtype=dtype)
    truth = run(reference, hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_(),
                targets, scale, (0, 90, 200), 0.1)  # fmt: skip
    ours = run(fused, hidden, weight, targets, scale, (0, 90, 200), 0.1, chunk_tokens=64)
    assert ours[1].dtype == torch.float32
    assert ours[4].dtype == ours[5].dtype == dtype
    for a, b in zip(ours, truth, strict=True):
        if b.dtype == torch.int64:
            assert torch.equal(a, b)
        else:
            assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.9])
def test_equals_torch_cross_entropy(eps):
    hidden, weight, targets, _ = case()
    total, sums, nlls, tokens = fused(hidden, weight, targets, torch.ones(23), (0, 10, 23), eps)
    logits = hidden @ weight.t()
    for k, (a, b) in enumerate([(0, 10), (10, 23)]):
        smooth = F.cross_entropy(logits[a:b], targets[a:b], reduction="sum", label_smoothing=eps)
        torch.testing.assert_close(sums[k], smooth)
        torch.testing.assert_close(nlls[k], F.cross_entropy(logits[a:b], targets[a:b], reduction="sum"))
        assert tokens[k] == (targets[a:b] != IGNORE).sum()
    torch.testing.assert_close(total, sums.sum())


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_gradcheck(eps):
    hidden, weight, targets, scale = case(T=7, D=3, V=5)

    def total(h, w):
        return fused(h, w, targets, scale, (0, 7), eps, chunk_tokens=3)[0]

    assert torch.autograd.gradcheck(total, (hidden, weight))


@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0])
def test_multiplies_by_the_incoming_gradient(upstream):
    inputs = case()
    ours = run(fused, *inputs, (0, 23), 0.1, upstream)
    for a, b in zip(ours, run(reference, *inputs, (0, 23), 0.1, upstream), strict=True):
        torch.testing.assert_close(a, b)


def test_two_backward_passes_over_one_graph():
    hidden, weight, targets, scale = case()
    total = fused(hidden, weight, targets, scale, (0, 23), 0.1)[0]
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    first = [g.clone() for g in first]
    second = torch.autograd.grad(3 * total, (hidden, weight))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_all_ignored():
    hidden, weight, _, scale = case()
    targets = torch.full((23,), IGNORE)
    total, sums, nlls, tokens, d_hidden, d_weight = run(fused, hidden, weight, targets, scale, (0, 4, 23), 0.1)
    assert total.item() == 0.0
    assert sums.tolist() == nlls.tolist() == [0.0, 0.0]
    assert tokens.tolist() == [0, 0]
    assert not d_hidden.any()
    assert not d_weight.any()


def test_ignored_rows_may_hold_anything():
    hidden, weight, targets, scale = case(ignored=0.5)
    with torch.no_grad():
        hidden[targets == IGNORE] = float("nan")
    out = run(fused, hidden, weight, targets, scale, (0, 23), 0.1)
    assert all(x.isfinite().all() for x in out)


def test_no_tokens_at_all():
    hidden, weight, targets, scale = case(T=0)
    total, sums, _, tokens, d_hidden, d_weight = run(fused, hidden, weight, targets, scale, (0, 0, 0), 0.1)
    assert total.item() == 0.0
    assert sums.shape == tokens.shape == (2,)
    assert d_hidden.shape == (0, 8)
    assert not d_weight.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits(dtype, size):
    """One logit of +-1e4 among zeros: losses 0 or 1e4, gradients finite."""
    weight = torch.zeros(5, 2, dtype=dtype)
    weight[3, 0] = 1.0
    hidden = torch.tensor([[size, 0.0]] * 2, dtype=dtype).requires_grad_()
    weight.requires_grad_()
    size = hidden.detach()[0, 0].item()  # as the dtype holds it
    out = run(fused, hidden, weight, torch.tensor([3, 0]), torch.ones(2), (0, 1, 2), 0.0)
    right, wrong = (
        (0.0, size) if size > 0 else (-size + torch.log(torch.tensor(4.0)).item(), torch.log(torch.tensor(4.0)).item())
    )
    assert out[2][0].item() == pytest.approx(right, rel=1e-6, abs=1e-6)
    assert out[2][1].item() == pytest.approx(wrong, rel=1e-6, abs=1e-6)
    assert all(x.isfinite().all() for x in out)


def test_without_gradients_only_losses_are_computed(monkeypatch):
    inputs = case()
    expected = fused(*inputs, (0, 23), 0.1)
    asked = []
    inner = ops._chunked
    monkeypatch.setattr(ops, "_chunked", lambda *a: asked.append(a[-1]) or inner(*a))
    with torch.no_grad():
        total, sums, nlls, tokens = fused(*inputs, (0, 23), 0.1)
    assert asked == [False]
    assert not total.requires_grad
    for a, b in zip((total, sums, nlls, tokens), expected, strict=True):
        assert torch.equal(a, b.detach())


def test_weight_may_vanish_after_the_forward_pass():
    """As under ZeRO-3, which frees the gathered weight before the backward pass."""
    hidden, weight, targets, scale = case()
    expected = run(reference, hidden, weight, targets, scale, (0, 23), 0.1)
    total = fused(hidden, weight, targets, scale, (0, 23), 0.1)[0]
    weight.data.fill_(float("nan"))
    hidden.data.fill_(float("nan"))
    for a, b in zip(torch.autograd.grad(total, (hidden, weight)), expected[4:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("vocabulary", [10, 4000, 32000, 256000])
def test_chunks_stay_within_their_bounds(vocabulary, device):
    rows = ops.chunk_rows(vocabulary, device)
    assert ops.MIN_CHUNK <= rows <= ops.MAX_CHUNK
    assert rows * vocabulary * 4 <= max(ops.CHUNK_BYTES[device], ops.MIN_CHUNK * vocabulary * 4)
