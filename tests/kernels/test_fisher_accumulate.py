"""F += scale * g^2 against fp64; elementwise, so the same bits on any number of threads."""

import pytest
import torch

from mnmt_scale.kernels import backend, native
from mnmt_scale.kernels.ops import fisher_accumulate as ops
from mnmt_scale.kernels.ops.fisher_accumulate import fisher_accumulate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RAGGED = [(3, 5), (0,), (700,), (1,), (2, 0), (65537,), (70001,), (31, 33)]


@pytest.fixture(params=native.module().available_isas())
def isa(request):
    before = native.module().isa()
    native.module().set_isa(request.param)
    yield request.param
    native.module().set_isa(before)


def case(shapes, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(s, generator=g).to(dtype) for s in shapes]
    return [torch.rand(s, generator=g) for s in shapes], gradients


def check(fisher, before, gradients, scale):
    for f, b, g in zip(fisher, before, gradients, strict=True):
        expected = b.double() + scale * g.double().square()
        size = b.double().abs() + abs(scale) * g.double().square()
        assert ((f.double() - expected).abs() <= 2e-7 * size).all()


@pytest.mark.parametrize("scale", [1.0, 0.3, -2.0, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged_fragments(isa, dtype, scale):
    fisher, gradients = case(RAGGED, dtype)
    before = [f.clone() for f in fisher]
    fisher_accumulate(fisher, gradients, scale)
    check(fisher, before, gradients, scale)
    with backend.forced("reference"):
        reference = [f.clone() for f in before]
        fisher_accumulate(reference, gradients, scale)
    check(reference, before, gradients, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 7, 63, 65537])
def test_sizes_and_a_single_tensor(isa, size, dtype):
    (fisher,), (gradient,) = case([(size,)], dtype)
    before = fisher.clone()
    fisher_accumulate(fisher, gradient)
    check([fisher], [before], [gradient], 1.0)


def test_only_the_fragments_are_written(isa):
    whole, gradient = torch.rand(1000), torch.randn(1000).bfloat16()
    before = whole.clone()
    parts = [(1, 8), (9, 9), (13, 500), (501, 999)]
    fisher_accumulate([whole[a:b] for a, b in parts], [gradient[a:b] for a, b in parts], 0.5)
    outside = torch.ones(1000, dtype=torch.bool)
    for a, b in parts:
        outside[a:b] = False
        check([whole[a:b]], [before[a:b]], [gradient[a:b]], 0.5)
    assert torch.equal(whole[outside], before[outside])


def test_the_same_bits_on_any_number_of_threads(isa):
    fisher, gradients = case(RAGGED, torch.bfloat16)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append([f.clone() for f in fisher])
            fisher_accumulate(results[-1], gradients, 0.1)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_many_small_additions_are_kept():
    """1000 times 2^-20 onto 1, which bf16 sums would lose."""
    fisher, gradient = torch.ones(100), torch.full((100,), 2.0**-10, dtype=torch.bfloat16)
    for _ in range(1000):
        fisher_accumulate(fisher, gradient)
    assert torch.equal(fisher, torch.full((100,), 1 + 1000 * 2.0**-20))


def test_values_that_are_not_finite_go_through():
    fisher = torch.zeros(3)
    fisher_accumulate(fisher, torch.tensor([float("inf"), float("nan"), 2.0]))
    assert fisher[0] == float("inf")
    assert fisher[1].isnan()
    assert fisher[2] == 4.0


def test_environment_chooses_the_implementation(monkeypatch):
    fisher, gradients = case([(10,)], torch.float32)
    called = []
    monkeypatch.setattr(ops.reference, "fisher_accumulate", lambda *a: called.append(1))
    fisher_accumulate(fisher, gradients)
    assert not called
    monkeypatch.setenv("MNMT_KERNELS", "reference")
    fisher_accumulate(fisher, gradients)
    assert called


def test_opcheck_no_graph_and_no_fragments():
    fisher, gradients = case([(5,), (0,), (2, 3)], torch.bfloat16)
    torch.library.opcheck(ops._fisher_accumulate, (fisher, gradients, 0.5))
    gradient = torch.ones(3, requires_grad=True)
    total = torch.zeros(3)
    fisher_accumulate(total, gradient)
    assert torch.equal(total, torch.ones(3))
    assert not total.requires_grad
    fisher_accumulate([], [])


A = torch.zeros(4)


@pytest.mark.parametrize(
    ("fisher", "gradients", "scale", "message"),
    [
        (A, A, float("nan"), "scale must be finite, but holds nan"),
        (A, A, 1e39, "scale must be finite, but holds inf"),
        (A.double(), A, 1.0, r"fisher\[0\] is torch.float64, but must be one of torch.float32"),
        ([A, A.bfloat16()], [A, A], 1.0, r"fisher\[1\] is torch.bfloat16, but must be one of torch.float32"),
        (A, A.double(), 1.0, r"gradients\[0\] is torch.float64, but must be one of"),
        ([A, A], [A, A.half()], 1.0, r"gradients\[1\] is torch.float16, but gradients\[0\] is torch.float32"),
        ([A, A], [A], 1.0, "gradients has 1 fragments, but fisher has 2"),
        ([A, A], [A, A[:3]], 1.0, r"gradients\[1\] has 3 elements, but fisher\[1\] has 4"),
        (A, A.to("meta"), 1.0, r"gradients\[0\] is on meta, but fisher\[0\] is on cpu"),
        ([A, A.to("meta")], [A, A], 1.0, r"fisher\[1\] is on meta, but fisher\[0\] is on cpu"),
        (torch.zeros(8)[::2], A, 1.0, r"fisher\[0\] is not contiguous: shape \[4\], strides \[2\]"),
        (A, torch.zeros(8)[::2], 1.0, r"gradients\[0\] is not contiguous: shape \[4\], strides \[2\]"),
    ],
)
def test_bad_input(fisher, gradients, scale, message):
    with pytest.raises(ValueError, match=message):
        fisher_accumulate(fisher, gradients, scale)
