"""Layout of packed sentences as padded blocks with the heads apart: the argument of ``block_attention``.

A *cell* is one head's share of one padded position; the cells of a block stand as [sentence, head, position], so that
a gather of packed rows both pads them and separates the heads, and every block is a batch of matrices without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Side:
    """Cells of one side (source or target) of a micro-batch.

    Attributes:
        index: [cells] entry of the packed [T * heads, D / heads] matrix that each cell shows; any where it is padding.
        inverse: [T * heads] cell of each entry.
        padding: cells that are padding.
        heads: number of heads.
    """

    index: Tensor
    inverse: Tensor
    padding: Tensor
    heads: int

    def to_cells(self, x: Tensor, *, zero_padding: bool = False) -> Tensor:
        """[T, D] -> [cells, D / heads]."""
        cells = x.reshape(x.shape[0] * self.heads, -1).index_select(0, self.index)
        return cells.index_fill_(0, self.padding, 0) if zero_padding and self.padding.numel() else cells

    def to_tokens(self, cells: Tensor) -> Tensor:
        """[cells, D / heads] -> [T, D]."""
        return cells.index_select(0, self.inverse).view(self.inverse.shape[0] // self.heads, -1)


@dataclass(frozen=True, slots=True)
class Block:
    """One padded block: ``sentences`` of ``queries`` positions that attend to ``keys`` positions each.

    Attributes:
        query_start, key_start: first cell on either side.
        mask: added to the scores, 0 or -inf, [sentences * heads, 1, keys]; None where no key is padding.
    """

    sentences: int
    query_start: int
    queries: int
    key_start: int
    keys: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How the queries of one side attend to the keys of one side. ``causal``: query i sees keys 0..i; then padded keys
    need no mask, since they come after every real query."""

    query: Side
    key: Side
    blocks: tuple[Block, ...]
    causal: bool
    heads: int


def make_side(index: Tensor, inverse: Tensor, shapes: list[tuple[int, int]], heads: int) -> Side:
    """Side with ``heads`` heads from padded positions without heads.

    Args:
        index: [positions] packed row of each padded position; any row where it is padding.
        inverse: [T] padded position of each packed row.
        shapes: per block (sentences, positions of each).
    """
    real = torch.zeros_like(index, dtype=torch.bool)
    real[inverse] = True
    head = torch.arange(heads, device=index.device)[:, None]
    sizes = [b * n for b, n in shapes]
    entries, is_real = [], []
    for rows, kept, (b, n) in zip(index.split(sizes), real.split(sizes), shapes, strict=True):
        entries.append((rows.view(b, 1, n) * heads + head).flatten())
        is_real.append(kept.view(b, 1, n).expand(b, heads, n).flatten())
    if not entries:
        return Side(index, inverse, index, heads)
    cell_index, cell_real = torch.cat(entries), torch.cat(is_real)
    cells = cell_real.nonzero()[:, 0]
    cell_inverse = torch.empty(inverse.shape[0] * heads, dtype=torch.long, device=index.device)
    cell_inverse[cell_index[cells]] = cells
    return Side(cell_index, cell_inverse, (~cell_real).nonzero()[:, 0], heads)
