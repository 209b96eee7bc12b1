"""The row kernels in C++ against formulas in fp64: every type, instruction set, place and odd size."""

from __future__ import annotations

import math

import pytest
import torch

from mnmt_scale.kernels import native
from mnmt_scale.kernels.native_rows import student_rows, teacher_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ISAS = native.module().available_isas()
SUM_RTOL = 1e-6
"""Of a loss: its sums take about 2^5 terms to a lane in fp32 and are then fp64, and the result is rounded to fp32."""


@pytest.fixture(params=ISAS)
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


def case(n, V, dtype=torch.float32, seed=0, spread=4.0):
    """Logits, targets, weights, a mixture of teachers and its weights."""
    g = torch.Generator().manual_seed(seed + 1000 * V + n)
    logits = (spread * torch.randn(n, V, generator=g)).to(dtype)
    targets = torch.randint(V, (n,), generator=g)
    mixture_weights = torch.rand(n, generator=g)
    mixture = torch.softmax(torch.randn(n, V, generator=g), dim=1) * mixture_weights[:, None]
    return logits, targets, torch.rand(n, generator=g), mixture, mixture_weights


def log_softmax(logits, temperature=1.0):
    z = logits.double() / temperature
    z = z - z.amax(dim=1, keepdim=True)
    return z - z.exp().sum(dim=1, keepdim=True).log()


def times(a, b):
    """Products in which 0 times infinity is 0."""
    return torch.where(a == 0, 0.0, a * b)


def teacher_truth(logits, mixture, weights, targets, temperature, accumulate):
    log_q = log_softmax(logits, temperature)
    added = weights.double()[:, None] * log_q.exp()
    nll = -log_softmax(logits).gather(1, targets[:, None])[:, 0]
    entropy = -times(log_q.exp(), log_q).sum(dim=1)
    return torch.stack((nll, entropy), dim=1), mixture.double() + added if accumulate else added


def student_truth(logits, targets, weights, mixture, mixture_weights, label_smoothing, temperature):
    log_p, log_q = log_softmax(logits), log_softmax(logits, temperature)
    nll = -log_p.gather(1, targets[:, None])[:, 0]
    gradient = log_p.exp()
    gradient.scatter_add_(1, targets[:, None], torch.full_like(nll, label_smoothing - 1.0)[:, None])
    if weights is not None:
        gradient *= weights.double()[:, None]
    kd = torch.zeros_like(nll)
    if mixture is not None:
        kd = -(temperature**2) * times(mixture.double(), log_q).sum(dim=1)
        gradient += temperature * (mixture_weights.double()[:, None] * log_q.exp() - mixture.double())
    return torch.stack((nll, -log_p.mean(dim=1), kd), dim=1), gradient


def assert_entries(actual, truth, scale=1.0):
    """Rounding to the type (half a unit in its last place), on top of fp32 arithmetic on terms of size ``scale``. fp16 has
    subnormals below 6e-5, spaced 6e-8 apart."""
    rtol = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[actual.dtype]
    atol = 3e-8 if actual.dtype == torch.float16 else 0.0
    bound = atol + rtol * truth.abs() + 1e-6 * scale * truth.abs() + 3e-7 * scale
    excess = (actual.double() - truth).abs() - bound
    assert bool((excess <= 0).all()), (actual.dtype, excess.max().item())


SIZES = [(5, 1), (3, 7), (4, 63), (2, 64), (2, 65), (3, 2113), (1, 65537)]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "V"), SIZES)
def test_teacher_equals_fp64(isa, n, V, dtype, temperature):
    logits, targets, weights, mixture, _ = case(n, V, dtype)
    kept = logits.clone()
    for accumulate in (False, True):
        ours = mixture.clone()
        results = teacher_rows(logits, ours, weights, targets, temperature, accumulate)
        truth, mixed = teacher_truth(logits, mixture, weights, targets, temperature, accumulate)
        assert results.dtype == torch.float32
        torch.testing.assert_close(results.double(), truth, rtol=SUM_RTOL, atol=SUM_RTOL)
        torch.testing.assert_close(ours.double(), mixed, rtol=3e-6, atol=1e-12)  # every entry, however small
    assert torch.equal(logits, kept)


def test_a_mixture_is_overwritten_or_added_to(isa):
    logits, targets, weights, mixture, _ = case(3, 70)
    weights[1] = 0.0
    fresh = torch.full_like(mixture, math.nan)
    teacher_rows(logits, fresh, weights, targets, 1.0, False)
    assert not fresh[1].any()
    assert bool((fresh[0] > 0).all())
    torch.testing.assert_close(fresh.sum(dim=1), weights, rtol=1e-6, atol=0)
    teacher_rows(logits, mixture, torch.zeros(3), targets, 1.0, True)
    assert torch.equal(mixture, case(3, 70)[3])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "V"), SIZES)
