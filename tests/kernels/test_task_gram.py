"""Gram matrix and combination against fp64 sums over the same values; the same bits on any number of threads."""

import pytest
import torch

from mnmt_scale.kernels import backend, native
from mnmt_scale.kernels.ops import task_gram as ops
from mnmt_scale.kernels.ops.task_gram import task_gram, task_gram_combine

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RAGGED = [(3, 5), (0,), (700,), (1,), (2, 0), (65537,), (31, 33)]
EPSILON = {torch.float64: 2**-52, torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.fixture(params=native.module().available_isas())
def isa(request):
    before = native.module().isa()
    native.module().set_isa(request.param)
    yield request.param
    native.module().set_isa(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def fragments(tasks, shapes, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=g).to(dtype) for shape in shapes] for _ in range(tasks)]


def flat(task):
    return torch.cat([f.flatten().double() for f in task])


def truth(gradients, diagonal=None):
    rows = torch.stack([flat(task) for task in gradients])
    weights = flat(diagonal) if diagonal else torch.ones(rows.shape[1], dtype=torch.float64)
    return (rows * weights) @ rows.t(), (rows * weights).abs() @ rows.abs().t()


def check(gram, gradients, diagonal=None):
    expected, size = truth(gradients, diagonal)
    assert gram.dtype == torch.float64
    assert torch.equal(gram, gram.t())
    assert ((gram - expected).abs() <= 1e-6 * size).all(), (gram - expected).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 5, 8, 16, 17])
def test_ragged_fragments_weights_and_combination(isa, tasks, dtype):
    gradients = fragments(tasks, RAGGED, dtype, seed=tasks)
    diagonal = [f.abs() for f in fragments(1, RAGGED, torch.float32, seed=99)[0]]
    coefficients = torch.linspace(-1, 2, tasks)
    check(task_gram(gradients), gradients)
    check(task_gram(gradients, diagonal=diagonal), gradients, diagonal)
    gram, combination = task_gram_combine(gradients, coefficients, diagonal=diagonal)
    check(gram, gradients, diagonal)
    for f, out in enumerate(combination):
        terms = torch.stack([a * task[f].double() for a, task in zip(coefficients.double(), gradients, strict=True)])
        assert out.dtype == dtype
        assert out.shape == RAGGED[f]
        error = (out.double() - terms.sum(0)).abs()
        rounding = EPSILON[dtype] * terms.sum(0).abs() + tasks * 2**-23 * terms.abs().sum(0) + 2**-24
        assert (error <= rounding).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 7, 63, 65537])
