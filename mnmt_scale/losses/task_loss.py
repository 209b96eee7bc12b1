"""The loss of a micro-batch, per task, from the decoder's hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..flow import TaskBatch, TaskLosses
from ..kernels.ops.linear_cross_entropy import linear_cross_entropy


def task_losses(
    hidden: Tensor, weight: Tensor, batch: TaskBatch, scales: Tensor | Sequence[float], label_smoothing: float = 0.0
) -> TaskLosses:
    """Label-smoothed negative log-likelihood of each task's target tokens: sums, never means.

    Args:
        hidden: [U, D] decoder states of the packed target tokens.
        weight: [V, D] output projection (the tied embedding).
        scales: [K] factor of each task in ``total``: ``alpha_k / N_k`` makes it a weighted sum of token means.
    """
    segments = batch.target_segments
    scales = torch.as_tensor(scales, dtype=torch.float32, device=hidden.device)
    assert scales.shape == (len(segments) - 1,), f"{tuple(scales.shape)} scales for {len(segments) - 1} tasks"
    lengths = torch.tensor(segments, device=hidden.device).diff()
    token_scale = scales.repeat_interleave(lengths, output_size=hidden.shape[0])
    return TaskLosses(*linear_cross_entropy(hidden, weight, batch.target_out, token_scale, segments, label_smoothing))
