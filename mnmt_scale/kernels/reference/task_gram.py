"""Inner products of all pairs of K gradients, and their combination, plainly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def task_gram(gradients: Sequence[Sequence[Tensor]], diagonal: Sequence[Tensor] = ()) -> Tensor:
    """``G[i, j] = sum_p w_p g_ip g_jp`` in fp64.

    Args:
        gradients: K lists of F fragments, cut alike; F >= 1.
        diagonal: F fragments of w, or none for all 1.

    Returns:
        [K, K] fp64, symmetric, on the gradients' device.
    """
    gram = gradients[0][0].new_zeros(len(gradients), len(gradients), dtype=torch.float64)
    for f, fragments in enumerate(zip(*gradients, strict=True)):
        rows = torch.stack([g.detach().flatten() for g in fragments]).double()
        weighted = rows * diagonal[f].detach().flatten().double() if diagonal else rows
        gram += weighted @ rows.t()
    return gram.triu() + gram.triu(1).t()  # a matrix product need not be symmetric in its last bits


def combine(gradients: Sequence[Sequence[Tensor]], coefficients: Sequence[float]) -> list[Tensor]:
    """``sum_k coefficients[k] g_k``, summed in fp32 (fp64 for fp64), in the dtype and shapes of the gradients."""
    combination = []
    for fragments in zip(*gradients, strict=True):
        wide = torch.float64 if fragments[0].dtype == torch.float64 else torch.float32
        total = torch.zeros_like(fragments[0], dtype=wide)
        for a, g in zip(coefficients, fragments, strict=True):
            total += a * g.detach().to(wide).view_as(total)
        combination.append(total.to(fragments[0].dtype))
    return combination
