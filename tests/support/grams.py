"""Batches and Gram matrices for tests of the methods that weigh tasks by them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnmt_scale.flow import Observation, StepReport, TaskBatch, TaskGram
from mnmt_scale.methods.spec import Facts

NAMES = ("de-en", "fr-en", "ru-en", "fi-en", "tr-en")


def facts(num_tasks: int = 4, tasks_per_batch: int | None = None, seed: int = 3) -> Facts:
    """A training with the first ``num_tasks`` of ``NAMES``."""
    shares = tuple([1.0 / num_tasks] * num_tasks)
    return Facts(NAMES[:num_tasks], shares, tasks_per_batch or num_tasks, seed)


def batch_of(tasks: Sequence[int], step_tokens: Sequence[int], step: int = 0) -> TaskBatch:
    """A batch without sentences: methods look at its step, tasks and token counts alone."""
    none, edge = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    segments = tuple([0] * (len(tasks) + 1))
    return TaskBatch(
        step, 0, tuple(tasks), none, none, none, edge, edge, segments, segments, none, none, tuple(step_tokens), 0, 0
    )  # fmt: skip


def gram_of(
    jacobian: Tensor,
    tasks: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    losses: Sequence[float] | None = None,
    groups: dict[str, slice] | None = None,
) -> TaskGram:
    """The record of gradients [K, P], its columns in ``groups`` of parameters (one group by default)."""
    count = len(jacobian)
    parts = {name: jacobian[:, columns] for name, columns in (groups or {"D.FC": slice(None)}).items()}
    return TaskGram(
        tasks=tuple(tasks or range(count)),
        groups={name: part.double() @ part.double().T for name, part in parts.items()},
        losses=tuple(losses or [1.0] * count),
        tokens=tuple(tokens or [10] * count),
        route="per_task",
    )


def observed(gram: TaskGram, step: int) -> Observation:
    """What a method is shown after the update of step ``step`` (from 0)."""
    report = StepReport(step + 1, gram.tasks, gram.losses, gram.losses, gram.tokens, learning_rate=1e-3, grad_norm=1.0)
    return Observation(report, gram)
