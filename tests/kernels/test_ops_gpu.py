"""The public ops on a device: their checks, dispatch and results as a user calls them, against the references in fp64."""

import pytest
import torch

from mnmt_scale.kernels import backend
from mnmt_scale.kernels.ops.fisher_accumulate import fisher_accumulate
from mnmt_scale.kernels.ops.fisher_similarity import fisher_similarity
from mnmt_scale.kernels.ops.linear_distillation import HiddenTeacher, ProbabilityTeacher, linear_distillation
from mnmt_scale.kernels.ops.task_gram import task_gram, task_gram_combine
from mnmt_scale.kernels.ops.top_threshold import top_threshold

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tasks", [1, 4, 8, 17])
def test_task_gram(tasks, dtype):
    assert backend.implementation("task_gram", "cuda") == "native"
    sizes = [1, 0, 7, 63, 65537, 512 * 300]
    gradients = [[normal(n, dtype=dtype, seed=100 * k + n) for n in sizes] for k in range(tasks)]
    coefficients = [0.5 - k for k in range(tasks)]
    gram, combined = task_gram_combine(gradients, coefficients)
    flat = torch.stack([torch.cat(g).double() for g in gradients])
    truth = flat @ flat.t()
    assert (gram - truth).abs().max() <= 1e-5 * truth.diagonal().max()
    assert torch.equal(task_gram(gradients), task_gram(gradients))
    total = torch.tensor(coefficients, dtype=torch.float64, device="cuda") @ flat
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(torch.cat(combined).double(), total, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fisher_accumulate(dtype):
    sizes = [1, 0, 7, 63, 65537]
    fisher, gradients = [normal(n, seed=n).abs() for n in sizes], [normal(n, dtype=dtype, seed=n + 1) for n in sizes]
    expected = [f.double() + 0.25 * g.double() ** 2 for f, g in zip(fisher, gradients)]
    fisher_accumulate(fisher, gradients, 0.25)
    for a, b in zip(fisher, expected):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-7)


def test_selection_and_similarity():
    rows = normal(5, 65537) ** 2
    threshold = top_threshold(rows, fraction=0.4)
    count = round(0.4 * rows.shape[1])
    assert torch.equal(threshold, rows.sort(dim=1, descending=True).values[:, count - 1])
    ours, host = fisher_similarity([rows[:, :40000].contiguous(), rows[:, 40000:].contiguous()]), fisher_similarity(rows.cpu())
    torch.testing.assert_close(ours.overlap.cpu(), host.overlap)
    torch.testing.assert_close(ours.mse.cpu(), host.mse, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(ours.kl.cpu(), host.kl, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_distillation(dtype, temperature):
    T, V, D, segments = 300, 1003, 64, (0, 100, 100, 300)
    hidden, weight = (normal(n, D, dtype=dtype, seed=n).requires_grad_() for n in (T, V))
    targets = torch.randint(V, (T,), generator=torch.Generator().manual_seed(1)).cuda()
    targets[::7] = -100
    teachers = [
        HiddenTeacher(normal(T, 32, dtype=dtype, seed=2), normal(V, 32, dtype=dtype, seed=3)),
        ProbabilityTeacher(torch.softmax(normal(T, V, seed=4), dim=1)),
    ]
    arguments = (targets, torch.full((T,), 1 / T, device="cuda"), segments, teachers, [[0.5, 0.0], [0.2, 0.3], [0.0, 0.7]], 0.6)

    def run(h, w):
        losses = linear_distillation(h, w, *arguments, label_smoothing=0.1, temperature=temperature)
        return losses, torch.autograd.grad(losses.total, (h, w))

    ours, gradients = run(hidden, weight)
    with backend.forced("reference"):
        truth, wanted = run(hidden, weight)
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2  # TF32 or not is the reference's choice too
    for name in ("total", "sums", "nlls", "distillation", "entropy"):
        torch.testing.assert_close(getattr(ours, name), getattr(truth, name), rtol=tolerance, atol=tolerance)
    for a, b in zip(gradients, wanted):
        assert (a - b).norm() <= tolerance * b.norm()
