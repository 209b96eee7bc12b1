"""How well each task's training gradient agrees with the dev gradients of all tasks: the rewards of MultiDDS-S.

reward_j = mean over dev tasks i of cos(dev gradient i, training gradient j)
         = < mean_i d_i / |d_i| , g_j / |g_j| >

so one mean direction stands for all dev gradients: each gradient is measured once, 2 T passes for T tasks instead of T^2,
and two sharded gradients are alive at a time, never 2 T of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..data.draw import draw_batches
from ..errors import MnmtError
from ..flow import TaskBatch
from ..model.attention import uses_buckets
from ..tasks import Task

if TYPE_CHECKING:
    from ..engine.task_grads import TaskGradients
    from .learner import Learner


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
