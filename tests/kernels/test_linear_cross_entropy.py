"""The chunked op against its reference, torch's cross-entropy and finite differences."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from mnmt_scale.flow import IGNORE
from mnmt_scale.kernels import backend, chunks
from mnmt_scale.kernels.ops import linear_cross_entropy as ops
from mnmt_scale.kernels.ops import vocabulary_rows
from mnmt_scale.kernels.reference.linear_cross_entropy import linear_cross_entropy as reference

fused = ops.linear_cross_entropy


@pytest.fixture(params=["fast", "torch"], autouse=True)
def rows(request, monkeypatch):
    """The chunks' row kernels: those of this device, and those in torch."""
    if request.param == "torch":
        monkeypatch.setattr(vocabulary_rows, "implementation", lambda op, device_type, dtype: "reference")


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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
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
    inner = chunks.student_rows
    monkeypatch.setattr(chunks, "student_rows", lambda logits, out, *a: asked.append(out) or inner(logits, out, *a))
    with torch.no_grad():
        total, sums, nlls, tokens = fused(*inputs, (0, 23), 0.1)
    assert asked == [None]
    assert not total.requires_grad
    for a, b in zip((total, sums, nlls, tokens), expected, strict=True):
        assert torch.equal(a, b.detach())


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_factor_costs_no_product(frozen, monkeypatch):
    inputs = list(case())
    expected = run(fused, *inputs, (0, 23), 0.1)[4 + (1 - frozen)]
    inputs[frozen] = inputs[frozen].detach()
    products = []
    inner = chunks.product
    monkeypatch.setattr(chunks, "product", lambda a, b, out: products.append(out.shape) or inner(a, b, out))
    total, *_ = fused(*inputs, (0, 23), 0.1)
    assert len(products) == 2
    assert torch.equal(torch.autograd.grad(total, inputs[1 - frozen])[0], expected)


def test_weight_may_vanish_after_the_forward_pass():
    """As under ZeRO-3, which frees the gathered weight before the backward pass."""
    hidden, weight, targets, scale = case()
    expected = run(reference, hidden, weight, targets, scale, (0, 23), 0.1)
    total = fused(hidden, weight, targets, scale, (0, 23), 0.1)[0]
    weight.data.fill_(float("nan"))
    hidden.data.fill_(float("nan"))
    for a, b in zip(torch.autograd.grad(total, (hidden, weight)), expected[4:], strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_add_up_over_backward_passes():
    """The saved gradients are handed out themselves: the first must not become the buffer that the next are added to."""
    hidden, weight, targets, scale = case()
    total = fused(hidden, weight, targets, scale, (0, 23), 0.1)[0]
    once = torch.autograd.grad(total, weight, retain_graph=True)[0].clone()
    for _ in range(3):
        total.backward(retain_graph=True)
    torch.testing.assert_close(weight.grad, 3 * once)


@pytest.mark.parametrize("squared", [False, True])
def test_second_derivatives_need_the_reference(squared):
    """Of the loss itself too, whose incoming gradient does not require one."""
    hidden, weight, targets, scale = case(T=5, D=3, V=4)

    def gradient():
        total = fused(hidden.tanh(), weight, targets, scale, (0, 5))[0]
        return torch.autograd.grad(total.square() if squared else total, hidden, create_graph=True)[0]

    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient()
    with backend.forced("reference"):
        assert torch.autograd.gradgradcheck(lambda h: fused(h.tanh(), weight, targets, scale, (0, 5))[0], hidden)


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0, 65536.0])
@pytest.mark.parametrize("tokens", [512, 1 << 20])
def test_fp16_gradients_survive_small_scales_and_large_loss_scales(loss_scale, tokens):
    """Scales are 1 / tokens, a loss scale comes with the backward pass; only their product has to be within fp16."""
    hidden, weight, targets, _ = case(T=64, D=32, V=97, dtype=torch.float16, ignored=0.0)
    factor = loss_scale / tokens
    if factor < 1e-3:
        return  # the product vanishes in fp16 however it is formed
    scale = torch.full((64,), 1 / tokens)
    ours = run(fused, hidden, weight, targets, scale, (0, 64), 0.1, upstream=loss_scale)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    truth = run(reference, *wide, targets, scale.double(), (0, 64), 0.1, upstream=loss_scale)
    for a, b in zip(ours[4:], truth[4:], strict=True):
        assert (a.double() - b).norm() <= 4e-3 * b.norm()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(default):
    inputs = case(dtype=torch.float32)
    expected = run(fused, *inputs, (0, 23), 0.1)
    torch.set_default_dtype(default)
    try:
        ours = run(fused, *inputs, (0, 23), 0.1)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


def test_strided_inputs():
    hidden, weight, targets, scale = case(ignored=0.0)
    expected = run(fused, hidden, weight, targets, scale, (0, 23), 0.1)
    wide = torch.stack((targets, targets), dim=1)[:, 0]
    ours = run(fused, hidden.t().contiguous().t(), weight.t().contiguous().t(), wide, scale, (0, 23), 0.1)
    for a, b in zip(ours[:4], expected[:4], strict=True):
        torch.testing.assert_close(a, b)


