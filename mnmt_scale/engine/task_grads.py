"""Gradients of single tasks under ZeRO: their Gram matrix, by group of parameters, and single gradients in pieces.

    L_k = (sum of task k's token losses) / N_k        G_ij = <grad L_i, grad L_j>

with both sums over all ranks and micro-batches of a step: the gradients are summed over ranks *before* the inner product,
and nothing of DeepSpeed's scaling is left in them. Two routes:

- ``per_task``: for each task a forward pass on its sentences and ``torch.autograd.grad``, whose result is reduced in
  buckets to this rank's pieces; works with any model. K forward and backward passes; with dropout, other masks than the
  ordinary pass draws.
- ``segmented``: in one backward pass each layer forms the K gradients of its weights (``kernels.ops.task_tape``). Either the
  ordinary pass of the step, which then costs little more than a plain one (``watch``), or one of its own (``measure``).

DeepSpeed's hooks sit where gradients are accumulated, and ``autograd.grad`` accumulates none: a measuring pass leaves nothing
behind. All methods are collective, and call the same collectives in the same order whatever a rank holds.
docs/task-gradients.md has memory and traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..dist import all_sum, peers
from ..errors import MnmtError
from ..flow import TaskBatch, TaskGram
from ..kernels.ops.task_gram import task_gram
from .config import TaskGradientsConfig
from .coverage import table_weights, uncovered
from .gradient_cut import GradientCut
from .preconditioner import AdamWeights
from .seeding import seed_step
from .step_tape import StepTape, TaskSums
from .zero import ZeroEngine

Pieces = dict[str, Tensor]
"""Parameter -> fp32 [m], this rank's piece of a global gradient in the cut of ``gradient_cut``."""


