"""Per-task weight gradients of single layers: against masked fp64 sums, finite differences, torch's plain layers."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from mnmt_scale.kernels import backend
from mnmt_scale.kernels.ops import wgrad_products as products
from mnmt_scale.kernels.ops.segmented_wgrad import (
    embedding_wgrad,
    linear_wgrad,
    norm_wgrad,
    segmented_embedding,
    segmented_layer_norm,
    segmented_linear,
)
from mnmt_scale.kernels.ops.task_tape import TaskTape
from mnmt_scale.kernels.segments import Segments

DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 6e-3), (torch.float16, 8e-4)]
"""With the error of a sum, relative to its norm: one rounding of the result where the products are summed wide."""

LAYOUTS = {
    "one piece each": (Segments.of((0, 7, 8, 71)), 3),
    "tasks without rows": (Segments((0, 0, 63, 63, 64), (0, 3, 1, 4)), 6),
    "two pieces each": (Segments.joined(Segments.of((0, 7, 7, 40)), Segments.of((0, 1, 20, 63))), 3),
    "out of order": (Segments((0, 5, 9, 30), (2, 0, 2)), 3),
    "one task": (Segments.of((0, 63)), 1),
    "one row": (Segments.of((0, 1)), 1),
    "no rows": (Segments.of((0, 0, 0)), 2),
    "no pieces": (Segments((0,), ()), 2),
}


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def members(segments, K):
    """[K, N] fp64, 1 where the row belongs to the task."""
    mask = torch.zeros(K, segments.rows, dtype=torch.float64)
    for j, k in enumerate(segments.tasks):
        mask[k, segments.offsets[j] : segments.offsets[j + 1]] = 1
    return mask


def close(a, truth, tolerance):
    assert a.shape == truth.shape
    for of_task, expected in zip(a.double(), truth, strict=True):
        assert (of_task - expected).norm() <= tolerance * expected.norm()


@pytest.fixture(params=["fast", "reference"])
def implementation(request):
    if request.param == "fast":
        yield
    else:
        with backend.forced("reference"):
            yield


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_linear(layout, dtype, tolerance, implementation):
    segments, K = LAYOUTS[layout]
    x, dy = random(segments.rows, 9, dtype=dtype), random(segments.rows, 5, dtype=dtype, seed=1)
    weight, bias = linear_wgrad(x, dy, segments, K)
    mask = members(segments, K)
    assert weight.dtype == bias.dtype == dtype
    close(weight, torch.einsum("kn,no,ni->koi", mask, dy.double(), x.double()), tolerance)
    close(bias, mask @ dy.double(), tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_norm(layout, dtype, tolerance, implementation):
    segments, K = LAYOUTS[layout]
    x, dy = random(segments.rows, 9, dtype=dtype), random(segments.rows, 9, dtype=dtype, seed=1)
    _, mean, rstd = torch.native_layer_norm(x, [9], None, None, 1e-5)
    weight, bias = norm_wgrad(x, dy, mean, rstd, segments, K)
    mask = members(segments, K)
    assert weight.dtype == bias.dtype == dtype
    close(weight, mask @ (dy.double() * F.layer_norm(x.double(), [9])), max(tolerance, 1e-11))
    close(bias, mask @ dy.double(), tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_embedding(layout, dtype, tolerance, implementation):
    segments, K = LAYOUTS[layout]
    ids = torch.randint(40, (segments.rows,), generator=torch.Generator().manual_seed(2)) // 2 * 2
    dy = random(segments.rows, 5, dtype=dtype)
    unique, rows = embedding_wgrad(ids, dy, segments, K)
    assert unique.tolist() == sorted(set(ids.tolist()))
    assert rows.dtype == dtype
    onehot = (ids[:, None] == unique).double()
    close(rows, torch.einsum("kn,nr,nd->krd", members(segments, K), onehot, dy.double()), tolerance)
    wider = torch.arange(0, 50, 2)
    again, placed = embedding_wgrad(ids, dy, segments, K, wider)
    assert again is wider
    assert torch.equal(placed[:, unique // 2], rows)
    assert not placed[:, sorted(set(range(25)) - set((unique // 2).tolist()))].any()


def test_a_frequent_token_is_summed_wide():
    """4096 times 1.0: bf16 would stop at 256."""
    _, rows = embedding_wgrad(torch.zeros(4096, dtype=torch.int64), torch.ones(4096, 2).bfloat16(), Segments.of((0, 4096)), 1)
    assert rows.tolist() == [[[4096.0, 4096.0]]]


def test_grouped_product_is_the_loop():
    """What runs on GPU, on torch's CPU version of it."""
    segments = Segments.of((0, 7, 8, 64))
    x, dy = random(64, 16, dtype=torch.bfloat16), random(64, 24, dtype=torch.bfloat16, seed=1)
    expected, _ = linear_wgrad(x, dy, segments, 3)
    close(products.grouped_products(x, dy, segments), expected.double(), 6e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-3)])
