"""Inputs of the cases: shaped and cut like the parameters of a Transformer, made fast enough for hundreds of millions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = (1 << 22) + 3
"""Random numbers drawn once and repeated; a length that no block size of a kernel divides."""


def fragment_sizes(parameters: int) -> list[int]:
    """300 fragments of ``parameters`` elements in all, in the proportions of a Transformer of 7+7 layers (width 512, inner
    2048, 32,000 entries in the vocabulary): one very large, many of a few hundred elements, most sizes odd."""
    D, F, V = 512, 2048, 32000
    attention, norm, inner = [D * D, D] * 4, [D, D], [F * D, F, D * F, D]
    sizes = [V * D, 1024 * D, *norm * 2]
    sizes += (attention + inner + norm * 2) * 7 + (attention * 2 + inner + norm * 3) * 7
    assert len(sizes) == 300
    total = sum(sizes)
    scaled = [max(1, n * parameters // total) for n in sizes]
    scaled[0] += parameters - sum(scaled)
    return scaled


def normal(shape: Sequence[int] | int, device: torch.device, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> Tensor:
    """Normal numbers: a random block repeated with an offset and a factor of its own each time."""
    out = torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    flat = out.view(-1)
    block = torch.randn(min(_BLOCK, max(1, flat.numel())), device=device, generator=generator)
    for number, part in enumerate(flat.split(_BLOCK)):
        turned = block.roll(7919 * number) if number else block
        part.copy_(turned[: part.numel()] * (1.0 + 0.01 * (number % 7)))
    return out


def fragments(sizes: Sequence[int], device: torch.device, dtype: torch.dtype, *, seed: int = 0) -> list[Tensor]:
    """Tensors of these sizes, each in memory of its own, filled as by ``normal``."""
    flat = normal(sum(sizes), device, dtype, seed=seed)
    return [part.clone() for part in flat.split(list(sizes))]


def readable(n: int) -> str:
    """60000000 -> 60M, 32000 -> 32k; 65537 stays."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= unit and n % (unit // 10) == 0:
            return f"{n / unit:g}{letter}"
    return str(n)
