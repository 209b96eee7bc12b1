"""How well each task's training gradient agrees with the dev gradients of all tasks: the rewards of MultiDDS-S.

reward_j = mean over dev tasks i of cos(dev gradient i, training gradient j)
         = < mean_i d_i / |d_i| , g_j / |g_j| >

so one mean direction stands for all dev gradients: each gradient is measured once, 2 T passes for T tasks instead of T^2,
and two sharded gradients are alive at a time, never 2 T of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data.order import mix, name_key, stretch
from ..data.packing import FRAME, assemble
from ..data.stream import deal
from ..errors import MnmtError
from ..flow import TaskBatch
from ..model.attention import uses_buckets
from ..tasks import Task

if TYPE_CHECKING:
    from ..engine.task_grads import TaskGradients
    from .learner import Learner

_WINDOW = 1024
_STREAM = {"train": 0x7261, "dev": 0x6465}
"""So that neither split is read in an order that has anything to do with the other's, or with the training stream's."""


def measure_alignment(learner: Learner, task_gradients: TaskGradients) -> tuple[float, ...]:
    """The rewards at the present weights, over all tasks of the training. Collective; no weight and no state moves.

    What is drawn depends on the seed and the step alone, so a resumed run draws what an uninterrupted one draws.

    Returns:
        [tasks] equal on all ranks. NaN for a task one of whose gradients is not finite.

    Raises:
        MnmtError: E507 when no task has dev text short enough.
    """
    config, world, engine = learner.config, learner.world, learner.engine
    tokens = config.method.multidds.batch_tokens
    part = max(1, config.batch.batch_tokens // (world.size * config.batch.accumulation))
    micros = math.ceil(tokens / (part * world.size))  # no micro-batch larger than those of training
    bucketed = uses_buckets(config.model, engine.device, engine.dtype)

    def drawn(task: Task, split: str) -> list[TaskBatch]:
        return draw_batches(
            learner.store,
            task,
            split,
            seed=config.train.seed,
            step=learner.step,
            max_tokens=config.data.max_tokens,
            batch_tokens=tokens,
            rank=world.rank,
            size=world.size,
            micros=micros,
            max_waste=config.batch.max_waste if bucketed else None,
        )

    train = [drawn(task, "train") for task in learner.tasks]
    dev = [drawn(task, "dev") if learner.store.has(task.pair, "dev") else [] for task in learner.tasks]
    return tuple(alignment(task_gradients, train, dev))


def alignment(
    task_gradients: TaskGradients, train_batches: Sequence[Sequence[TaskBatch]], dev_batches: Sequence[Sequence[TaskBatch]]
) -> list[float]:
    """The rewards from given batches. Collective.

    Both gradients are those of the training loss at the same weights in training mode (dropout and label smoothing on), as in
    the paper's code.

    Args:
        train_batches: per task, this rank's micro-batches of it (K = 1; equally many on all ranks).
        dev_batches: likewise; none at all for a task without dev text, which then is left out of the mean.

    Returns:
        [tasks]. A gradient of norm 0 has cosine 0 with every other. A dev gradient that is not finite is left out of the
        mean, and its task's reward is NaN, as it is where a training gradient is not finite.
    """
    if not any(dev_batches):
        raise MnmtError(
            "E507",
            "no direction has dev text, which the rewards are measured on",
            where="method 'multidds'",
            remedy="give the corpora a dev split, or choose another method",
        )
    mean: dict[str, Tensor] = {}
    bad, summed = set(), 0
    for task, batches in enumerate(dev_batches):
        if not batches:
            continue
        gradient = task_gradients.gradient(batches, _token_mean(batches))
        norm = math.sqrt(_products(task_gradients, gradient)[0][0])
        if not math.isfinite(norm):
            bad.add(task)
            continue
        summed += 1
        _accumulate(mean, gradient, 1.0 / norm if norm else 0.0)
        del gradient
    rewards = []
    for task, batches in enumerate(train_batches):
        if not mean:
            rewards.append(math.nan)
            continue
        gradient = task_gradients.gradient(batches, _token_mean(batches))
        products = _products(task_gradients, mean, gradient)
        norm = math.sqrt(products[1][1])
        cosine = products[0][1] / (norm * summed) if norm else 0.0
        rewards.append(math.nan if task in bad or not math.isfinite(norm) else cosine)
        del gradient
    return rewards


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
    """This rank's micro-batches of one draw from a task's split: different sentences at random, the same ones whatever the
    number of ranks and micro-batches, a function of (seed, step, task, split) alone.

    Args:
        max_tokens: longest side, tag and end included; longer sentences are passed over, in dev text too.
        batch_tokens: of the whole draw, tokens of the longer side, tag and end included; the draw ends before the sentence
            that would exceed it, holds one sentence at least, and is the whole split where that is smaller.
        micros: micro-batches per rank, some without sentences where there are few.
        max_waste: of the padded layout; None leaves it out.

    Returns:
        ``micros`` batches with K = 1 and N of the whole draw; none where no sentence is short enough.
    """
    corpus = store.pair(task.pair, split)
    sides = [corpus.side(language) for language in (task.source, task.target)]
    rows, starts, lengths = _drawn(sides, len(corpus), mix(seed, step, _STREAM[split]), task, max_tokens - FRAME, batch_tokens)
    if not len(rows):
        return []
    predicted = int((lengths[1] + 1).sum())
    parts = deal(lengths[0] + lengths[1], size * micros)
    batches = []
    for micro in range(micros):
        members = parts[micro * size + rank]
        batches.append(
            assemble(
                [[np.asarray(side.tokens)] for side in sides],
                [s[members] for s in starts],
                [n[members] for n in lengths],
                [0, len(members)],
                (task,),
                store.tokenizer,
                step=step,
                micro=micro,
                rows=rows[members],
                step_tokens=(predicted,),
                max_waste=max_waste,
            )
        )
    return batches


def _drawn(
    sides: list[Any], count: int, key: int, task: Task, limit: int, budget: int
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Rows, and per side starts and lengths of their texts, in the order drawn."""
    offsets = [np.asarray(side.offsets) for side in sides]
    found: list[NDArray[np.int64]] = []
    spent = 0
    for first in range(0, count, _WINDOW):
        rows = stretch(key, name_key(task.name), first, min(_WINDOW, count - first), count)
        table = np.stack([rows, *(o.take(rows + i).astype(np.int64) for o in offsets for i in (0, 1))])
        longer = np.maximum(table[2] - table[1], table[4] - table[3])
        table, longer = table[:, longer <= limit], longer[longer <= limit]
        costs = spent + np.cumsum(longer + FRAME)
        fitting = int(costs.searchsorted(budget, side="right"))
        if fitting < len(costs):
            found.append(table[:, : max(fitting, 0 if spent else 1)])
            break
        found.append(table)
        spent = int(costs[-1]) if len(costs) else spent
    table = np.concatenate(found, axis=1) if found else np.zeros((5, 0), dtype=np.int64)
    return table[0], [table[1], table[3]], [table[2] - table[1], table[4] - table[3]]


def _token_mean(batches: Sequence[TaskBatch]) -> tuple[float, ...]:
    return (1.0 / batches[0].step_tokens[0],)


def _products(task_gradients: TaskGradients, *gradients: dict[str, Tensor]) -> list[list[float]]:
    """Inner products over all parameters."""
    return sum(task_gradients.inner(gradients).values()).tolist()


def _accumulate(mean: dict[str, Tensor], gradient: dict[str, Tensor], factor: float) -> None:
    for name, piece in gradient.items():
        if name in mean:
            mean[name].add_(piece, alpha=factor)
        else:
            mean[name] = piece * factor
