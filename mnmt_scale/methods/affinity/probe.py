"""Measurements of affinity, added up by window of training: count, mean and variance of every cell.

In every table the row is the task j that was trained and the column the task i that was affected: the paper's Z_{j->i}.
Mean and variance are Welford's (1962), so that nothing is lost however small the changes are beside each other.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Table = NDArray[np.float64]
TABLES = ("count", "mean", "squares", "estimate", "estimate_count")


@dataclass
class Window:
    """What was measured in a stretch of steps.

    Attributes:
        first, last: numbers of its updates, from 1, both included; ``last`` may lie ahead.
        count, mean, squares: [N, N] measurements of a cell, their mean, and the sum of squared deviations from it.
        estimate, estimate_count: [N, N] mean of a cell's estimates from gradients, and their number.
    """

    first: int
    last: int
    count: Table
    mean: Table
    squares: Table
    estimate: Table
    estimate_count: Table

    @classmethod
    def fresh(cls, first: int, last: int, tasks: int) -> Window:
        return cls(first, last, *(np.zeros((tasks, tasks)) for _ in TABLES))

    def add(self, trained: int, affected: Sequence[int], values: Sequence[float]) -> None:
        """One measurement of each cell of row ``trained``."""
        if not len(affected):
            return
        row = (trained, np.asarray(affected))
        x = np.asarray(values, dtype=np.float64)
        self.count[row] += 1
        away = x - self.mean[row]
        self.mean[row] += away / self.count[row]
        self.squares[row] += away * (x - self.mean[row])

    def add_estimate(self, tasks: Sequence[int], values: Table) -> None:
        """One estimate [K, K] of every cell between ``tasks``."""
        cells = np.ix_(np.asarray(tasks, dtype=np.int64), np.asarray(tasks, dtype=np.int64))
        self.estimate_count[cells] += 1
        self.estimate[cells] += (values - self.estimate[cells]) / self.estimate_count[cells]


@dataclass
class Windows:
    """All windows of a training over ``tasks`` directions, ascending; ``length`` in updates of those to come."""

    tasks: int
    length: int
    all: list[Window] = field(default_factory=list)

    def at(self, step: int) -> Window:
        """The window that update number ``step`` belongs to; begun where there is none. Windows begin after whole multiples
        of the length, or right after one that reaches beyond (a training that goes on with another length)."""
        if not self.all or step > self.all[-1].last:
            aligned = step - (step - 1) % self.length
            first = max(aligned, self.all[-1].last + 1) if self.all else aligned
            self.all.append(Window.fresh(first, aligned + self.length - 1, self.tasks))
        return self.all[-1]

    def ended(self, step: int) -> bool:
        """Whether a window ends with update number ``step``."""
        return bool(self.all) and self.all[-1].last == step

    def total(self, table: str) -> Table:
        """[N, N] sum of ``count`` or ``estimate_count`` over all windows."""
        return sum((getattr(w, table) for w in self.all), np.zeros((self.tasks, self.tasks)))

    def mean(self) -> Table:
        """[N, N] mean of all measurements of a cell; 0 where there is none."""
        weighted = sum((w.count * w.mean for w in self.all), np.zeros((self.tasks, self.tasks)))
        return weighted / np.maximum(self.total("count"), 1.0)

    def spans(self, step: int) -> list[list[int]]:
        """[first, last] of each window after update number ``step``."""
        return [[w.first, min(w.last, step)] for w in self.all]

    def tensors(self) -> dict[str, Tensor]:
        """[W, N, N] fp64 each, as ``probes.TENSORS`` names them; the variance is unbiased, NaN below two measurements."""
        tables = {name: np.stack([getattr(w, name) for w in self.all]) for name in TABLES}
        squares, count = tables.pop("squares"), tables["count"]
        tables["variance"] = np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan)
        return {name: torch.from_numpy(table) for name, table in tables.items()}

    def state(self) -> list[dict[str, Any]]:
        """JSON that keeps every bit."""
        return [{"first": w.first, "last": w.last, **{name: _text(getattr(w, name)) for name in TABLES}} for w in self.all]

    def load(self, state: list[dict[str, Any]]) -> None:
        """The reverse of ``state``."""
        shape = (self.tasks, self.tasks)
        self.all = [Window(w["first"], w["last"], *(_table(w[name], shape) for name in TABLES)) for w in state]


def _text(table: Table) -> str:
    return base64.b64encode(table.astype("<f8").tobytes()).decode("ascii")


def _table(text: str, shape: tuple[int, int]) -> Table:
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64).reshape(shape)


def pooled(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and standard error of every cell over the windows of a probe file, all measurements taken as one sample.

    Args:
        tensors: ``count``, ``mean``, ``variance`` [W, N, N].

    Returns:
        [N, N] each; the mean is 0 without a measurement, the standard error NaN below two.
    """
    count, mean = tensors["count"], tensors["mean"]
    total = count.sum(dim=0)
    middle = (count * mean).sum(dim=0) / total.clamp(min=1)
    within = torch.where(count > 1, tensors["variance"] * (count - 1), 0.0)
    squares = (within + count * (mean - middle) ** 2).sum(dim=0)
    variance = torch.where(total > 1, squares / (total - 1).clamp(min=1), torch.nan)
    return total, middle, (variance / total.clamp(min=1)).sqrt()
