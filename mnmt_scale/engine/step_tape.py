"""The tape of one micro-batch under ZeRO: gradients of tasks are summed over ranks before their inner products are taken.

A step of several micro-batches has cross terms between them, <g_i of one, g_j of another>, that no sum of their Gram
matrices holds. For its Gram the K gradients are added up in fp32, of every parameter the piece that is this rank's
(``TaskSums``), and measured at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as td
from torch import Tensor

from ..dist import peers
from ..flow import TaskLosses
from ..kernels.ops.task_tape import Diagonal, TaskTape
from .gradient_cut import GradientCut


class StepTape(TaskTape):
    """A tape that also knows the losses of its micro-batch and when its forward pass has ended.

    Args:
        cut: how gradients are summed over ranks; None: not at all, ``groups`` is of this rank's own.
        vocabulary: rows of the embedding.
        sums: where the K gradients go instead of into the Gram.
        factor: multiple of the sum of the losses that goes backward.
    """

    def __init__(
        self,
        num_tasks: int,
        alpha: Sequence[float],
        *,
        cut: GradientCut | None = None,
        vocabulary: int = 0,
        sums: TaskSums | None = None,
        diagonal: Diagonal | None = None,
        factor: float = 1.0,
    ) -> None:
        self._cut, self._vocabulary, self._sums, self._factor = cut, vocabulary, sums, factor
        self._in_whole: set[str] = set()
        self.losses: TaskLosses | None = None
        reducing = sums is not None or (cut is not None and cut.size > 1)
        hooks = {"reduce": self._reduce, "shared_ids": self._shared_ids} if reducing else {}
        super().__init__(num_tasks, alpha, diagonal=diagonal, **hooks)

    def note(self, losses: TaskLosses) -> None:
        """Ends the forward pass."""
        # without its graph, whose nodes hold the tape: a circle that Python's collector cannot see
        self.losses = replace(losses, total=losses.total.detach())

    def _reduce(self, name: str, stacked: Tensor, rows: Tensor | None) -> Tensor:
        assert self._cut is not None
        if self._sums is None:
            return self._cut.sums(stacked)
        # The output layer's calls come in the forward pass, before the loss is multiplied. Its second one repeats rows of
        # the first, for inner products with the embedding, which here are taken of the sums.
        factor = 1.0 if self.losses is None else self._factor
        if rows is None:
            self._in_whole.add(name)
            self._sums.add(name, stacked, factor)
        elif name in self._in_whole:
            self._in_whole.remove(name)
        else:
            self._sums.add_rows(name, stacked, rows, factor)
        return stacked.new_zeros(self.num_tasks, 0)

    def _shared_ids(self, ids: Tensor) -> Tensor:
        assert self._cut is not None
        if self._cut.size == 1:
            return ids
        present = torch.zeros(self._vocabulary, dtype=torch.uint8, device=ids.device)
        present[ids] = 1
        with peers():
            td.all_reduce(present, op=td.ReduceOp.MAX)
        return present.nonzero().flatten().to(ids.dtype)


class TaskSums:
    """K gradients of every parameter, summed over ranks and micro-batches: 4 K P / R bytes on each rank.

    Attributes:
        pieces: name -> [K, m] fp32, the piece of the parameter that this rank keeps.
    """

    def __init__(self, num_tasks: int, cut: GradientCut, shapes: dict[str, torch.Size]) -> None:
        self.num_tasks, self.cut, self.shapes = num_tasks, cut, shapes
        self.pieces: dict[str, Tensor] = {}

    def add(self, name: str, stacked: Tensor, factor: float) -> None:
        """Adds [K, n] / factor of a whole parameter. Collective."""
        self._piece(name).add_(self.cut.sums(stacked), alpha=1.0 / factor)

    def add_rows(self, name: str, stacked: Tensor, rows: Tensor, factor: float) -> None:
        """Adds [K, r * D] / factor, sorted rows of a table. Collective.

        The whole table's cut divides these rows into contiguous runs, of different lengths: only they are sent.
        """
        width = self.shapes[name][1]
        elements = self.shapes[name].numel()
        ends = torch.tensor(self.cut.borders(elements), device=rows.device)
        full = torch.searchsorted(rows, ends // width)  # rows that end before each border
        partly = torch.nn.functional.pad(rows, (0, 1), value=-1)[full] == ends // width
        borders = (full * width + torch.where(partly, ends % width, 0)).tolist()
        kept = self.cut.sums(stacked, borders)
        a, b = borders[self.cut.rank], borders[self.cut.rank + 1]
        place = (rows[:, None] * width + torch.arange(width, device=rows.device)).view(-1)[a:b]
        start = self.cut.span(elements)[0]
        self._piece(name).index_add_(1, place - start, kept.float(), alpha=1.0 / factor)

    def _piece(self, name: str) -> Tensor:
        if name not in self.pieces:
            a, b = self.cut.span(self.shapes[name].numel())
            self.pieces[name] = torch.zeros(self.num_tasks, b - a, device=self.cut.device)
        return self.pieces[name]
