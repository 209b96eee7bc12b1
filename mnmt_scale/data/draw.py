"""Sentences drawn beside the training stream: different ones at random, a function of (seed, step, task, split) alone.

The training stream does not notice: it has no part in the order that they are drawn in. What is drawn is the same whatever
the number of ranks and micro-batches that it is dealt over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..flow import TaskBatch
from ..tasks import Task
from .order import mix, name_key, stretch
from .packing import FRAME, assemble
from .stream import deal

_WINDOW = 1024
_STREAM = {"train": 0x7261, "dev": 0x6465}
"""So that neither split is read in an order that has anything to do with the other's, or with the training stream's."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """Sentences of one task.

    Attributes:
        rows: [n] their numbers in the split.
        tokens: the arrays that hold the text ids of source and target.
        starts, lengths: per side [n] where each sentence's text begins there, and how long it is.
    """

    task: Task
    rows: Ints
    tokens: tuple[Any, Any]
    starts: tuple[Ints, Ints]
    lengths: tuple[Ints, Ints]

    @property
    def cost(self) -> int:
        """Tokens of the longer side, tag and end included."""
        return int((np.maximum(*self.lengths) + FRAME).sum())

    @property
    def predicted(self) -> int:
        """Target tokens that are predicted."""
        return int((self.lengths[1] + 1).sum())


def draw(
    store: Any,
    task: Task,
    split: str,
    *,
    seed: int,
    step: int,
    max_tokens: int,
    batch_tokens: int,
    without: Ints | None = None,
) -> Draw:
    """Different sentences of a task's split.

    Args:
        max_tokens: longest side, tag and end included; longer sentences are passed over, in dev text too.
        batch_tokens: tokens of the longer side, tag and end included; the draw ends before the sentence that would exceed
            it, holds one sentence at least, and is the whole split where that is smaller.
        without: rows that are passed over.
    """
    corpus = store.pair(task.pair, split)
    sides = [corpus.side(language) for language in (task.source, task.target)]
    offsets = [np.asarray(side.offsets) for side in sides]
    key, name, count, limit = mix(seed, step, _STREAM[split]), name_key(task.name), len(corpus), max_tokens - FRAME
    found: list[Ints] = []
    spent = 0
    window = min(_WINDOW, max(64, batch_tokens // 4))
    for first in range(0, count, window):
        rows = stretch(key, name, first, min(window, count - first), count)
        if without is not None:
            rows = rows[~np.isin(rows, without)]
        table = np.stack([rows, *(o.take(rows + i).astype(np.int64) for o in offsets for i in (0, 1))])
        longer = np.maximum(table[2] - table[1], table[4] - table[3])
        table, longer = table[:, longer <= limit], longer[longer <= limit]
        costs = spent + np.cumsum(longer + FRAME)
        fitting = int(costs.searchsorted(batch_tokens, side="right"))
        if fitting < len(costs):
            found.append(table[:, : max(fitting, 0 if spent else 1)])
            break
        found.append(table)
        spent = int(costs[-1]) if len(costs) else spent
    table = np.concatenate(found, axis=1) if found else np.zeros((5, 0), dtype=np.int64)
    source, target = (np.asarray(side.tokens) for side in sides)
    lengths = (table[2] - table[1], table[4] - table[3])
    return Draw(task, table[0], (source, target), (table[1], table[3]), lengths)


def pack(
    draws: Sequence[Draw],
    tokenizer: Any,
    *,
    step: int,
    rank: int = 0,
    size: int = 1,
    micros: int = 1,
    max_waste: float | None = 0.15,
) -> list[TaskBatch]:
    """This rank's micro-batches of several draws, of all their sentences together.

    Args:
        draws: of different tasks, in the order that their tasks have in the batches.
        micros: micro-batches per rank, some without sentences where there are few.
        max_waste: of the padded layout; None leaves it out.

    Returns:
        ``micros`` batches with K = number of draws and N_k of the whole draw.
    """
    counts = [len(d.rows) for d in draws]
    bounds = np.concatenate(([0], np.cumsum(counts)))
    rows, *columns = (
        np.concatenate(parts)
        for parts in (
            [d.rows for d in draws],
            *([d.starts[side] for d in draws] for side in (0, 1)),
            *([d.lengths[side] for d in draws] for side in (0, 1)),
        )
    )
    starts, lengths = columns[:2], columns[2:]
    parts = deal(lengths[0] + lengths[1], size * micros)
    batches = []
    for micro in range(micros):
        members = parts[micro * size + rank]
        batches.append(
            assemble(
                [[d.tokens[side] for d in draws] for side in (0, 1)],
                [s[members] for s in starts],
                [n[members] for n in lengths],
                np.searchsorted(members, bounds).tolist(),
                tuple(d.task for d in draws),
                tokenizer,
                step=step,
                micro=micro,
                rows=rows[members],
                step_tokens=tuple(d.predicted for d in draws),
                max_waste=max_waste,
            )
        )
    return batches


def draw_batches(
    store: Any,
    task: Task,
    split: str,
    *,
    seed: int,
    step: int,
    max_tokens: int,
    batch_tokens: int,
    rank: int = 0,
    size: int = 1,
    micros: int = 1,
    max_waste: float | None = 0.15,
) -> list[TaskBatch]:
    """This rank's micro-batches of one draw (``draw``, ``pack``): K = 1; none where no sentence is short enough."""
    drawn = draw(store, task, split, seed=seed, step=step, max_tokens=max_tokens, batch_tokens=batch_tokens)
    if not len(drawn.rows):
        return []
    return pack([drawn], store.tokenizer, step=step, rank=rank, size=size, micros=micros, max_waste=max_waste)
