"""Which rows of a packed matrix belong to which task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """Rows ``offsets[j]:offsets[j+1]`` of a packed matrix belong to task ``tasks[j]``; no row belongs to two tasks.

    A task may have no piece, an empty one, or several: the embedding sees source and target tokens one after another.

    Attributes:
        offsets: P+1 row numbers from 0, never decreasing (host integers, as ``TaskBatch`` has them).
        tasks: P task slots, each 0..K-1.

    Raises:
        ValueError: the two do not fit together, or offsets fall.
    """

    offsets: tuple[int, ...]
    tasks: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", tuple(int(o) for o in self.offsets))
        object.__setattr__(self, "tasks", tuple(int(t) for t in self.tasks))
        if len(self.offsets) != len(self.tasks) + 1:
            raise ValueError(f"segments.offsets has {len(self.offsets)} entries, but {len(self.tasks)} pieces need one more")
        if self.offsets[0] != 0:
            raise ValueError(f"segments.offsets must begin at 0, but begins at {self.offsets[0]}")
        for a, b in pairwise(self.offsets):
            if b < a:
                raise ValueError(f"segments.offsets must not fall, but {b} follows {a}")
        if self.tasks and min(self.tasks) < 0:
            raise ValueError(f"segments.tasks must be 0 or more, but holds {min(self.tasks)}")

    @classmethod
    def of(cls, offsets: Sequence[int]) -> Segments:
        """One piece a task, tasks in order: ``offsets`` as in ``TaskBatch.target_segments``."""
        return cls(tuple(offsets), tuple(range(len(offsets) - 1)))

    @classmethod
    def joined(cls, *parts: Segments) -> Segments:
        """Segments of matrices that are laid one below the other."""
        offsets, tasks = [0], []
        for part in parts:
            offsets += [offsets[-1] + o for o in part.offsets[1:]]
            tasks += part.tasks
        return cls(tuple(offsets), tuple(tasks))

    @property
    def rows(self) -> int:
        """N, the rows that the pieces cover."""
        return self.offsets[-1]

    def check(self, rows: int, num_tasks: int) -> None:
        """Raises ValueError unless the pieces cover ``rows`` rows and name tasks below ``num_tasks``."""
        if self.rows != rows:
            raise ValueError(f"segments cover {self.rows} rows, but the input has {rows}")
        if self.tasks and max(self.tasks) >= num_tasks:
            raise ValueError(f"segments name task {max(self.tasks)}, but the tape has {num_tasks} tasks (from 0)")

    def spans(self, num_tasks: int) -> list[list[tuple[int, int]]]:
        """Per task its pieces that are not empty, as (first row, end)."""
        spans: list[list[tuple[int, int]]] = [[] for _ in range(num_tasks)]
        for task, (a, b) in zip(self.tasks, pairwise(self.offsets), strict=True):
            if b > a:
                spans[task].append((a, b))
        return spans

    def task_of_rows(self, device: torch.device | str) -> Tensor:
        """[N] int64: the task of each row."""
        lengths = on_device([b - a for a, b in pairwise(self.offsets)], torch.int64, device)
        return on_device(self.tasks, torch.int64, device).repeat_interleave(lengths, output_size=self.rows)


def on_device(numbers: Sequence[int] | Sequence[float], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """[n] of a few host numbers. ``torch.tensor(numbers, device=...)`` would wait for all that a GPU still has to do."""
    return torch.tensor(numbers, dtype=dtype, device="cpu").to(device, non_blocking=True)


def take(x: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The rows of one task, one below the other: a view where they are one piece."""
    if len(spans) == 1:
        return x[spans[0][0] : spans[0][1]]
    return torch.cat([x[a:b] for a, b in spans]) if spans else x[:0]