def test_on_a_gpu(layout, dtype, tolerance):
    segments, K = LAYOUTS[layout]
    x, dy = random(segments.rows, 64, dtype=dtype).cuda(), random(segments.rows, 64, dtype=dtype, seed=1).cuda()
    weight, bias = linear_wgrad(x, dy, segments, K)
    mask = members(segments, K).cuda()
    close(weight, torch.einsum("kn,no,ni->koi", mask, dy.double(), x.double()), tolerance)
    close(bias, mask @ dy.double(), tolerance)
    _, mean, rstd = torch.native_layer_norm(x, [64], None, None, 1e-5)
    close(norm_wgrad(x, dy, mean, rstd, segments, K)[0], mask @ (dy.double() * F.layer_norm(x.double(), [64])), tolerance)
    ids = torch.randint(9, (segments.rows,)).cuda()
    unique, rows = embedding_wgrad(ids, dy, segments, K)
    close(rows, torch.einsum("kn,nr,nd->krd", mask, (ids[:, None] == unique).double(), dy.double()), tolerance)


def test_opcheck():
    x, dy, index = random(12, 6), random(12, 6, seed=1), torch.arange(12) % 5
    _, mean, rstd = torch.native_layer_norm(x, [6], None, None, 1e-5)
    where = ([0, 5, 5, 12], [0, 1, 0], 3)
    torch.library.opcheck(products.linear_products, (x, dy, *where))
    torch.library.opcheck(products.column_sums, (dy, *where))
    torch.library.opcheck(products.norm_sums, (x, dy, mean, rstd, *where))
    torch.library.opcheck(products.scatter, (index, dy, 5, *where))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_past_the_operators_the_bits_are_the_same(dtype, monkeypatch):
    """In eager mode the functions are called, under a trace the operators."""
    x, dy = random(12, 6, dtype=dtype), random(12, 6, seed=1, dtype=dtype)
    _, mean, rstd = torch.native_layer_norm(x, [6], None, None, 1e-5)
    segments, K = Segments((0, 5, 5, 12), (0, 1, 0)), 3
    where = (list(segments.offsets), list(segments.tasks), K)
    expected = [products.linear_products(x, dy, *where), products.column_sums(dy, *where)]
    of_norm = products.norm_sums(x, dy, mean, rstd, *where)
    with FakeTensorMode() as fake, monkeypatch.context() as patch:
        patch.setattr(products, "_linear_products", None)
        traced = [d.shape for d in linear_wgrad(fake.from_tensor(x), fake.from_tensor(dy), segments, K)]
    for name in ("linear_products", "column_sums", "norm_sums"):
        monkeypatch.setattr(products, name, None)
    assert all(torch.equal(a, b) for a, b in zip(linear_wgrad(x, dy, segments, K), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(norm_wgrad(x, dy, mean, rstd, segments, K), of_norm, strict=True))
    assert traced == [(3, 6, 6), (3, 6)]
    assert linear_wgrad(x, dy, segments, K, weight=False)[0] is linear_wgrad(x, dy, segments, K, bias=False)[1] is None


def test_ends_of_pieces_are_copied_once():
    ends = products.ends_on((0, 3, 3, 11), torch.device("cpu"))
    assert (ends.tolist(), ends.dtype) == ([3, 3, 11], torch.int32)
    assert products.ends_on((0, 3, 3, 11), torch.device("cpu")) is ends
    assert products.ends_on((0, 3, 4, 11), torch.device("cpu")).tolist() == [3, 4, 11]


@pytest.mark.parametrize("affine", ["weight and bias", "weight", "bias", "none"])
def test_layers_equal_torchs_with_alpha_one(affine):
    """Output, gradient of the input, and with all weights 1 the parameters' gradients are the plain layers'."""
    segments, ids = Segments.of((0, 3, 3, 11)), torch.randint(7, (11,))
    x, w, b = random(11, 6), random(6, seed=1).requires_grad_(), random(6, seed=2).requires_grad_()
    m, table = random(5, 6, seed=3).requires_grad_(), random(7, 6, seed=4).requires_grad_()
    w = w if "weight" in affine else None
    b = b if "bias" in affine else None
    bias = None if b is None else b[:5].detach().clone().requires_grad_()
    tape = TaskTape(3)
    pairs = [
        (lambda x: F.linear(x, m, bias), lambda x: segmented_linear(x, m, bias, segments, tape, "g"), [m, bias]),
        (lambda x: F.layer_norm(x, [6], w, b, 0.1), lambda x: segmented_layer_norm(x, w, b, 0.1, segments, tape, "g"), [w, b]),
        (lambda x: x * F.embedding(ids, table), lambda x: x * segmented_embedding(ids, table, segments, tape, "g"), [table]),
    ]
    for plain, segmented, parameters in pairs:
        inputs = [x.clone().requires_grad_(), *(p for p in parameters if p is not None)]
        results = []
        for layer in (plain, segmented):
            y = layer(inputs[0])
            results.append((y, *torch.autograd.grad(y, inputs, random(*y.shape, seed=9))))
        for a, e in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(TaskTape, "claim", lambda *_: None)  # gradcheck goes backward over one graph many times
    segments, ids = Segments((0, 2, 5, 7), (1, 0, 1)), torch.tensor([3, 1, 3, 0, 3, 1, 1])
    linear = lambda x, m, b: segmented_linear(x, m, b, segments, TaskTape(2), "g")  # noqa: E731
    norm = lambda x, w, b: segmented_layer_norm(x, w, b, 1e-3, segments, TaskTape(2), "g")  # noqa: E731
    x, v = random(7, 4).requires_grad_(), random(4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(linear, (x, random(3, 4, seed=1).requires_grad_(), random(3).requires_grad_()))
    assert torch.autograd.gradcheck(norm, (x, v, random(4, seed=3).requires_grad_()))
    table = random(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: segmented_embedding(ids, t, segments, TaskTape(2), "g"), (table,))


def test_gradient_that_is_one_number_expanded():
    """``sum()`` sends back a tensor without strides."""
    segments, x, m = Segments.of((0, 2, 5)), random(5, 4), random(3, 4).requires_grad_()
    tape = TaskTape(2, [1.0, 3.0])
    segmented_linear(x, m, None, segments, tape, "g").sum().backward()
    torch.testing.assert_close(m.grad, (x[:2].sum(0) + 3 * x[2:].sum(0)).expand(3, 4))


def test_frozen_parameters_are_not_measured():
    segments, x = Segments.of((0, 2, 5)), random(5, 4).requires_grad_()
    m, b = random(3, 4), random(3).requires_grad_()
    tape = TaskTape(2)
    segmented_layer_norm(
        segmented_linear(x, m, b.detach(), segments, tape, "g"), b.detach(), None, 1e-5, segments, tape, "g"
    ).sum().backward()
    assert tape.groups == {}
    assert torch.equal(tape.gram, torch.zeros(2, 2).double())
    segmented_linear(x, m, b, segments, tape, "g").sum().backward()
    torch.testing.assert_close(tape.gram, torch.tensor([[4.0, 6.0], [6.0, 9.0]]).double() * 3)
    torch.testing.assert_close(b.grad, torch.full((3,), 5.0).double())


def bad_calls():
    x, m, b, ids, s = torch.zeros(5, 4), torch.zeros(3, 4), torch.zeros(3), torch.zeros(5).long(), Segments.of((0, 2, 5))
    tape, short, third = TaskTape(2), Segments.of((0, 2, 4)), Segments((0, 2, 5), (0, 2))
    linear, norm, embed = segmented_linear, segmented_layer_norm, segmented_embedding
    return [
        (r"segments cover 4 .* 5", lambda: linear(x, m, b, short, tape, "g")),
        (r"segments cover 4 .* 5", lambda: norm(x, None, None, 1e-5, short, tape, "g")),
        (r"segments cover 4 .* 5", lambda: embed(ids, m, short, tape, "g")),
        (r"task 2.* 2 tasks", lambda: linear(x, m, b, third, tape, "g")),
        (r"x has shape \[5\].*\[\*, \*\]", lambda: linear(x[:, 0], m, b, s, tape, "g")),
        (r"weight has shape \[3, 4\].*\[5, 3\]", lambda: linear(x[:, :3], m, b, s, tape, "g")),
        (r"bias has shape \[4\].*\[3\]", lambda: linear(x, m, torch.zeros(4), s, tape, "g")),
        (r"weight has shape \[3\].*\[4\]", lambda: norm(x, b, None, 1e-5, s, tape, "g")),
        (r"bias has shape \[3\].*\[4\]", lambda: norm(x, None, b, 1e-5, s, tape, "g")),
        (r"weight is torch.float64, but x is torch.float32", lambda: linear(x, m.double(), b, s, tape, "g")),
        (r"bias is torch.bfloat16, but x is torch.float32", lambda: linear(x, m, b.bfloat16(), s, tape, "g")),
        (r"x is torch.int64", lambda: linear(x.long(), m, b, s, tape, "g")),
        (r"weight is on meta, but x is on cpu", lambda: linear(x, m.to("meta"), b, s, tape, "g")),
        (r"ids is on meta, but weight is on cpu", lambda: embed(ids.to("meta"), m, s, tape, "g")),
        (r"ids is torch.float32", lambda: embed(ids.float(), m, s, tape, "g")),
        (r"ids holds 3, but weight has 3 rows", lambda: embed(ids + 3, m, s, tape, "g")),
        (r"ids holds -1, but weight has 3 rows", lambda: embed(ids - 1, m, s, tape, "g")),
        (r"ids hold 0, but rows .*\[1, 2\]", lambda: embedding_wgrad(ids, x, s, 2, torch.tensor([1, 2]))),
        (r"ids hold 0, but rows .*\[\]", lambda: embedding_wgrad(ids, x, s, 2, torch.tensor([], dtype=torch.int64))),
        (r"alpha has 3 weights, but num_tasks is 2", lambda: TaskTape(2, [1, 2, 3])),
        (r"alpha must be finite, but holds nan", lambda: TaskTape(2, torch.tensor([1, float("nan")]))),
        (r"num_tasks must be 1 or more, but is 0", lambda: TaskTape(0)),
        (r"offsets has 2 entries, but 2 pieces", lambda: Segments((0, 5), (0, 1))),
        (r"offsets must begin at 0, but begins at 1", lambda: Segments.of((1, 5))),
        (r"offsets must not fall, but 2 follows 3", lambda: Segments.of((0, 3, 2))),
        (r"tasks must be 0 or more, but holds -1", lambda: Segments((0, 3), (-1,))),
    ]


@pytest.mark.parametrize("case", range(len(bad_calls())))
def test_bad_input(case):
    message, call = bad_calls()[case]
    with pytest.raises(ValueError, match=message):
        call()
