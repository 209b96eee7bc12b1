"""What ``linear_cross_entropy`` means: the whole [T, V] matrix of logits in plain torch, nothing fused.

    z = hidden weight^T,   loss_t = (1 - eps) * (lse(z_t) - z_t[y_t]) + eps / V * sum_v (lse(z_t) - z_t[v])

as ``torch.nn.functional.cross_entropy(..., label_smoothing=eps)`` has it (the smoothing mass is spread over all V).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...flow import IGNORE


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    segments: Sequence[int],
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Label-smoothed negative log-likelihood of ``targets`` under ``softmax(hidden weight^T)``.

    Args:
        hidden: [T, D].  weight: [V, D].
        targets: [T] int64; ``IGNORE`` rows cost nothing and get no gradient.
        scale: [T] factor of each token's loss in ``total``; no gradient flows into it.
        segments: [K+1] offsets: tokens ``segments[k]:segments[k+1]`` belong to task k.
        label_smoothing: eps.

    Returns:
        total: scalar with a graph, ``sum_t scale_t loss_t``.
        sums, nlls: [K] sums of the smoothed losses and of the plain ones, detached.
        tokens: [K] int64, rows that are not ignored.
    """
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    hidden = hidden.masked_fill((targets == IGNORE)[:, None], 0)  # an ignored row may hold anything
    loss, nll = token_losses(hidden.to(wide) @ weight.to(wide).t(), targets, label_smoothing)
    total = (loss * scale.detach()).sum()
    return total, *(per_task(x, segments) for x in (loss, nll, targets != IGNORE))


def token_losses(logits: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """[T] smoothed and plain losses of logits [T, V], 0 at ignored tokens."""
    minus_log_p = torch.logsumexp(logits, dim=1, keepdim=True) - logits
    nll = minus_log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    loss = nll if label_smoothing == 0 else (1 - label_smoothing) * nll + label_smoothing * minus_log_p.mean(dim=1)
    kept = targets != IGNORE
    return torch.where(kept, loss, 0.0), torch.where(kept, nll, 0.0)


def per_task(x: Tensor, segments: Sequence[int]) -> Tensor:
    """[K] sums of x [T] over each task's tokens, detached."""
    sums = [x[a:b].detach().sum() for a, b in pairwise(segments)]
    return torch.stack(sums) if sums else x.new_zeros(0)
