"""Ops that compute their gradients by hand are differentiable once, and say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For a ``backward`` that autograd could not differentiate again.

    torch's ``once_differentiable`` complains only if the *incoming* gradient requires one. That of a loss does not, so
    with it the second derivative of ``loss.backward(create_graph=True)`` lacks the op's part without a word.
    """

    @wraps(backward)
    def checked(ctx, *gradients):
        if torch.is_grad_enabled():  # by create_graph=True alone
            raise RuntimeError(
                "this op is differentiable once: for second derivatives (create_graph=True) run the forward pass within "
                "mnmt_scale.kernels.backend.forced('reference')"
            )
        return backward(ctx, *gradients)

    return checked