def test_sizes_and_forms(size, dtype):
    gradients = fragments(3, [(size,)], dtype)
    rows = [task[0] for task in gradients]
    ours = task_gram(gradients)
    check(ours, gradients)
    assert torch.equal(task_gram(rows), ours)
    matrix = torch.zeros(3, size + 5, dtype=dtype)[:, :size]
    matrix.copy_(torch.stack(rows))
    assert torch.equal(task_gram(matrix), ours)
    gram, (combination,) = task_gram_combine(matrix, [1.0, 0.0, -1.0], diagonal=torch.ones(size))
    check(gram, gradients)
    torch.testing.assert_close(combination, (rows[0].float() - rows[2].float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("offset", [1, 3, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_start_anywhere(isa, dtype, offset):
    gradients = [[torch.randn(3000).to(dtype)[offset:]] for _ in range(5)]
    diagonal = [torch.rand(3000)[offset:]]
    check(task_gram(gradients), gradients)
    check(task_gram(gradients, diagonal=diagonal), gradients, diagonal)


@pytest.mark.parametrize("tasks", [1, 5])
def test_no_elements_at_all(tasks):
    for gradients in ([[] for _ in range(tasks)], fragments(tasks, [(0,), (0, 3)], torch.bfloat16)):
        gram, combination = task_gram_combine(gradients, [1.0] * tasks)
        assert torch.equal(gram, torch.zeros(tasks, tasks, dtype=torch.float64))
        assert [c.shape for c in combination] == [g.shape for g in gradients[0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_in_every_run_and_on_any_number_of_threads(isa, threads, dtype):
    gradients = fragments(5, [(70001,), (3,), (0,), (150000,)], dtype)
    diagonal = fragments(1, [(70001,), (3,), (0,), (150000,)], torch.float32, seed=1)[0]
    threads(1)
    first, combination = task_gram_combine(gradients, [0.3] * 5, diagonal=diagonal)
    for run in range(20):
        threads((1, 2, 3, 5)[run % 4])
        gram, again = task_gram_combine(gradients, [0.3] * 5, diagonal=diagonal)
        assert torch.equal(gram, first)
        assert all(torch.equal(a, b) for a, b in zip(again, combination, strict=True))


def test_sums_of_large_terms_that_cancel(isa):
    """1e9 and -1e9 from separate tiles leave what is small between them: across tiles sums are fp64."""
    big, small = 100 * torch.randn(65536), torch.randn(1000)
    gradients = [[big, big, small], [big, -big, small]]
    expected = small.double().square().sum()
    assert (task_gram(gradients)[0, 1] - expected).abs() <= 1e-6 * expected
    wide = torch.full((300001,), 1.1)
    expected = wide.double().square().sum()
    assert (task_gram([wide])[0, 0] - expected).abs() <= 1e-6 * expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_that_are_not_finite_are_the_callers_affair(dtype):
    gradients = fragments(3, [(100,)], dtype)
    gradients[1][0][50] = float("nan")
    gram = task_gram(gradients, diagonal=torch.ones(100))
    assert gram[1].isnan().all()
    assert gram[[0, 0, 2, 2], [0, 2, 0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_reference(dtype):
    gradients = fragments(4, RAGGED, dtype)
    diagonal = fragments(1, RAGGED, torch.float32, seed=1)[0]
    with backend.forced("reference"):
        gram, combination = task_gram_combine(gradients, [0.5, 1.0, -2.0, 0.1], diagonal=diagonal)
    torch.testing.assert_close(gram, truth(gradients, diagonal)[0], rtol=1e-12, atol=1e-9)
    fast, fast_combination = task_gram_combine(gradients, [0.5, 1.0, -2.0, 0.1], diagonal=diagonal)
    check(fast, gradients, diagonal)
    for a, b in zip(fast_combination, combination, strict=True):
        torch.testing.assert_close(a, b, rtol=2 * EPSILON[dtype], atol=1e-6)


def test_environment_chooses_the_implementation(monkeypatch):
    gradients, called = fragments(2, [(10,)], torch.float32), []
    inner = ops.reference.task_gram
    monkeypatch.setattr(ops.reference, "task_gram", lambda *a: called.append(1) or inner(*a))
    task_gram(gradients)
    assert not called
    monkeypatch.setenv("MNMT_KERNELS", "reference")
    task_gram(gradients)
    assert called


def test_opcheck_and_no_graph():
    gradients = [f.requires_grad_() for task in fragments(2, [(5,), (0,), (2, 3)], torch.float32) for f in task]
    assert not task_gram(gradients[:1]).requires_grad
    assert not task_gram_combine(gradients[:1], [2.0])[1][0].requires_grad
    gradients = [f.detach() for f in gradients]
    diagonal = [torch.rand(5), torch.rand(0), torch.rand(6)]
    torch.library.opcheck(ops._task_gram, (gradients, 2, diagonal))
    torch.library.opcheck(ops._task_gram, (gradients, 2, []))
    torch.library.opcheck(ops._task_gram_combine, (gradients, 2, [], [1.0, 2.0]))


def test_fragments_that_the_caller_made_give_the_same_bits(monkeypatch):
    tasks = fragments(3, [(5,), (0,), (700,)], torch.float32)
    weights = [torch.rand(5), torch.rand(0), torch.rand(700)]
    for w in ([], weights):
        gram, combined = task_gram_combine(tasks, [0.5, 0.0, -2.0], diagonal=w or None)
        with monkeypatch.context() as patch:
            patch.setattr(ops, "_task_gram_combine", None)
            made, parts = ops.combine_made(tasks, [0.5, 0.0, -2.0], w)
        assert torch.equal(made, gram)
        assert all(torch.equal(a, b) for a, b in zip(parts, combined, strict=True))


A, B = torch.randn(4), torch.randn(3)


@pytest.mark.parametrize(
    ("gradients", "options", "message"),
    [
        ([], {}, "gradients holds 0 tasks"),
        (torch.zeros(0, 5), {}, "gradients holds 0 tasks"),
        (torch.zeros(5), {}, r"gradients has shape \[5\]"),
        (torch.zeros(5, 4).t(), {}, r"gradients\[0\].* is not contiguous: shape \[5\], strides \[4\]"),
        ([[A, B], [A]], {}, r"gradients\[1\] has 1 fragments, but gradients\[0\] has 2"),
        ([[A, B], [A, A]], {}, r"gradients\[1\]\[1\] has 4 elements, but gradients\[0\]\[1\] has 3"),
        ([[A, B], [B, A]], {}, r"gradients\[1\]\[0\] has 3 elements, but gradients\[0\]\[0\] has 4"),
        ([A, A.double()], {}, r"gradients\[1\]\S* is torch.float64, but gradients\[0\]\S* is torch.float32"),
        ([[A, A.half()]], {}, r"gradients\[0\]\[1\] is torch.float16, but gradients\[0\]\[0\] is torch.float32"),
        ([A, A.to("meta")], {}, r"gradients\[1\]\S* is on meta, but gradients\[0\]\S* is on cpu"),
        ([A.int()], {}, r"gradients\[0\]\S* is torch.int32, but must be one of"),
        ([[A], [torch.zeros(8)[::2]]], {}, r"gradients\[1\]\[0\] is not contiguous: shape \[4\], strides \[2\]"),
        ([A], {"diagonal": A.double()}, r"diagonal\[0\] is torch.float64"),
        ([A], {"diagonal": A.bfloat16()}, r"diagonal\[0\] is torch.bfloat16"),
        ([A], {"diagonal": B}, r"diagonal\[0\] has 3 elements, but gradients\[0\]\[0\] has 4"),
        ([A], {"diagonal": [A, A]}, r"diagonal has 2 fragments, but gradients\[0\] has 1"),
        ([A], {"diagonal": A.to("meta")}, r"diagonal\[0\] is on meta, but gradients\[0\]\[0\] is on cpu"),
        ([[A, A]], {"diagonal": [A, A / 0]}, r"diagonal\[1\] must be finite, but holds -?inf"),
        ([A, A], {"coefficients": [1.0]}, r"coefficients has shape \[1\], but a combination of 2 gradients needs \[2\]"),
        ([A, A], {"coefficients": [1.0, float("nan")]}, "coefficients must be finite, but holds nan"),
        ([A, A], {"coefficients": torch.tensor([1.0, float("inf")])}, "coefficients must be finite, but holds inf"),
    ],
)
def test_bad_input(gradients, options, message):
    with pytest.raises(ValueError, match=message):
        task_gram_combine(gradients, **options) if "coefficients" in options else task_gram(gradients, **options)
