"""Diagonal of the empirical Fisher matrix, accumulated plainly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def fisher_accumulate(fisher: Sequence[Tensor], gradients: Sequence[Tensor], scale: float) -> None:
    """``F += (g * g) * scale`` in fp32, in place; fragments are cut alike."""
    for f, g in zip(fisher, gradients, strict=True):
        wide = g.detach().float().view_as(f)
        f.add_((wide * wide).mul_(scale))
