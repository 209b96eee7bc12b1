"""The records that travel through the system, in the order of the data. Data flows one way: no record calls back.

Shape legend, used as suffixes in the whole package:
    B sentences of a micro-batch    S packed source tokens    U packed target tokens
    D model width    V vocabulary   K tasks of a step         P parameters of a shard

A *step* is one optimizer update; it consists of ``accumulation`` micro-batches on each rank. Its content is planned on
the global stream and then split, so K, the tasks and N_k are the same on all ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

IGNORE = -100
"""Label of a target position that is not predicted: the language tag, which is forced at decoding."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """How to lay packed sentences out as a few nearly square padded blocks, for attention on hardware without a
    variable-length kernel. All sentences of a block are padded to the longest of it; blocks stand one after another.

    Attributes:
        source_index: [sum b*s] row in the packed source for each padded cell; any valid row where it is padding.
        source_inverse: [S] padded cell of each packed source row.
        target_index, target_inverse: the same for the target side.
        shapes: per block (sentences b, source length s, target length u).
        source_lengths: per block an int64 [b]; None where no sentence of the block has source padding.
        identity: the padded layout equals the packed one on both sides (equal lengths): gathers can be left out.
    """

    source_index: Tensor
    source_inverse: Tensor
    target_index: Tensor
    target_inverse: Tensor
    shapes: tuple[tuple[int, int, int], ...]
    source_lengths: tuple[Tensor | None, ...]
    identity: bool = False


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """One micro-batch of one rank: sentences contiguous by task, tokens packed without padding.

    Attributes:
        step, micro: optimizer step and number of the micro-batch within it, from 0.
        tasks: the K task indices of the *step*, ascending; a rank may hold no sentence of some.
        source_ids: [S] ``__src__ w1 .. wn </s>`` of each sentence, one after another.
        target_in: [U] decoder input ``</s> __tgt__ w1 .. wn``.
        target_out: [U] labels ``IGNORE w1 .. wn </s>``.
        source_offsets, target_offsets: [B+1] token offsets of the sentences (int32, as variable-length kernels want).
        source_segments, target_segments: [K+1] token offsets of the task segments (host integers).
        sentence_task: [B] slot 0..K-1 of each sentence, never decreasing.
        rows: [B] sentence number in the task's training corpus (for the record of a bad batch, and tests of order).
        step_tokens: per task N_k, predicted target tokens (labels other than IGNORE) over all ranks and micro-batches.
        buckets: the padded layout; None when the model attends over packed sentences directly.
        max_source, max_target: longest sentence of the micro-batch.
    """

    step: int
    micro: int
    tasks: tuple[int, ...]
    source_ids: Tensor
    target_in: Tensor
    target_out: Tensor
    source_offsets: Tensor
    target_offsets: Tensor
    source_segments: tuple[int, ...]
    target_segments: tuple[int, ...]
    sentence_task: Tensor
    rows: Tensor
    step_tokens: tuple[int, ...]
    max_source: int
    max_target: int
    buckets: Buckets | None = None

    @property
    def num_sentences(self) -> int:
        return int(self.sentence_task.shape[0])

    def to(self, device: torch.device | str) -> TaskBatch:
        """The same batch with every tensor on ``device``; the batch itself where it is there already."""
        if self.source_ids.device == torch.device(device):
            return self
        return _moved(self, device)


def _moved(record: Any, device: torch.device | str) -> Any:
    changes: dict[str, Any] = {}
    aside = torch.device(device).type != "cpu"  # a copy to the host that nobody waits for may be read before it is there
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, Tensor):
            changes[f.name] = value.to(device, non_blocking=aside)
        elif isinstance(value, Buckets):
            changes[f.name] = _moved(value, device)
        elif isinstance(value, tuple) and any(isinstance(v, Tensor) for v in value):
            changes[f.name] = tuple(v.to(device, non_blocking=aside) if isinstance(v, Tensor) else v for v in value)
    return replace(record, **changes)


@dataclass(frozen=True, slots=True)
class TaskLosses:
    """What the model returns for a micro-batch. Sums, never means: normalised once, by global counts.

    Attributes:
        total: scalar with a graph, sum over tokens of ``scale[task] * smoothed loss``: what goes backward.
        sums: [K] fp32, detached: sum of each task's smoothed token losses.
        nlls: [K] fp32, detached: sum of each task's negative log-likelihoods (nats, no smoothing).
        tokens: [K] int64: predicted tokens of each task in this micro-batch.
    """

    total: Tensor
    sums: Tensor
    nlls: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did, the same on all ranks.

    Attributes:
        step: number of updates done, this one included.
        tasks: K task indices; ``losses``, ``nlls`` (per token) and ``tokens`` follow their order.
        grad_norm: global norm before clipping, of the sum that was sent backward; nan when DeepSpeed gave none.
        skipped: the update was left out because loss or gradient was not finite.
    """

    step: int
    tasks: tuple[int, ...]
    losses: tuple[float, ...]
    nlls: tuple[float, ...]
    tokens: tuple[int, ...]
    learning_rate: float
    grad_norm: float
    skipped: bool = False
    seconds: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Plain token mean over all tasks."""
        total = sum(self.tokens)
        return sum(x * n for x, n in zip(self.losses, self.tokens, strict=True)) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Lookahead:
    """Measure the losses of held sentences before and after the coming update, whose batch is of one task alone.

    Attributes:
        affected: task indices, ascending.
        split: where the held sentences are drawn from: ``train`` or ``dev``.
        tokens: budget of each task's held sentences, tokens of the longer side, tag and end included.
    """

    affected: tuple[int, ...]
    split: Literal["train", "dev"]
    tokens: int


@dataclass(frozen=True, slots=True)
class LossChange:
    """How one update changed the losses of held sentences, the same sentences before and after, without dropout and label
    smoothing; the same on all ranks.

    Attributes:
        trained: the task index j that the update was made from.
        affected: [A] task indices i.
        before, after: [A] summed negative log-likelihoods of i's held sentences, in nats.
        tokens: [A] predicted tokens of them; 0 where nothing could be held (then the sums are 0 too).
    """

    trained: int
    affected: tuple[int, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def bad(self) -> tuple[int, ...]:
        """Task indices of which a loss is not finite."""
        rows = zip(self.affected, self.before, self.after, strict=True)
        return tuple(i for i, before, after in rows if not math.isfinite(before + after))


@dataclass(frozen=True, slots=True)
class Request:
    """What a method wants to see of a step beside its report.

    Attributes:
        gram: ``beside``: the Gram of the gradients that the update is made from, weighted as the method's ``scales`` say;
            ``first``: the Gram before the update, whose weights depend on it (``Method.weigh``; a second backward pass).
        alignment: after the update, how well each task's training gradient points along the dev gradients of all tasks.
        lookahead: what the update of a step of one task does to the losses of others.
    """

    gram: Literal["", "beside", "first"] = ""
    alignment: bool = False
    lookahead: Lookahead | None = None


@dataclass(frozen=True, slots=True)
class TaskGram:
    """Inner products of the global per-task gradients of one step, the same on all ranks.

    Attributes:
        tasks: K task indices.
        groups: per group of parameters [K, K] fp64 on the host, ``<grad L_i, grad L_j>`` over its parameters, with
            L_k = (sum of task k's token losses) / tokens[k], both over all ranks and micro-batches.
        losses: [K] L_k, label smoothing included.
        tokens: [K] N_k; a task with 0 has loss 0 and gradient 0.
        route: ``segmented`` or ``per_task``, how it was measured.
        over: ``step``, or ``microbatch`` where it is of the first micro-batch alone (tokens and losses too).
    """

    tasks: tuple[int, ...]
    groups: dict[str, Tensor]
    losses: tuple[float, ...]
    tokens: tuple[int, ...]
    route: str
    over: str = "step"

    @property
    def gram(self) -> Tensor:
        """[K, K] over all parameters."""
        return torch.stack(list(self.groups.values())).sum(dim=0)

    @property
    def bad(self) -> tuple[int, ...]:
        """Slots 0..K-1 whose loss or gradient is not finite: those to blame, as far as the numbers tell."""
        by_loss = tuple(k for k, loss in enumerate(self.losses) if not math.isfinite(loss))
        return by_loss or tuple(torch.isfinite(self.gram.diagonal()).logical_not().nonzero().flatten().tolist())


@dataclass(frozen=True, slots=True)
class Observation:
    """What a method gets to see after a step for which it made a ``Request``.

    Attributes:
        gram: where it was asked for.
        alignment: [tasks of the training] mean over dev tasks i of cos(dev gradient i, training gradient j), for each j.
        change: where a lookahead was asked for.
        drawn: [tasks of the training] sentences drawn from each since the training began, those of this step included.
    """

    report: StepReport
    gram: TaskGram | None = None
    alignment: tuple[float, ...] | None = None
    change: LossChange | None = None
    drawn: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which tasks train together (``clusters``) and which only help (``helpers``), as a deciding stage wrote it.

    Attributes:
        clusters: C, a partition of the task names: model k is for the tasks of ``clusters[k]``.
        helpers: the auxiliary tasks of each, ``g_k = clusters[k] + helpers[k]``; equally many as clusters, () for none.
    """

    method: str
    clusters: tuple[tuple[str, ...], ...]
    helpers: tuple[tuple[str, ...], ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """All task names, sorted."""
        return tuple(sorted(name for cluster in self.clusters for name in cluster))
