"""Transformers that break one rule or another of measured layers."""

from __future__ import annotations

from typing import Any

import torch

from mnmt_scale.flow import TaskLosses
from mnmt_scale.kernels.ops.segmented_output import segmented_linear_cross_entropy
from mnmt_scale.kernels.segments import Segments
from mnmt_scale.losses.task_loss import task_losses
from mnmt_scale.model.segmented import Linear, name_layers
from mnmt_scale.model.transformer import Encoder, Transformer

from .engine_cases import make_model
from .tiny_training import VOCABULARY, tiny_config

SEED = 3


class Scaled(Transformer):
    """A Transformer with a parameter that no measured layer owns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.output_scale = torch.nn.Parameter(torch.full((self.config.d_model,), 0.7))

    def hidden(self, batch, tape=None):
        return super().hidden(batch, tape) * self.output_scale


class Reread(Transformer):
    """A Transformer whose last norm's bias is read once more, beside the layer that measures it."""

    def hidden(self, batch, tape=None):
        return super().hidden(batch, tape) + 0.5 * self.decoder.layer_norm.bias


class Twice(Encoder):
    """An encoder whose layers are gone through twice."""

    def forward(self, x, layout):
        return super().forward(super().forward(x, layout), layout)


class Repeated(Transformer):
    """A Transformer that uses every weight of its encoder twice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encoder.__class__ = Twice


class Untied(Transformer):
    """A Transformer whose output layer has a weight of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.output = Linear(self.config.d_model, VOCABULARY, bias=False)
        name_layers(self)

    def forward(self, batch, scales, tape=None):
        if tape is None:
            return task_losses(self.hidden(batch), self.output.weight, batch, scales, self.label_smoothing)
        factors = torch.as_tensor(scales).repeat_interleave(torch.tensor(batch.target_segments).diff())
        segments = Segments.of(batch.target_segments)
        of_batch = (batch.target_out, factors, segments, tape, self.output.group, self.label_smoothing)
        losses = segmented_linear_cross_entropy(self.hidden(batch, tape), self.output.weight, *of_batch, name="output")
        return TaskLosses(*losses)


class Poisoned(Transformer):
    """A Transformer that spoils the hidden states of one task on one rank, or their gradients."""

    spoil: tuple[int, str] | None = None

    def hidden(self, batch, tape=None):
        x = super().hidden(batch, tape)
        if self.spoil is None or self.spoil[0] not in batch.tasks:
            return x
        slot = batch.tasks.index(self.spoil[0])
        rows = torch.zeros(x.shape[0], 1, dtype=torch.bool)
        rows[batch.target_segments[slot] : batch.target_segments[slot + 1]] = True
        if self.spoil[1] == "loss":
            return torch.where(rows, torch.nan, x)
        x = x * 1.0
        x.register_hook(lambda g: torch.where(rows, torch.inf, g))
        return x


KINDS = {"Scaled": Scaled, "Reread": Reread, "Repeated": Repeated, "Untied": Untied, "Poisoned": Poisoned}


def model_of(kind: str = "", **changes: Any) -> Transformer:
    """The tiny model, or one of ``KINDS``; biases are not zero."""
    if not kind:
        return make_model(**changes)
    torch.manual_seed(7)
    model = KINDS[kind](tiny_config(**changes), VOCABULARY, label_smoothing=0.1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
    return model