def test_large_odd_vocabulary():
    hidden, weight, targets, scale = case(T=3, D=64, V=65537, dtype=torch.float32, ignored=0.0)
    truth = run(reference, hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), targets,
                scale, (0, 3), 0.1)  # fmt: skip
    for a, b in zip(run(fused, hidden, weight, targets, scale, (0, 3), 0.1), truth, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.double().norm()


def test_opcheck():
    hidden, weight, targets, scale = case(dtype=torch.float32)
    torch.library.opcheck(ops._op, (hidden, weight, targets, scale, (0, 10, 23), 0.1, 8, True, True))


def test_one_node_of_a_compiled_graph():
    hidden, weight, targets, scale = case(dtype=torch.float32)

    def total(hidden, weight):
        return 2 * fused(hidden, weight, targets, scale, (0, 10, 23), 0.1)[0]

    expected = torch.autograd.grad(total(hidden, weight), (hidden, weight))
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(hidden, weight), (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [None, "reference"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden", torch.zeros(23, 9), r"weight has shape \[31, 8\], but .* needs \[\*, 9\]"),
        ("hidden", torch.zeros(23, 8, dtype=torch.int32), "hidden is torch.int32"),
        ("weight", torch.zeros(31, 8, dtype=torch.bfloat16), "weight is torch.bfloat16, but hidden is torch.float32"),
        ("weight", torch.zeros(31, 8, device="meta"), "weight is on meta, but hidden is on cpu"),
        ("targets", torch.zeros(22, dtype=torch.int64), r"targets has shape \[22\], but hidden needs \[23\]"),
        ("targets", torch.zeros(23, dtype=torch.int32), "targets is torch.int32"),
        ("targets", torch.full((23,), 31), "targets holds 31, but weight has V = 31 rows"),
        ("targets", torch.full((23,), -1), "targets holds -1, but weight has V = 31 rows"),
        ("scale", torch.ones(24), r"scale has shape \[24\], but hidden needs \[23\]"),
        ("scale", torch.full((23,), float("nan")), "scale holds nan"),
        ("segments", (0, 22), "segments must go from 0 to the 23 tokens"),
        ("segments", (0, 9, 8, 23), "segments must not decrease"),
        ("label_smoothing", 1.0, "label_smoothing is 1.0"),
    ],
)
def test_wrong_arguments(name, value, message, kind):
    hidden, weight, targets, scale = case(dtype=torch.float32)
    arguments = dict(hidden=hidden, weight=weight, targets=targets, scale=scale, segments=(0, 23), label_smoothing=0.1)
    with backend.forced(kind) if kind else contextlib.nullcontext(), pytest.raises(ValueError, match=message):
        fused(**{**arguments, name: value})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("vocabulary", [10, 4000, 32000, 256000])
def test_chunks_stay_within_their_bounds(vocabulary, device, dtype):
    rows = ops.chunk_rows(vocabulary, device, dtype)
    least = 2 * chunks.MIN_CHUNK if device == "cpu" and dtype == torch.bfloat16 else chunks.MIN_CHUNK
    assert least <= rows <= chunks.MAX_CHUNK
    assert rows * vocabulary * 4 <= max(chunks.CHUNK_BYTES[device], least * vocabulary * 4)


def test_sums_per_task_are_one_reduction_that_waits_for_nothing(monkeypatch):
    """Of a matrix torch's CUDA kernel would give all rows of a task to one thread, and check the lengths on the host."""
    seen, reduce = [], torch.segment_reduce
    monkeypatch.setattr(
        torch, "segment_reduce", lambda x, *a, **k: (seen.append((x.dim(), k["unsafe"])), reduce(x, *a, **k))[1]
    )
    columns = torch.tensor([[1.0, 10.0], [2.0, float("nan")], [4.0, 40.0]])
    sums, tokens = chunks.per_task(columns, None, 3, (0, 2, 2, 3))
    torch.testing.assert_close(sums, torch.tensor([[3.0, float("nan")], [0.0, 0.0], [4.0, 40.0]]), equal_nan=True)
    assert tokens.tolist() == [2, 0, 1]
    sums, tokens = chunks.per_task(columns, torch.tensor([0, 3, 4]), 5, (0, 3, 5))
    assert sums[1].isnan().tolist() == [False, True]
    assert (sums[:, 0].tolist(), tokens.tolist()) == ([1.0, 6.0], [1, 2])
    assert seen == [(1, True)] * 2


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_on_gpu(dtype, tolerance):
    hidden, weight, targets, scale = (x.detach().cuda() for x in case(T=200, D=32, V=97, dtype=dtype))
    truth = run(
        reference, hidden.double().requires_grad_(), weight.double().requires_grad_(), targets, scale, (0, 90, 200), 0.1
    )
    ours = run(fused, hidden.requires_grad_(), weight.requires_grad_(), targets, scale, (0, 90, 200), 0.1, chunk_tokens=64)
    for a, b in zip(ours, truth, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.double().norm()