def test_student_equals_fp64(isa, n, V, dtype, mixed, temperature):
    logits, targets, weights, mixture, mixture_weights = case(n, V, dtype)
    teachers = (mixture, mixture_weights) if mixed else (None, None)
    for w in (weights, None):
        truth, gradient = student_truth(logits, targets, w, *teachers, 0.1, temperature)
        only = student_rows(logits, None, targets, w, *teachers, 0.1, temperature)
        torch.testing.assert_close(only.double(), truth, rtol=SUM_RTOL, atol=SUM_RTOL)
        for out_dtype in DTYPES:
            out = torch.full_like(logits, math.nan, dtype=out_dtype)
            assert torch.equal(student_rows(logits, out, targets, w, *teachers, 0.1, temperature), only)
            assert_entries(out, gradient, 1.0 + temperature)
            if out_dtype == dtype:
                place = logits.clone()
                assert torch.equal(student_rows(place, place, targets, w, *teachers, 0.1, temperature), only)
                assert torch.equal(place, out)


@pytest.mark.parametrize("V", [50, 262144])
def test_sums_over_the_largest_vocabularies(isa, V):
    """Equal terms round alike, again and again: the worst that an fp32 sum can meet."""
    logits = torch.full((2, V), -0.1)
    logits[:, 3] = 0.0
    logits[1] += 1000.0
    mixture = torch.full((2, V), 0.3 / V)
    w = torch.full((2,), 0.3)
    targets = torch.tensor([3, V - 1])
    truth, _ = student_truth(logits, targets, None, mixture, w, 0.0, 1.5)
    ours = student_rows(logits, None, targets, None, mixture, w, 0.0, 1.5)
    torch.testing.assert_close(ours.double(), truth, rtol=SUM_RTOL, atol=0)
    truth, _ = teacher_truth(logits, mixture, w, targets, 1.5, False)
    ours = teacher_rows(logits, mixture.clone(), w, targets, 1.5, False)
    torch.testing.assert_close(ours.double(), truth, rtol=SUM_RTOL, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_extreme_logits(isa, dtype, temperature):
    """Far apart (rows 0, 1), all equal and large (2, 3)."""
    logits = torch.full((4, 97), -1e4).to(dtype)
    logits[0, 11] = logits[1, 90] = 1e4
    logits[3] = 1e4
    targets = torch.tensor([11, 11, 96, 0])
    mixture = torch.softmax(torch.randn(4, 97, generator=torch.Generator().manual_seed(1)), dim=1)
    w = torch.ones(4)
    truth, gradient = student_truth(logits, targets, None, mixture, w, 0.1, temperature)
    out = torch.empty(4, 97)
    ours = student_rows(logits, out, targets, None, mixture, w, 0.1, temperature)
    assert ours[0, 0] == 0.0, "a certain target costs nothing"
    torch.testing.assert_close(ours.double(), truth, rtol=SUM_RTOL, atol=0)
    assert_entries(out, gradient, 3.0)
    truth, mixed = teacher_truth(logits, mixture, w, targets, temperature, False)
    ours = teacher_rows(logits, mixture, w, targets, temperature, False)
    torch.testing.assert_close(ours.double(), truth, rtol=SUM_RTOL, atol=0)
    torch.testing.assert_close(mixture.double(), mixed, rtol=3e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("masked", [slice(0, 2500), slice(2500, 5003), slice(0, 5003, 2)])
def test_masked_words_have_no_share(isa, dtype, temperature, masked):
    logits, targets, weights, mixture, _ = case(3, 5003, dtype)
    logits[:, masked] = -math.inf
    mixture[:, masked] = 0.0
    targets[:] = torch.isfinite(logits).float().argmax(dim=1)
    truth, gradient = student_truth(logits, targets, weights, mixture, mixture.sum(dim=1), 0.1, temperature)
    out = torch.empty_like(logits)
    ours = student_rows(logits, out, targets, weights, mixture, mixture.sum(dim=1), 0.1, temperature)
    assert bool(torch.isinf(ours[:, 1]).all())
    assert bool(torch.isfinite(ours[:, [0, 2]]).all())
    torch.testing.assert_close(ours[:, [0, 2]].double(), truth[:, [0, 2]], rtol=SUM_RTOL, atol=0)
    assert not out[:, masked].any()
    assert_entries(out, gradient, 3.0)
    truth, mixed = teacher_truth(logits, mixture, weights, targets, temperature, False)
    ours = teacher_rows(logits, mixture, weights, targets, temperature, False)
    torch.testing.assert_close(ours.double(), truth, rtol=SUM_RTOL, atol=0)
    torch.testing.assert_close(mixture.double(), mixed, rtol=3e-6, atol=1e-30)


def test_a_teacher_on_a_masked_word_costs_infinity_and_nan_is_not_hidden(isa):
    logits, targets, _, mixture, w = case(3, 40)
    logits[0, 7] = -math.inf
    logits[1, 9] = math.nan
    targets[:] = 1
    out = torch.empty_like(logits)
    losses = student_rows(logits, out, targets, None, mixture, w, 0.1, 2.0)
    assert losses[0, 2] == math.inf
    assert math.isfinite(losses[0, 0])
    assert bool(losses[1].isnan().all())
    assert bool(out[1].isnan().all())
    assert bool(losses[2].isfinite().all())
    assert bool(out[2].isfinite().all())
    assert bool(teacher_rows(logits, mixture, w, targets, 2.0, False)[1].isnan().all())


@pytest.mark.parametrize(("p", "label_smoothing"), [(0.9003, 0.1), (0.99997, 0.0)])
def test_the_entry_of_the_target_keeps_its_digits(isa, p, label_smoothing):
    """p - (1 - eps) is small beside p: a difference taken after p was rounded to bf16 would have no right digit."""
    logits = torch.zeros(1, 33)
    logits[0, 5] = math.log(32 * p / (1 - p))
    _, truth = student_truth(logits, torch.tensor([5]), None, None, None, label_smoothing, 1.0)
    for dtype in DTYPES:
        out = torch.empty(1, 33, dtype=dtype)
        student_rows(logits, out, torch.tensor([5]), None, None, None, label_smoothing, 1.0)
        rtol = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
        torch.testing.assert_close(out[0, 5].double(), truth[0, 5], rtol=rtol, atol=2e-7)  # fp32 sums of terms up to 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(isa, threads, dtype):
    logits, targets, weights, mixture, w = case(7, 4133, dtype)
    seen = []
    for n in (1, 2, 3):
        threads(n)
        out, mixed = torch.empty_like(logits), mixture.clone()
        losses = student_rows(logits, out, targets, weights, mixture, w, 0.1, 2.0)
        seen.append((losses, out, teacher_rows(logits, mixed, weights, targets, 2.0, True), mixed))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_rows_lie_anywhere_in_memory_and_nothing_beside_them_is_touched(isa):
    """A row begins at any element, and the elements before and after the matrix stay."""
    for dtype in DTYPES:
        logits, targets, weights, mixture, w = case(3, 37, dtype)
        buffer = torch.full((3 * 37 + 2,), 7.0, dtype=dtype)
        place = buffer[1:-1].view(3, 37).copy_(logits)
        wide = torch.full((3 * 37 + 2,), 7.0)
        mixed = wide[1:-1].view(3, 37).copy_(mixture)
        out = logits.clone()
        assert torch.equal(student_rows(place, place, targets, weights, mixed, w, 0.1, 2.0),
                           student_rows(out, out, targets, weights, mixture, w, 0.1, 2.0))  # fmt: skip
        teacher_rows(logits, mixed, weights, targets, 2.0, True)
        teacher_rows(logits, mixture, weights, targets, 2.0, True)
        assert torch.equal(place, out)
        assert torch.equal(mixed, mixture)
        assert buffer[0] == buffer[-1] == wide[0] == wide[-1] == 7.0


def test_no_rows_is_no_work(isa):
    logits, targets, weights, mixture, w = case(0, 9)
    assert student_rows(logits, logits, targets, weights, mixture, w, 0.1, 1.0).shape == (0, 3)
    assert teacher_rows(logits, mixture, weights, targets, 1.0, False).shape == (0, 2)


@pytest.mark.parametrize("wrong", ["logits", "targets", "weights", "mixture", "out"])
def test_what_the_addresses_rest_on_is_asserted(wrong):
    logits, targets, weights, mixture, w = case(4, 6)
    arguments = {"logits": logits, "out": logits.clone(), "targets": targets, "weights": weights, "mixture": mixture}
    broken = {"logits": logits.t().contiguous().t(), "targets": targets.int(), "weights": weights[:3],
              "mixture": mixture.double(), "out": logits[:, :5].contiguous()}  # fmt: skip
    arguments[wrong] = broken[wrong]
    with pytest.raises(AssertionError):
        student_rows(*arguments.values(), w, 0.1, 1.0)