class TaskGradients:
    """Measures the gradients of single tasks on one engine.

    Args:
        seed: of the dropout, which is drawn as in the ordinary pass at the same position.
        only: (batch, slot) -> the sentences of one task of a batch, with K = 1.
        group_of: name of a parameter -> its group.

    Attributes:
        route: ``segmented`` or ``per_task``.
        reason: why, in one line.

    Raises:
        MnmtError: E507 where ``route`` is ``off``, where ``segmented`` cannot measure a parameter, and for the preconditioner
            of Adam with another optimizer.
    """

    def __init__(
        self,
        engine: ZeroEngine,
        config: TaskGradientsConfig,
        *,
        seed: int,
        only: Callable[[TaskBatch, int], TaskBatch],
        group_of: Callable[[str], str],
    ) -> None:
        self.engine, self.config, self.seed, self.only = engine, config, seed, only
        self.parameters = dict(engine.module.named_parameters())
        self.shapes = engine.shards.shapes
        self.groups: dict[str, list[str]] = {}
        for name in self.parameters:
            self.groups.setdefault(group_of(name), []).append(name)
        self.cut = GradientCut(engine.world)
        self.route, self.reason = self._choose()
        self.tables = table_weights(engine.module) if self.route == "segmented" else []
        tables = {id(t) for t in self.tables}
        self.vocabulary = max((self.shapes[n][0] for n, p in self.parameters.items() if id(p) in tables), default=0)

    def _choose(self) -> tuple[str, str]:
        where = f"engine.task_gradients.route = '{self.config.route}'"
        if self.config.route == "off":
            raise MnmtError("E507", "gradients of single tasks are turned off", where=where, remedy="set it to 'auto'")
        optimizer = self.engine.config.optimizer.name
        if self.config.preconditioner == "adam" and optimizer == "sgd":
            what = "preconditioner = 'adam', but the optimizer is sgd, which has no second moment"
            raise MnmtError("E507", what, where="engine.task_gradients", remedy="set it to 'none'")
        if self.config.route == "per_task":
            return "per_task", f"{where}: a pass for each task"
        with peers():
            obstacle = uncovered(self.engine.module, self.engine.device)
        if obstacle is None:
            return "segmented", "every parameter is measured in one backward pass"
        if self.config.route == "segmented":
            raise MnmtError("E507", obstacle, where=where, remedy="set it to 'auto' or 'per_task'")
        return "per_task", f"{obstacle}: a pass for each task"

    def describe(self, num_tasks: int) -> str:
        """Route, reason, and about the memory that measuring ``num_tasks`` tasks takes on each rank, for the log."""
        sizes = sorted((shape.numel() for shape in self.shapes.values()), reverse=True)
        total, width = sum(sizes), torch.finfo(self.engine.dtype).bits // 8
        kept = 4 * num_tasks * total / self.cut.size
        if self.route == "per_task":
            bytes_, what = width * total + kept, f"one gradient and {num_tasks} in pieces of 1/{self.cut.size}"
        else:
            bytes_ = width * num_tasks * sum(sizes[:2])
            what = f"{num_tasks} gradients of the table and of the largest other weight"
            if self.engine.accumulation > 1 and self.config.gram_over == "step":
                bytes_, what = bytes_ + kept, f"{what}, and of all weights in pieces of 1/{self.cut.size}"
        return f"task gradients {self.route} ({self.reason}); about {bytes_ / 2**20:.1f} MiB: {what}"

    def measure(self, batches: Sequence[TaskBatch]) -> TaskGram:
        """The Gram of a step, without an update: ``batches`` are this rank's micro-batches."""
        over = self.over(batches)
        used = batches[:1] if over == "microbatch" else batches
        if self.route == "per_task":
            return self._measure_by_task(used, over)
        watch = Watch(self, batches, None)
        for micro, batch in enumerate(used):
            self._seed(batch)
            tape = watch.tape(micro)
            with peers(), torch.enable_grad():
                losses = self.engine.module(batch.to(self.engine.device), watch.scales, tape)
                tape.note(losses)
                torch.autograd.grad(losses.total, self.tables)
        return watch.finish()

    def watch(self, batches: Sequence[TaskBatch], scales: Sequence[float]) -> Watch:
        """For the ordinary pass of a step, whose update is that of ``scales`` (segmented route alone)."""
        assert self.route == "segmented", self.route
        return Watch(self, batches, scales)

    def gradient(self, batches: Sequence[TaskBatch], scales: Sequence[float], *, eval: bool = False) -> Pieces:
        """This rank's pieces of the gradient of ``sum_k scales_k * (sum of task k's token losses)`` over all ranks and
        ``batches``, as many on every rank. One backward pass; memory for one whole gradient.

        Args:
            eval: in evaluation mode, which has neither dropout nor label smoothing.
        """
        module, training = self.engine.module, self.engine.module.training
        module.train(not eval)
        try:
            pieces: Pieces = {}
            for batch in batches:
                self._add_gradient(pieces, batch, scales)
        finally:
            module.train(training)
        return pieces

    def inner(self, gradients: Sequence[Pieces]) -> dict[str, Tensor]:
        """Group -> [n, n] fp64 on the host: inner products of n gradients as ``gradient`` gives them."""
        found = self.local_grams(gradients)
        return dict(zip(found, all_sum(torch.stack(list(found.values()))).cpu().unbind(), strict=True))

    def over(self, batches: Sequence[TaskBatch]) -> str:
        """``microbatch`` where the Gram is of the first of several."""
        return self.config.gram_over if len(batches) > 1 else "step"

    def preconditioner(self) -> AdamWeights | None:
        """The weights of the inner product as they are now."""
        if self.config.preconditioner == "none":
            return None
        return AdamWeights(self.engine.shards, self.engine.config.optimizer, self.cut)

    def local_grams(self, gradients: Sequence[Pieces], weights: AdamWeights | None = None) -> dict[str, Tensor]:
        """This rank's share of ``inner``, on the gradients' device. Collective with ``weights``."""
        found = {}
        for group, names in self.groups.items():
            diagonal = None if weights is None else [weights(name) for name in names]
            found[group] = task_gram([[g[name] for name in names] for g in gradients], diagonal=diagonal)
        return found

    def finished(self, batch: TaskBatch, over: str, groups: dict[str, Tensor], sums: Tensor, tokens: Tensor) -> TaskGram:
        """The Gram from this rank's share of it, normalised by ``batch.step_tokens``.

        Args:
            sums, tokens: [K] this rank's loss sums and token counts.
        """
        counts = len(batch.tasks)
        local = torch.cat([groups[g].double().flatten() for g in self.groups]).cpu()  # one wait for the device, not one a group
        total = all_sum(torch.cat([local, sums.double().cpu(), tokens.double().cpu()]))
        *grams, sums, tokens = total.split([counts * counts] * len(self.groups) + [counts, counts])
        planned = torch.tensor(batch.step_tokens, dtype=torch.float64)
        if over == "microbatch":  # known only now
            ratio = torch.where(tokens > 0, planned / tokens.clamp(min=1), 0.0)
        else:
            tokens, ratio = planned, torch.ones_like(planned)
        scaling = ratio[:, None] * ratio
        return TaskGram(
            tasks=batch.tasks,
            groups={g: x.view(counts, counts) * scaling for g, x in zip(self.groups, grams, strict=True)},
            losses=tuple((sums / tokens.clamp(min=1)).tolist()),
            tokens=tuple(int(n) for n in tokens),
            route=self.route,
            over=over,
        )

    def _measure_by_task(self, batches: Sequence[TaskBatch], over: str) -> TaskGram:
        first, pieces = batches[0], []
        sums, tokens = torch.zeros(2, len(first.tasks), dtype=torch.float64)
        for slot, scale in enumerate(means(first)):
            pieces.append({})
            for batch in batches:
                s, n = self._add_gradient(pieces[slot], self.only(batch, slot), (scale,))
                sums[slot] += s
                tokens[slot] += n
        return self.finished(first, over, self.local_grams(pieces, self.preconditioner()), sums, tokens)

    def _add_gradient(self, pieces: Pieces, batch: TaskBatch, scales: Sequence[float]) -> tuple[float, int]:
        """Adds a micro-batch's gradient; its loss sum and tokens over all tasks, of this rank."""
        self._seed(batch)
        with peers(), torch.enable_grad():
            losses = self.engine.module(batch.to(self.engine.device), scales)
            gradients = list(torch.autograd.grad(losses.total, list(self.parameters.values()), allow_unused=True))
        sizes = [shape.numel() for shape in self.shapes.values()]
        for name, piece in zip(self.shapes, self.cut.all_sums(sizes, gradients), strict=True):
            pieces[name] = pieces[name].add_(piece) if name in pieces else piece.clone()
        return float(losses.sums.sum()), int(losses.tokens.sum())

    def _seed(self, batch: TaskBatch) -> None:
        seed_step(self.seed, batch.step, batch.micro, self.engine.world.rank)


