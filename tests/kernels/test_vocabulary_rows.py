"""The row kernels as this machine runs them, and in torch, against autograd in fp64."""

import pytest
import torch
import torch.nn.functional as F

from mnmt_scale.kernels.ops import vocabulary_rows as ops
from mnmt_scale.kernels.reference import vocabulary_rows as reference

INF = float("inf")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@pytest.fixture(params=["fast", "torch"])
def rows(request, monkeypatch):
    """The kernels of this device, and those in torch."""
    if request.param == "torch":
        monkeypatch.setattr(ops, "implementation", lambda op, device_type, dtype: "reference")
    return ops


def case(n, V, dtype, seed=0, spread=3.0):
    g = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits = (spread * torch.randn(n, V, generator=g, dtype=torch.float64)).to(dtype)
    mixture = 0.3 * torch.softmax(torch.randn(n, V, generator=g, dtype=torch.float64), dim=1).to(wide)
    mixture += 0.2 * torch.softmax(torch.randn(n, V, generator=g, dtype=torch.float64), dim=1).to(wide)
    return logits, torch.randint(V, (n,), generator=g), torch.rand(n, generator=g).to(wide), mixture


def student_truth(logits, targets, weights, mixture, eps, temperature):
    """Losses [n, 3] in fp64, and the whole gradient of ``w0 smoothed + kd`` with respect to the logits."""
    z = logits.double().requires_grad_()
    log_p = torch.log_softmax(z, dim=1)
    nll, uniform = F.nll_loss(log_p, targets, reduction="none"), -log_p.mean(dim=1)
    kd = torch.zeros_like(nll)
    if mixture is not None:
        kd = -(temperature**2) * (mixture.double() * torch.log_softmax(z / temperature, dim=1)).sum(dim=1)
    w0 = 1.0 if weights is None else weights.double()
    gradient = torch.autograd.grad((w0 * ((1 - eps) * nll + eps * uniform) + kd).sum(), z)[0]
    return torch.stack((nll, uniform, kd), dim=1).detach(), gradient


def close(ours, truth, tolerance):
    assert (ours.double() - truth).norm() <= tolerance * truth.norm(), ((ours.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("V", [1, 7, 63, 1000])
def test_student(rows, dtype, temperature, V):
    logits, targets, weights, mixture = case(5, V, dtype)
    losses, gradient = student_truth(logits, targets, weights, mixture, 0.1, temperature)
    out = logits.clone()
    ours = rows.student_rows(out, out, targets, weights, mixture, mixture.sum(dim=1), 0.1, temperature)
    close(ours, losses, 3e-6)
    whole = out.double() - 0.1 / V * weights.double()[:, None]
    assert (whole - gradient).norm() <= TOLERANCE[dtype] * (1 + gradient.norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_student_without_teachers_or_weights(rows, dtype):
    logits, targets, _, _ = case(6, 77, dtype)
    losses, gradient = student_truth(logits, targets, None, None, 0.0, 1.0)
    out = torch.full_like(logits, INF)
    ours = rows.student_rows(logits, out, targets, None, None, None, 0.0, 1.0)
    close(ours[:, :2], losses[:, :2], 3e-6)
    assert not ours[:, 2].any()
    close(out, gradient, TOLERANCE[dtype])
    assert torch.equal(rows.student_rows(logits, None, targets, None, None, None, 0.0, 1.0), ours)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("accumulate", [False, True])
def test_teacher(rows, dtype, temperature, accumulate):
    logits, targets, weights, mixture = case(5, 301, dtype)
    before, kept = mixture.clone(), logits.clone()
    if not accumulate:
        mixture.fill_(float("nan"))
    ours = rows.teacher_rows(logits, mixture, weights, targets, temperature, accumulate)
    q = torch.softmax(logits.double() / temperature, dim=1)
    close(mixture, weights.double()[:, None] * q + (before.double() if accumulate else 0), 3e-6)
    close(ours[:, 0], F.cross_entropy(logits.double(), targets, reduction="none"), 3e-6)
    close(ours[:, 1], torch.special.entr(q).sum(dim=1), 3e-6)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits(rows, dtype, size):
    logits = torch.zeros(2, 9, dtype=dtype)
    logits[:, 3] = size
    targets, ones = torch.tensor([3, 0]), torch.ones(2)
    mixture = torch.zeros(2, 9)
    teacher = rows.teacher_rows(logits, mixture, ones, targets, 1.0, False)
    truth = F.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(teacher[:, 0].double(), truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixture.double(), torch.softmax(logits.double(), dim=1), rtol=1e-6, atol=1e-6)
    student = rows.student_rows(logits, logits, targets, ones, mixture, ones, 0.0, 1.0)
    torch.testing.assert_close(student[:, 0].double(), truth, rtol=1e-6, atol=1e-6)
    assert student.isfinite().all()
    assert logits.isfinite().all()


def test_a_logit_of_minus_infinity_is_a_probability_of_zero(rows):
    logits, targets, weights, mixture = case(4, 20, torch.float32)
    logits[:, 5] = -INF
    targets[:] = 2
    teacher = rows.teacher_rows(logits, mixture, weights, targets, 2.0, False)
    assert not mixture[:, 5].any()
    assert teacher.isfinite().all()
    ours = rows.student_rows(logits, logits, targets, weights, mixture, weights, 0.1, 2.0)
    assert ours[:, [0, 2]].isfinite().all()
    assert not logits[:, 5].any()
    assert logits.isfinite().all()


def test_fp64_and_what_has_no_fast_version_run_in_torch(monkeypatch):
    asked = []
    assert ops._kernels(torch.zeros(1, 1, dtype=torch.float64)) is reference
    monkeypatch.setattr(ops, "implementation", lambda *question: asked.append(question) or "reference")
    assert ops._kernels(torch.zeros(1, 1)) is reference
    assert asked == [("vocabulary_rows", "cpu", torch.float32)]


def test_the_choice_of_the_backend_is_followed(monkeypatch):
    from mnmt_scale.kernels import native_rows

    monkeypatch.setattr(ops, "implementation", lambda op, device_type, dtype: "native")
    assert ops._kernels(torch.zeros(1, 1)) is native_rows
