"""The padded layout of packed sentences for attention: a few nearly square blocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..flow import Buckets

Ints = NDArray[np.int64]


def make_buckets(source_lengths: Any, target_lengths: Any, max_waste: float) -> Buckets:
    """A padded layout of packed sentences in few blocks, of whose cells at most ``max_waste`` are padding, on either
    side summed over the blocks.

    Sentences are cut into bands by source length, each as wide as the allowance lets it be, and each band likewise by
    target length. ``max_waste`` 0 gives one block per pair of lengths, 1 a single block.

    Args:
        source_lengths, target_lengths: [B] tokens of each sentence, tag and end included, in packed order.
    """
    widths = [np.asarray(x, dtype=np.int64) for x in (source_lengths, target_lengths)]
    order, edges = _blocks(widths[0], widths[1], max_waste)
    counts = np.diff(edges)
    indices, inverses, padded, shortest = [], [], [], []
    for width in widths:
        wide = np.maximum.reduceat(width[order], edges[:-1]) if len(counts) else counts
        index, inverse = _layout(width, order, np.repeat(wide, counts))
        indices.append(index)
        inverses.append(inverse)
        padded.append(wide.tolist())
        shortest.append(np.minimum.reduceat(width[order], edges[:-1]).tolist() if len(counts) else [])
    by_block = torch.from_numpy(widths[0][order]).split(counts.tolist())
    lengths = tuple(None if low == high else block for low, high, block in zip(shortest[0], padded[0], by_block, strict=True))
    unpadded = all(len(i) == len(v) for i, v in zip(indices, inverses, strict=True))
    return Buckets(
        source_index=torch.from_numpy(indices[0]),
        source_inverse=torch.from_numpy(inverses[0]),
        target_index=torch.from_numpy(indices[1]),
        target_inverse=torch.from_numpy(inverses[1]),
        shapes=tuple(zip(counts.tolist(), padded[0], padded[1], strict=True)),
        source_lengths=lengths,
        identity=unpadded and bool((order == np.arange(len(order))).all()),
    )


def _blocks(source: Ints, target: Ints, max_waste: float) -> tuple[Ints, Ints]:
    """Sentences in block order [B] and the first sentence of each block, with B at the end [blocks + 1]."""
    count = len(source)
    order = np.argsort(-source, kind="stable")
    bands = _cuts(source[order], [0, count], max_waste)
    band = np.repeat(np.arange(len(bands) - 1), np.diff(bands))
    order = order[np.lexsort((-target[order], band))]
    edges = np.asarray(_cuts(target[order], bands, max_waste), dtype=np.int64)
    return order, edges


def _cuts(lengths: Ints, bands: list[int], max_waste: float) -> list[int]:
    """Cut each band of never increasing lengths into as few runs as hold at most ``max_waste`` padding each.

    A run that starts at i may end before j while mean(lengths[i:j]) >= (1 - max_waste) * lengths[i]; the mean falls as j
    grows, so the furthest j is found by bisection.
    """
    sums = np.concatenate(([0], np.cumsum(lengths))).tolist()
    first = lengths.tolist()
    cuts = [0]
    for begin, end in pairwise(bands):
        while begin < end:
            floor = (1.0 - max_waste) * first[begin] - 1e-9
            low, high = begin + 1, end
            while low < high:
                middle = (low + high + 1) // 2
                if sums[middle] - sums[begin] >= floor * (middle - begin):
                    low = middle
                else:
                    high = middle - 1
            cuts.append(low)
            begin = low
    return cuts


def _layout(width: Ints, order: Ints, padded: Ints) -> tuple[Ints, Ints]:
    """Packed row of each padded cell (padding: the sentence's last row), and padded cell of each packed row.

    Args:
        width: [B] tokens in packed order.
        order: [B] sentence at each place of the padded layout.
        padded: [B] cells of the sentence at each place.
    """
    rows = int(width.sum())
    packed_first = np.cumsum(width) - width
    cells_first = np.cumsum(padded) - padded
    cell_of = np.empty_like(cells_first)
    cell_of[order] = cells_first
    inverse = np.arange(rows) + np.repeat(cell_of - packed_first, width)
    first, last = packed_first[order], packed_first[order] + width[order] - 1
    cells = int(padded.sum())
    index = np.arange(cells) + np.repeat(first - cells_first, padded)
    if cells != rows:
        np.minimum(index, np.repeat(last, padded), out=index)
    return index, inverse
