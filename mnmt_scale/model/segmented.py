"""The model's layers with weights, which hand each task's weight gradient to a tape where a pass has one.

Without ``rows`` a layer is torch's own. With ``rows`` forward and the gradient of its input are the same, and the weights
get the tape's combination of the tasks' gradients (``kernels.ops.task_tape``). ``rows`` is an argument, never a global, and
the layers are modules, since under ZeRO-3 a weight exists only inside the module that owns it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..flow import TaskBatch, TaskLosses
from ..kernels.ops.segmented_output import segmented_linear_cross_entropy
from ..kernels.ops.segmented_wgrad import segmented_embedding, segmented_layer_norm, segmented_linear
from ..kernels.ops.task_tape import TaskTape
from ..kernels.segments import Segments
from ..losses.task_loss import scale_of_tokens
from .groups import parameter_group


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a layer's input belong to which task, and the tape that is to know."""

    tape: TaskTape
    segments: Segments


@dataclass(frozen=True, slots=True)
class Sides:
    """``Rows`` of the source tokens, of the target tokens, and of both one after the other; None: nothing is measured."""

    source: Rows | None = None
    target: Rows | None = None
    both: Rows | None = None

    @classmethod
    def of(cls, batch: TaskBatch, tape: TaskTape | None) -> Sides:
        """The sides of a micro-batch."""
        if tape is None:
            return cls()
        source, target = Segments.of(batch.source_segments), Segments.of(batch.target_segments)
        return cls(*(Rows(tape, s) for s in (source, target, Segments.joined(source, target))))


UNMEASURED = Sides()


class Measured:
    """A layer whose weights' gradients can be measured by task.

    Attributes:
        place: name of the module within the model.
        group: of its parameters.
    """

    place = ""
    group = ""

    def where(self, rows: Rows) -> tuple[Segments, TaskTape, str, str]:
        """The last arguments of the segmented ops."""
        assert self.place, "name_layers has not been called"
        return rows.segments, rows.tape, self.group, self.place


class Linear(Measured, nn.Linear):
    """``nn.Linear`` on a packed matrix."""

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """[N, in] -> [N, out]; rows: of x."""
        if rows is None:
            return super().forward(x)
        return segmented_linear(x, self.weight, self.bias, *self.where(rows))


class LayerNorm(Measured, nn.LayerNorm):
    """``nn.LayerNorm`` over D."""

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """[N, D] -> [N, D]; rows: of x."""
        if rows is None:
            return super().forward(x)
        return segmented_layer_norm(x, self.weight, self.bias, self.eps, *self.where(rows))


class Embedding(Measured, nn.Embedding):
    """``nn.Embedding``."""

    def forward(self, ids: Tensor, rows: Rows | None = None) -> Tensor:
        """Ids [N] (of any shape without ``rows``) -> their rows [N, D]."""
        if rows is None:
            return super().forward(ids)
        return segmented_embedding(ids, self.weight, *self.where(rows))


def name_layers(model: nn.Module) -> None:
    """Tells every measured layer its name in the model and its group."""
    for place, layer in measured_layers(model):
        layer.place, layer.group = place, parameter_group(f"{place}.weight")


def measured_layers(model: nn.Module) -> Iterator[tuple[str, Measured]]:
    """Name and module of every measured layer."""
    for place, layer in model.named_modules():
        if isinstance(layer, Measured):
            yield place, layer


def measured_task_losses(
    hidden: Tensor,
    table: Embedding,
    weight: Tensor,
    batch: TaskBatch,
    scales: Tensor | Sequence[float],
    tape: TaskTape,
    label_smoothing: float = 0.0,
) -> TaskLosses:
    """``task_losses`` of an output layer that shares the weight of ``table``, measured by task.

    Args:
        hidden: [U, D] decoder states.
        table: the embedding; it saw source and target ids, one after the other.
        weight: [V, D] its weight, fetched by the module that calls.
        scales: [K] factor of each task in ``total``, 1/N_k as a rule: the weights of the tasks are the tape's.
    """
    segments = Segments.of(batch.target_segments)
    token_scale = scale_of_tokens(scales, batch.target_segments, hidden.device)
    ids = torch.cat((batch.source_ids, batch.target_in))
    return TaskLosses(
        *segmented_linear_cross_entropy(
            hidden,
            weight,
            batch.target_out,
            token_scale,
            segments,
            tape,
            table.group,
            label_smoothing,
            embedding_ids=ids,
            name=table.place,
        )
    )
