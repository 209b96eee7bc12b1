"""What the row kernels of the losses mean: softmax, losses and gradient of rows of logits, in plain torch.

``z`` is a row of logits, ``p = softmax(z)``, ``Q_c`` the distribution of teacher c, ``tau`` the temperature. The rows of
``linear_distillation`` and, without a mixture, of ``linear_cross_entropy``; everything is computed in fp32, in fp64 where
the logits or the mixture are fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def teacher_rows(
    logits: Tensor, mixture: Tensor, weights: Tensor, targets: Tensor, temperature: float, accumulate: bool
) -> Tensor:
    """Add one teacher to the mixture: row t (+)= weights[t] * softmax(logits[t] / temperature).

    Args:
        logits: [n, V], read only.
        mixture: [n, V] fp32, written; the rows are added to it if ``accumulate``, else they replace it.
        weights: [n] fp32.
        targets: [n] int64, all in 0..V-1.

    Returns:
        [n, 2] fp32: -log softmax(logits[t])[targets[t]] (at temperature 1), entropy of softmax(logits[t] / temperature).
    """
    wide = mixture.dtype
    q = torch.softmax(logits, dim=1, dtype=wide)
    nll = _log_sum_exp(logits, q) - _at(logits, targets, wide)
    if temperature != 1:
        q = torch.softmax(logits.to(wide) / temperature, dim=1)
    entropy = torch.special.entr(q).sum(dim=1)
    q.mul_(weights[:, None])
    if accumulate:
        mixture.add_(q)
    else:
        mixture.copy_(q)
    return torch.stack((nll, entropy), dim=1)


def student_rows(
    logits: Tensor,
    out: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    mixture: Tensor | None,
    mixture_weights: Tensor | None,
    label_smoothing: float,
    temperature: float,
) -> Tensor:
    """Losses of each row and, if asked for, their gradient with respect to the logits less its part of rank one:

        out = w0 (p - (1 - eps) onehot(y)) + tau (W softmax(z / tau) - mixture)

    The rest, ``- w0 eps / V`` in every entry, is applied by the caller to the small results.

    Args:
        logits: [n, V].  out: None or [n, V], may be ``logits``; its target entries are rounded once, from fp32.
        targets: [n] int64, all in 0..V-1.
        weights: [n] fp32 w0; None: all 1.
        mixture: [n, V] fp32 ``sum_c w_c Q_c`` with mixture_weights [n] fp32 W = ``sum_c w_c``; None for no teacher.

    Returns:
        [n, 3] fp32: nll ``-log p_y``; uniform ``mean_v(-log p_v)``; kd ``tau^2 sum_v mixture_v (-log softmax(z / tau)_v)``.
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    p = torch.softmax(logits, dim=1, dtype=wide)
    lse = _log_sum_exp(logits, p)
    nll = lse - _at(logits, targets, wide)
    uniform = lse - logits.mean(dim=1, dtype=wide)
    kd, pull = torch.zeros_like(nll), None
    if mixture is not None:
        z = logits.to(wide) if temperature == 1 else logits.to(wide) / temperature
        p_tau = p if temperature == 1 else torch.softmax(z, dim=1)
        minus_log = _log_sum_exp(z, p_tau)[:, None] - z
        kd = minus_log.mul_(mixture).masked_fill_(mixture == 0, 0.0).sum(dim=1).mul_(temperature**2)  # a logit of -inf
        if out is not None:
            pull = torch.mul(p_tau, mixture_weights[:, None]).sub_(mixture).mul_(temperature)
    if out is not None:
        p.scatter_(1, targets[:, None], (torch.exp(-nll) - (1 - label_smoothing))[:, None])
        if weights is not None:
            p.mul_(weights[:, None])
        if pull is not None:
            p.add_(pull)
        out.copy_(p)
    return torch.stack((nll, uniform, kd), dim=1)


def _log_sum_exp(logits: Tensor, p: Tensor) -> Tensor:
    """Around the row's maximum; the largest probability is never below 1/V, so its logarithm is safe."""
    return logits.amax(dim=1).to(p.dtype) - p.amax(dim=1).log()


def _at(logits: Tensor, targets: Tensor, wide: torch.dtype) -> Tensor:
    return logits.gather(1, targets[:, None])[:, 0].to(wide)