class Watch:
    """The ordinary pass of one step, watched: for each micro-batch

        losses = engine.forward(batch, watch.scales, watch.tape(micro)); engine.backward(losses, ...)

    and then ``finish``, before the update, which is that of the weighted sum.

    Attributes:
        scales: [K] what the model multiplies the tasks' summed losses by: 1 / N_k, without the weights, which are the tape's.
    """

    def __init__(self, owner: TaskGradients, batches: Sequence[TaskBatch], scales: Sequence[float] | None) -> None:
        self._owner, self._batch, self._over = owner, batches[0], owner.over(batches)
        tokens = self._batch.step_tokens
        self.scales = means(self._batch)
        self._alpha = [0.0] * len(tokens) if scales is None else [s * n for s, n in zip(scales, tokens, strict=True)]
        self._factor = 1.0 if scales is None else float(owner.engine.world.size)  # the engine cancels DeepSpeed's mean
        added = len(batches) > 1 and self._over == "step"
        self._sums = TaskSums(len(tokens), owner.cut, owner.shapes) if added else None
        self._weights = owner.preconditioner()
        self._tapes: list[StepTape] = []

    def tape(self, micro: int) -> StepTape:
        """The tape of this rank's micro-batch number ``micro``; each once, in order."""
        assert micro == len(self._tapes), f"micro-batch {micro} after {len(self._tapes)}"
        how = {}
        if micro == 0 or self._sums is not None:  # else its gradients are combined alone
            weights = self._weights if self._sums is None else None
            how = dict(cut=self._owner.cut, vocabulary=self._owner.vocabulary, sums=self._sums, diagonal=weights)
        tape = StepTape(len(self._alpha), self._alpha, factor=self._factor, **how)
        self._tapes.append(tape)
        return tape

    def finish(self) -> TaskGram:
        """The Gram, after the last backward pass. Collective."""
        counted = self._tapes if self._sums is not None else self._tapes[:1]
        losses = [tape.losses for tape in counted]
        assert losses, "no tape was given out"
        assert all(x is not None for x in losses), "a tape saw no forward pass"
        sums, tokens = (torch.stack([getattr(x, field) for x in losses]).sum(dim=0) for field in ("sums", "tokens"))
        if self._sums is not None:
            pieces = [{name: p[k] for name, p in self._sums.pieces.items()} for k in range(len(self._alpha))]
            groups = self._owner.local_grams(pieces, self._weights)
        else:
            counted[0].gram  # noqa: B018 (raises where inner products are missing)
            groups = {group: gram / self._factor**2 for group, gram in counted[0].groups.items()}
        return self._owner.finished(self._batch, self._over, groups, sums, tokens)


def means(batch: TaskBatch) -> tuple[float, ...]:
    """[K] 1 / N_k, 0 for a task without tokens in the step."""
    return tuple(1.0 / n if n else 0.0 for n in batch.step_tokens)
