"""Autograd of the ops whose forward pass computes the gradients: the backward pass hands them out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend


def wanted(hidden: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """Whether the gradients of hidden and weight will be asked for."""
    enabled = torch.is_grad_enabled()
    return enabled and hidden.requires_grad, enabled and weight.requires_grad


def save(ctx, output: Sequence[Tensor]) -> None:
    """Keep the op's last two outputs, the gradients of hidden and weight; only the first output is differentiable."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[-2:])


def hand_out(ctx, d_total: Tensor | None, *_: None) -> tuple[Tensor | list[None] | None, ...]:
    """The saved gradients times the incoming one; the arguments after hidden and weight get none."""
    others = [[None] * len(needed) if isinstance(needed, list) else None for needed in ctx.needs_input_grad[2:]]
    return *_scaled(ctx, d_total), *others


@once_differentiable
def _scaled(ctx, d_total: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if d_total is None:
        return None, None
    gradients = ctx.saved_tensors
    # where looking is cheap, a gradient of 1 saves a pass over [V, D]; a traced one cannot be looked at
    if type(d_total) is not Tensor or d_total.device.type != "cpu" or d_total.item() != 1.0:
        gradients = [g * d_total.to(g.dtype) for g in gradients]
    d_hidden, d_weight = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad))
    return d_hidden, d_weight


@torch.compiler.assume_constant_result
def unfused() -> bool:
    """Whether the references were asked for: whole matrices, differentiable twice."""
    return backend.forced_kind() == "reference"
