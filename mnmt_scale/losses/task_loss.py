"""The loss of a micro-batch, per task, from the decoder's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..flow import TaskBatch, TaskLosses
from ..kernels.ops.linear_cross_entropy import linear_cross_entropy
from ..kernels.segments import on_device


def scale_of_tokens(scales: Tensor | Sequence[float], segments: Sequence[int], device: torch.device) -> Tensor:
    """[U] fp32 scale of each target token from those [K] of the tasks. One given on the host does not make a GPU wait."""
    if not isinstance(scales, Tensor):
        scales = on_device(scales, torch.float32, device)
    scales = scales.to(device, torch.float32)
    assert scales.shape == (len(segments) - 1,), f"{tuple(scales.shape)} scales for {len(segments) - 1} tasks"
    lengths = on_device([b - a for a, b in pairwise(segments)], torch.int64, device)
    return scales.repeat_interleave(lengths, output_size=segments[-1])


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
    token_scale = scale_of_tokens(scales, segments, hidden.device)
    return TaskLosses(*linear_cross_entropy(hidden, weight, batch.target_out, token_scale, segments, label_smoothing))
