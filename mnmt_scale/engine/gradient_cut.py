"""Sums of gradients over ranks, of which each rank keeps one piece.

The *cut*: a flat tensor of n elements is divided into pieces of ceil(n / R), one a rank, the last shorter or empty (as
ZeRO-3 divides parameters). Gradients are summed in fp32, whatever their dtype. On one rank nothing is sent.

Every call is collective. Extra memory is one buffer of ``_CHUNK`` elements, or of the largest parameter, with its sum:
never of all tasks' gradients of a large parameter at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.distributed as td
from torch import Tensor

from ..dist import World, peers

_CHUNK = 1 << 22


class GradientCut:
    """The cut for this rank of ``world``."""

    def __init__(self, world: World) -> None:
        self.rank, self.size, self.device = world.rank, world.size, world.device

    def borders(self, elements: int) -> list[int]:
        """[R+1]: rank r keeps elements ``borders[r]`` to ``borders[r + 1]``."""
        piece = -(-elements // self.size)
        return [min(r * piece, elements) for r in range(self.size + 1)]

    def span(self, elements: int) -> tuple[int, int]:
        """First element of this rank's piece, and its end."""
        borders = self.borders(elements)
        return borders[self.rank], borders[self.rank + 1]

    def sums(self, stacked: Tensor, borders: Sequence[int] | None = None) -> Tensor:
        """[K, n] of every rank, summed: [K, m] fp32, what this rank keeps (one rank: ``stacked`` itself, in its dtype).

        Args:
            borders: [R+1] another division of the n columns, the same on all ranks.
        """
        if self.size == 1:
            return stacked
        tasks, elements = stacked.shape
        borders = self.borders(elements) if borders is None else borders
        longest = max(b - a for a, b in pairwise(borders))
        mine = borders[self.rank + 1] - borders[self.rank]
        kept = torch.empty(tasks, mine, dtype=torch.float32, device=stacked.device)
        at_once = max(1, min(tasks, _CHUNK // max(1, self.size * longest)))
        for first in range(0, tasks, at_once):
            part = stacked[first : first + at_once]
            kept[first : first + at_once] = self._reduced(part, borders, longest)[:, :mine]
        return kept

    def _reduced(self, part: Tensor, borders: Sequence[int], longest: int) -> Tensor:
        """[c, longest]: this rank's piece of the sums of [c, n], padded."""
        tasks, elements = part.shape
        if tasks == 1 and elements == self.size * longest and part.dtype == torch.float32:
            return self._reduce_scatter(part[0]).view(1, longest)  # laid out already
        buffer = part.new_zeros(self.size, tasks, longest, dtype=torch.float32)
        for rank, (a, b) in enumerate(pairwise(borders)):
            buffer[rank, :, : b - a] = part[:, a:b]
        return self._reduce_scatter(buffer.view(-1)).view(tasks, longest)

    def _reduce_scatter(self, flat: Tensor) -> Tensor:
        out = flat.new_empty(flat.numel() // self.size)
        if out.numel():
            with peers():
                td.reduce_scatter_tensor(out, flat)
        return out

    def all_sums(self, sizes: Sequence[int], gradients: list[Tensor | None]) -> Iterator[Tensor]:
        """This rank's piece of every parameter's sum over ranks, fp32 and flat, in buckets of ``_CHUNK`` elements.

        Args:
            sizes: elements of each parameter.
            gradients: of each parameter, any shape; None counts as zero. The list is emptied on the way.
        """
        first = 0
        while first < len(sizes):
            last, elements = first + 1, sizes[first]
            while last < len(sizes) and elements + sizes[last] <= _CHUNK:
                elements += sizes[last]
                last += 1
            yield from self._bucket(sizes[first:last], gradients, first)
            first = last

    def _bucket(self, sizes: Sequence[int], gradients: list[Tensor | None], first: int) -> Iterator[Tensor]:
        if self.size == 1:
            for i, n in enumerate(sizes, first):
                g, gradients[i] = gradients[i], None
                yield torch.zeros(n, device=self.device) if g is None else g.reshape(-1).float()
            return
        cuts = [self.borders(n) for n in sizes]
        begins = [0]
        for borders in cuts:
            begins.append(begins[-1] + borders[1])
        buffer = torch.zeros(self.size, begins[-1], device=self.device)
        for i, borders in enumerate(cuts):
            g, gradients[first + i] = gradients[first + i], None
            if g is not None:
                flat = g.reshape(-1)
                for rank, (a, b) in enumerate(pairwise(borders)):
                    buffer[rank, begins[i] : begins[i] + b - a] = flat[a:b]
        out = self._reduce_scatter(buffer.view(-1))
        for i, borders in enumerate(cuts):
            yield out[begins[i] : begins[i] + borders[self.rank + 1] - borders[self.rank]]
