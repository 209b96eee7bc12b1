"""Losses per task: sums by segment, scaled once."""

import pytest
import torch
import torch.nn.functional as F

from mnmt_scale.losses.task_loss import scale_of_tokens, task_losses
from tests.support.batches import batch_of


@pytest.mark.parametrize("as_tensor", [True, False])
def test_sums_by_task_with_empty_tasks(as_tensor):
    batch = batch_of([(3, 5, 1), (4, 2, 1), (2, 6, 3)], tasks=5)
    torch.manual_seed(0)
    hidden = torch.randn(13, 8, requires_grad=True)
    weight = torch.randn(60, 8, requires_grad=True)
    scales = (9.0, 0.25, 9.0, -3.0, 9.0)
    losses = task_losses(hidden, weight, batch, torch.tensor(scales) if as_tensor else scales, 0.1)
    assert losses.tokens.tolist() == [0, 5, 0, 5, 0]
    assert losses.sums[[0, 2, 4]].tolist() == losses.nlls[[0, 2, 4]].tolist() == [0.0] * 3
    logits = hidden @ weight.t()
    for k, (a, b) in {1: (0, 7), 3: (7, 13)}.items():
        target = batch.target_out[a:b]
        torch.testing.assert_close(losses.nlls[k], F.cross_entropy(logits[a:b], target, reduction="sum"))
        smooth = F.cross_entropy(logits[a:b], target, reduction="sum", label_smoothing=0.1)
        torch.testing.assert_close(losses.sums[k], smooth)
    torch.testing.assert_close(losses.total, 0.25 * losses.sums[1] - 3 * losses.sums[3])
    assert not losses.sums.requires_grad
    assert not losses.nlls.requires_grad


def test_task_of_scale_zero_is_measured_and_has_no_gradient():
    batch = batch_of([(3, 5, 0), (2, 6, 1)], tasks=2)
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, requires_grad=True)
    losses = task_losses(hidden, torch.randn(60, 8), batch, (1.0, 0.0), 0.1)
    losses.total.backward()
    assert losses.sums[1] > 0
    assert hidden.grad[:5].any()
    assert not hidden.grad[5:].any()


@pytest.mark.parametrize("scales", [(0.5, 2.0, 3.0), torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)])
def test_scale_of_tokens(scales):
    found = scale_of_tokens(scales, (0, 2, 2, 3), torch.device("cpu"))
    assert found.dtype == torch.float32
    assert found.tolist() == [0.5, 0.5, 3.0]
    with pytest.raises(AssertionError, match="scales for 2 tasks"):
        scale_of_tokens(scales, (0, 2, 3), torch.device("cpu"))
