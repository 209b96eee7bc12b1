"""Reading one task's sentences in its order, a window at a time, and what a task's corpus holds for training."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MnmtError
from ..tasks import Task
from .order import name_key, stretch
from .packing import FRAME

WINDOW = 1024
"""Sentences looked up at once: their places and lengths are all that is held in memory, some 100 bytes each."""
_SCAN = 1 << 16

ROW, SOURCE_START, SOURCE_LENGTH, TARGET_START, TARGET_LENGTH, COST = range(6)


@dataclass(frozen=True, slots=True)
class PairCounts:
    """A pair's training sentences under a length limit.

    Attributes:
        sentences, kept: all, and those with both sides within the limit.
        mean_cost: mean over those kept of the tokens of the longer side, tag and end included; ``longest`` its maximum.
    """

    sentences: int
    kept: int
    mean_cost: float
    longest: int


def count_pair(store: Any, pair: str, max_tokens: int) -> PairCounts:
    """Count ``pair`` in the token store, reading offsets in pieces of fixed size; E206 when nothing is left."""
    corpus = store.pair(pair, "train")
    sides = [np.asarray(corpus.side(language).offsets) for language in corpus.languages]
    n = len(corpus)
    kept = total = longest = 0
    for begin in range(0, n, _SCAN):
        end = min(begin + _SCAN, n)
        first, second = (np.diff(offsets[begin : end + 1]).astype(np.int64) for offsets in sides)
        cost = np.maximum(first, second) + FRAME
        cost = cost[cost <= max_tokens]
        kept += len(cost)
        total += int(cost.sum())
        longest = max(longest, int(cost.max(initial=0)))
    if not kept:
        what = f"none of {n} training sentences has at most {max_tokens} tokens on both sides"
        raise MnmtError("E206", what, where=f"pair {pair}", remedy="raise data.max_tokens or leave the pair out")
    return PairCounts(n, kept, total / kept, longest)


class TaskReader:
    """A task's endless stream of sentences: all rows in the order of the epoch, then the next epoch in another order.

    Sentences longer than ``max_tokens`` on either side are passed over. ``position`` = epoch * n + place in the epoch of
    the next sentence to look at is the whole state.
    """

    def __init__(self, store: Any, task: Task, *, seed: int, max_tokens: int, count_tokens: bool) -> None:
        corpus = store.pair(task.pair, "train")
        sides = (corpus.side(task.source), corpus.side(task.target))
        self.tokens = tuple(np.asarray(side.tokens) for side in sides)
        self._offsets = tuple(np.asarray(side.offsets) for side in sides)
        self.sentences = len(corpus)
        self.name, self._seed, self._key = task.name, seed, name_key(task.name)
        self._limit, self._count_tokens = max_tokens - FRAME, count_tokens
        self._span: tuple[int, int] = (0, 0)
        self.seek(0)

    def seek(self, position: int) -> None:
        """Go to ``position``; costs nothing when it lies in the window that is held."""
        self.position = position
        if self._span[0] <= position < self._span[1]:
            self._next = bisect_left(self._places, position)
        else:
            self._span, self._next, self._places, self._costs = (position, position), 0, [], []

    def take(self, credit: float, tables: list[NDArray[np.int64]]) -> tuple[int, float]:
        """Draw the longest run of coming sentences whose cost is within ``credit``.

        Args:
            tables: gets the run as arrays [6, m] (rows ``ROW`` .. ``COST``) that follow one another.

        Returns:
            number of sentences, and the credit that is left, less than the cost of the next sentence.
        """
        taken = 0
        while True:
            costs, i = self._costs, self._next
            spent = costs[i - 1] if i else 0
            j = bisect_right(costs, spent + int(credit), i)
            if j > i:
                tables.append(self._table[:, i:j])
                taken += j - i
                credit -= costs[j - 1] - spent
                self._next, self.position = j, self._places[j - 1] + 1
            if j < len(costs):
                return taken, credit
            self._read(self._span[1])

    def _read(self, first: int) -> None:
        rows = stretch(self._seed, self._key, first, WINDOW, self.sentences)
        table = np.empty((6, WINDOW), dtype=np.int64)
        table[ROW] = rows
        for start, offsets in zip((SOURCE_START, TARGET_START), self._offsets, strict=True):
            length = start + 1
            table[start] = offsets.take(rows)
            rows += 1
            table[length] = offsets.take(rows)
            rows -= 1
            table[length] -= table[start]
        if min(table[SOURCE_LENGTH].min(), table[TARGET_LENGTH].min()) < 0:
            raise MnmtError("E304", "offsets of a shard fall", where=f"task {self.name}", remedy="prepare the store again")
        longer = np.maximum(table[SOURCE_LENGTH], table[TARGET_LENGTH], out=table[COST])
        fits = longer <= self._limit
        places = np.arange(first, first + WINDOW)
        if self._count_tokens:
            longer += FRAME
        else:
            longer.fill(1)
        if not fits.all():
            table, places = np.ascontiguousarray(table[:, fits]), places[fits]
        self._table = table
        self._places, self._costs = places.tolist(), np.cumsum(table[COST]).tolist()
        self._span, self._next = (first, first + WINDOW), 0
