"""Triton's row kernels against fp64: in its interpreter on CPU where TRITON_INTERPRET=1, else on the GPU.

Not collected by itself: the interpreter must be chosen before triton is imported, so ``test_triton_rows`` runs this file
in a process of its own.
"""

from __future__ import annotations

import os

import pytest
import torch

from mnmt_scale.kernels.triton.vocabulary_rows import student_rows, teacher_rows, tiling

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # inf * 0 in numpy, where a mask drops it
LOSS = {"rtol": 5e-6, "atol": 5e-6}
MATRIX = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-7 if DEVICE == "cpu" else 2**-8, "atol": 1e-6},  # the interpreter cuts bits off
    torch.float16: {"rtol": 2**-10, "atol": 1e-6},
}
"""Losses are fp32 whatever the logits, so are the gradients before they are rounded to their dtype."""


def sizes(dtype):
    """V around the borders of a pass's tile, and one that is no multiple of anything, over several tiles of most warps."""
    loads, lanes, _ = tiling(1, dtype.itemsize)
    return [1, 7, 63, lanes - 1, lanes, lanes + 1, loads * lanes - 1, loads * lanes, loads * lanes + 1, 65537]


def rows(n, V, dtype=torch.float32, spread=3.0, seed=0):
    """Random (logits, targets, weights, mixture, mixture_weights); every third word has no teacher's probability."""
    g = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(n, V, generator=g)).to(dtype)
    targets = torch.randint(V, (n,), generator=g)
    weights, mixture_weights = torch.rand(2, n, generator=g) + 0.1
    q = torch.randn(n, V, generator=g).exp()
    q[:, 1::3] = 0
    mixture = q / q.sum(1, keepdim=True) * mixture_weights[:, None]
    return [x.to(DEVICE) for x in (logits, targets, weights, mixture, mixture_weights)]


def student_truth(logits, targets, weights, mixture, mixture_weights, eps, tau):
    z = logits.double()
    weights = torch.ones_like(z[:, 0]) if weights is None else weights.double()
    log_p, log_p_tau = z.log_softmax(1), (z / tau).log_softmax(1)
    onehot = torch.zeros_like(z).scatter_(1, targets[:, None], 1.0)
    gradient = weights[:, None] * (log_p.exp() - (1 - eps) * onehot)
    distillation = torch.zeros_like(z)
    if mixture is not None:
        q = mixture.double()
        gradient += tau * (mixture_weights.double()[:, None] * log_p_tau.exp() - q)
        distillation = torch.where(q == 0, 0.0, -q * log_p_tau)
    nll = -log_p.gather(1, targets[:, None])[:, 0]
    return torch.stack([nll, -log_p.mean(1), tau**2 * distillation.sum(1)], 1), gradient


def teacher_truth(logits, weights, targets, tau):
    z = logits.double()
    log_p_tau = (z / tau).log_softmax(1)
    p = log_p_tau.exp()
    nll = -z.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return torch.stack([nll, -torch.where(p == 0, 0.0, p * log_p_tau).sum(1)], 1), weights.double()[:, None] * p


