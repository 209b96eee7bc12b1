"""Dropout and residual connection in one pass.

On CPU torch draws one Bernoulli number at a time, 6 ns each on one thread, which is a tenth of a training step; here
four decisions are taken from each 64-bit random number (0.9 ns each), by comparing 16 bits with ``p``. ``p`` is
therefore rounded to a multiple of 2^-16, and the kept values are divided by exactly the rounded rate of keeping.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import forced_kind
from ..once import differentiable_once
from ..reference import dropout_add as reference

STEPS = 1 << 16


def dropout_add(residual: Tensor | None, x: Tensor, p: float, training: bool = True) -> Tensor:
    """``residual + dropout(x)``; ``residual`` None leaves the sum out.

    Args:
        residual, x: of one shape and dtype.
        p: probability of dropping an entry; the others are multiplied by ``1 / (1 - p)``.

    Returns:
        A tensor like ``x``; differentiable once where the fast version runs (CPU).
    """
    if not training or p == 0.0:
        return x if residual is None else residual + x
    if x.device.type != "cpu" or forced_kind() == "reference":
        return reference.dropout_add(residual, x, p)
    return _DropoutAdd.apply(residual, x, p)


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, residual: Tensor | None, x: Tensor, p: float) -> Tensor:
        dropped = round(p * STEPS)
        keep = torch.empty(x.shape, dtype=x.dtype)
        torch.ge(_random_16_bits(x.numel()).view(x.shape), dropped - STEPS // 2, out=keep)
        ctx.factor = STEPS / (STEPS - dropped)
        ctx.save_for_backward(keep)
        if residual is None:
            return torch.mul(x, keep).mul_(ctx.factor)
        return torch.addcmul(residual, x, keep, value=ctx.factor)

    @staticmethod
    @differentiable_once
    def backward(ctx, grad: Tensor):
        (keep,) = ctx.saved_tensors
        d_residual = grad if ctx.needs_input_grad[0] else None
        return d_residual, torch.mul(grad, keep).mul_(ctx.factor), None


def _random_16_bits(count: int) -> Tensor:
    """[count] int16, uniform over all values, from torch's CPU generator."""
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:count]
