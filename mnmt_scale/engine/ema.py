"""Exponential moving average of the weights, sharded like the fp32 masters."""

from __future__ import annotations

import torch
from torch import Tensor


def ema_decay(decay: float, updates: int) -> float:
    """Decay of update number ``updates`` (0 is the first): min(decay, (updates + 1) / (updates + 10)), so that early
    averages are not dominated by the random start (Marian's ``--exponential-smoothing`` does the same)."""
    return min(decay, (updates + 1) / (updates + 10))


class Ema:
    """average <- d * average + (1 - d) * weights after every update that was applied; each rank keeps its share.

    Attributes:
        averages: fp32 tensors laid out like the ``tensors`` given at construction.
        updates: how often ``update`` has been called.
    """

    def __init__(self, tensors: list[Tensor], decay: float) -> None:
        self._decay = decay
        self.averages = [t.detach().clone().float() for t in tensors]
        self.updates = 0

    @torch.no_grad()
    def update(self, tensors: list[Tensor]) -> None:
        """Moves the averages towards ``tensors``."""
        weight = 1.0 - ema_decay(self._decay, self.updates)
        torch._foreach_lerp_(self.averages, [t.detach() for t in tensors], weight)
        self.updates += 1

    @torch.no_grad()
    def swap(self, tensors: list[Tensor]) -> None:
        """Exchanges the averages with ``tensors``, bit for bit; a second call takes it back."""
        for average, tensor in zip(self.averages, tensors, strict=True):
            kept = average.clone()
            average.copy_(tensor.detach())
            tensor.detach().copy_(kept)