def check(actual, truth, tolerance):
    torch.testing.assert_close(actual.double(), truth, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("size", range(10))
def test_every_size(size, dtype):
    V = sizes(dtype)[size]
    logits, y, w, q, W = rows(2, V, dtype)
    truth, gradient = student_truth(logits, y, w, q, W, 0.1, 2.0)
    teacher, added = teacher_truth(logits, w, y, 2.0)
    mixture = q.clone()
    check(teacher_rows(logits, mixture, w, y, 2.0, True), teacher, LOSS)
    check(mixture, q.double() + added, MATRIX[torch.float32])
    losses = student_rows(logits, logits, y, w, q, W, 0.1, 2.0)
    check(losses, truth, LOSS)
    check(logits, gradient, MATRIX[dtype])


@pytest.mark.parametrize(("dtype", "out_dtype"), zip(DTYPES + DTYPES, DTYPES + DTYPES[1:] + DTYPES[:1]))
@pytest.mark.parametrize("with_mixture", [False, True])
@pytest.mark.parametrize(
    ("with_weights", "eps", "tau"), [(False, 0.0, 1.0), (True, 0.1, 1.0), (True, 0.0, 0.5), (False, 0.2, 2.0)]
)
def test_student_writes_its_rows_and_nothing_else(with_mixture, with_weights, eps, tau, dtype, out_dtype):
    logits, y, w, q, W = rows(3, 700, dtype, seed=1)
    w = w if with_weights else None
    q, W = (q, W) if with_mixture else (None, None)
    truth, gradient = student_truth(logits, y, w, q, W, eps, tau)
    before, around = logits.clone(), torch.full((5, 700), 7.0, dtype=out_dtype, device=DEVICE)
    check(student_rows(logits, around[1:-1], y, w, q, W, eps, tau), truth, LOSS)
    check(around[1:-1], gradient, MATRIX[out_dtype])
    assert (around[[0, -1]] == 7.0).all()
    losses = student_rows(logits, None, y, w, q, W, eps, tau)
    check(losses, truth, LOSS)
    assert torch.equal(logits, before)
    assert torch.equal(losses, student_rows(logits, None, y, w, q, W, eps, tau)), "two runs differ"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_teacher_begins_or_adds_to_the_mixture(tau, dtype):
    logits, y, w, q, _ = rows(3, 700, dtype, seed=2)
    w[1] = 0
    truth, added = teacher_truth(logits, w, y, tau)
    around = torch.full((5, 700), float("nan"), device=DEVICE)
    before, mixture = logits.clone(), around[1:-1]
    check(teacher_rows(logits, mixture, w, y, tau, False), truth, LOSS)
    check(mixture, added, MATRIX[torch.float32])
    mixture.copy_(q)
    check(teacher_rows(logits, mixture, w, y, tau, True), truth, LOSS)
    check(mixture, q.double() + added, MATRIX[torch.float32])
    assert torch.equal(mixture[1], q[1])
    assert around[[0, -1]].isnan().all()
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_extreme_logits(tau, dtype):
    """Logits of +-1e4, and -inf among the others, in whole tiles too: no NaN, and as exact as any."""
    V = 3000
    logits, y, w, q, W = rows(5, V, dtype, seed=3)
    logits[0, ::2], logits[0, 1::2] = 1e4, -1e4
    logits[1] += 1e4
    logits[2, 10:20] = -1e4
    logits[3, : V - 50] = float("-inf")
    logits[4, V // 2 :] = float("-inf")
    y[3], y[4] = V - 1, 0
    q[logits == float("-inf")] = 0
    truth, gradient = student_truth(logits, y, w, q, W, 0.1, tau)
    assert truth.isfinite().sum() == 13  # the mean of -log p is infinite in two rows
    teacher, added = teacher_truth(logits, w, y, tau)
    mixture = torch.empty_like(q)
    check(teacher_rows(logits, mixture, w, y, tau, False), teacher, LOSS)
    check(mixture, added, MATRIX[torch.float32])
    check(student_rows(logits, logits, y, w, q, W, 0.1, tau), truth, LOSS)
    check(logits, gradient, MATRIX[dtype])


def test_infinite_losses_are_infinite_not_nan():
    """A target, or a word that a teacher expects, of logit -inf."""
    logits, y, w, q, W = rows(2, 100, seed=4)
    q[0] = q[1]
    logits[0, y[0]] = logits[1, 0] = float("-inf")
    y[1] = 5
    assert q[0, y[0]] * q[1, 0] > 0
    truth, gradient = student_truth(logits, y, w, q, W, 0.1, 2.0)
    assert truth.isinf().tolist() == [[True, True, True], [False, True, True]]
    check(student_rows(logits, logits, y, w, q, W, 0.1, 2.0), truth, LOSS)
    check(logits, gradient, MATRIX[torch.float32])


@pytest.mark.parametrize("V", [100, 65537])
def test_a_target_almost_sure_or_almost_impossible(V):
    logits, y, _, _, _ = rows(2, V, seed=5)
    logits[0, y[0]], logits[1, y[1]] = 60.0, -60.0
    truth, gradient = student_truth(logits, y, None, None, None, 0.0, 1.0)
    out = torch.empty_like(logits)
    check(student_rows(logits, out, y, None, None, None, 0.0, 1.0), truth, {"rtol": 1e-6, "atol": 1e-6})
    check(out, gradient, {"rtol": 1e-5, "atol": 2e-7})


def test_no_rows():
    logits, y, w, q, W = rows(0, 9)
    assert student_rows(logits, logits, y, w, q, W, 0.1, 1.0).shape == (0, 3)
    assert teacher_rows(logits, q, w, y, 1.0, False).shape == (0, 2)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements():
    V = 1 << 17
    n = (1 << 31) // V + 3
    if torch.cuda.mem_get_info()[0] < 3 * 2 * n * V:
        pytest.skip(f"needs {6 * n * V / 1e9:.0f} GB of device memory")
    logits = torch.zeros(n, V, dtype=torch.bfloat16, device="cuda")
    ends = [0, n - 4, n - 3, n - 1]
    logits[ends], y, *_ = rows(4, V, torch.bfloat16)
    targets = torch.zeros(n, dtype=torch.long, device="cuda").index_copy_(0, torch.tensor(ends, device="cuda"), y)
    truth, gradient = student_truth(logits[ends], y, None, None, None, 0.1, 1.0)
    losses = student_rows(logits, logits, targets, None, None, None, 0.1, 1.0)
    check(losses[ends], truth, LOSS)
    check(logits[ends], gradient, MATRIX[torch.bfloat16])
    middle = torch.full((V,), 1 / V, device="cuda").index_fill_(0, targets[1:2], 1 / V - 0.9)
    assert torch.equal(logits[1], middle.bfloat16())
    assert torch.equal(logits[n // 2], logits[1])
