"""Autograd of the ops whose forward pass computes the gradients: the backward pass hands them out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import backend
from .once import differentiable_once


def wanted(hidden: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """Whether the gradients of hidden and weight will be asked for."""
    enabled = torch.is_grad_enabled()
    return enabled and hidden.requires_grad, enabled and weight.requires_grad


def save(ctx, output: Sequence[Tensor]) -> None:
    """Keep the op's last three outputs, the gradients of hidden and weight and what they are still to be multiplied by;
    only the first output is differentiable."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[-3:])


def hand_out(ctx, d_total: Tensor | None, *_: None) -> tuple[Tensor | list[None] | None, ...]:
    """The saved gradients times the incoming one; the arguments after hidden and weight get none."""
    others = [[None] * len(needed) if isinstance(needed, list) else None for needed in ctx.needs_input_grad[2:]]
    return *_scaled(ctx, d_total), *others


@differentiable_once
def _scaled(ctx, d_total: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if d_total is None:
        return None, None
    *gradients, factor = ctx.saved_tensors
    d_total = d_total * factor
    # where looking is cheap, a gradient of 1 saves a pass over [V, D]; a traced one cannot be looked at
    if type(d_total) is not Tensor or d_total.device.type != "cpu" or d_total.item() != 1.0:
        gradients = [_times(g, d_total) for g in gradients]
    d_hidden, d_weight = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad))
    return d_hidden, d_weight


def _times(gradient: Tensor, factor: Tensor) -> Tensor:
    """In fp16 a loss scale, or one over the number of tokens, is beyond the type's range: then the product is fp32."""
    if gradient.dtype == torch.float16:
        return (gradient.float() * factor).half()
    return gradient * factor.to(gradient.dtype)


def in_range(scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales to form gradients of ``dtype`` with, and the factor left for the backward pass. In fp16 gradients with scales of
    1 / tokens would vanish before a loss scale comes in, so they are formed with scales up to 1."""
    one = scale.new_ones(())
    if dtype != torch.float16 or scale.numel() == 0:
        return scale, one
    factor = scale.abs().amax().clamp(min=torch.finfo(scale.dtype).tiny)
    return scale / factor, factor


@torch.compiler.assume_constant_result
def unfused() -> bool:
    """Whether the references were asked for: whole matrices, differentiable twice. A compiled graph keeps the answer of the
    time when it was traced."""
    return backend.forced_kind() == "reference"
