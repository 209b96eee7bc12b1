"""What an update from one task alone does to the losses of others: measured before and after it on the same held sentences.

FTAC, Eq. 7. Held sentences are drawn beside the training stream (``data.draw``), all affected tasks packed into as few
forward passes as the micro-batches of training have room for, dealt over the ranks. The passes are in evaluation mode on
the training weights, never on their moving average, and without a graph; no random number is drawn, no state moves.

Precision. A single update changes a token's loss by little, so each sentence is a segment of its own: the model adds up a
sentence's token losses in fp64 and gives the sum in fp32, and everything beyond that is fp64, ranks included. What is left
is the rounding of the forward pass itself. Both passes run the same operations on the same tensors, so an update that moves
no weight changes no loss by a single bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.draw import Draw, draw, pack
from ..dist import all_sum
from ..errors import MnmtError
from ..flow import Lookahead, LossChange, TaskBatch
from ..model.attention import uses_buckets
from .learner import Learner


@dataclass(frozen=True)
class Held:
    """Held sentences and their losses before the update.

    Attributes:
        trained: the task that the update is made from.
        affected: [A] task indices.
        batches: this rank's, by sentence, with K = A tasks; as many on every rank.
        slots: [sentences of this rank] place of each one's task in ``affected``, on the host.
        tokens: [A] predicted tokens over all ranks.
        before: [A] fp64, summed negative log-likelihoods over all ranks.
    """

    trained: int
    affected: tuple[int, ...]
    batches: list[TaskBatch]
    slots: Tensor
    tokens: tuple[int, ...]
    before: Tensor


def hold(learner: Learner, request: Lookahead, batches: Sequence[TaskBatch]) -> Held:
    """Draws held sentences and measures them at the present weights. Collective.

    From training text, sentences of the step itself are left out, for the other direction of its pair too.

    Args:
        batches: this rank's micro-batches of the coming step, which is of one task.
    """
    (trained,) = batches[0].tasks
    config, world, engine = learner.config, learner.world, learner.engine
    pair = learner.tasks[trained].pair
    draws: list[Draw] = []
    for task in (learner.tasks[i] for i in request.affected):
        same = request.split == "train" and task.pair == pair
        draws.append(
            draw(
                learner.store,
                task,
                request.split,
                seed=config.train.seed,
                step=learner.step,
                max_tokens=config.data.max_tokens,
                batch_tokens=request.tokens,
                without=learner.stream.rows if same else None,
            )
        )
    part = max(1, config.batch.batch_tokens // (world.size * config.batch.accumulation))
    micros = max(1, math.ceil(sum(d.cost for d in draws) / (part * world.size)))
    bucketed = uses_buckets(config.model, engine.device, engine.dtype)
    packed = pack(
        draws,
        learner.store.tokenizer,
        step=learner.step,
        rank=world.rank,
        size=world.size,
        micros=micros,
        max_waste=config.batch.max_waste if bucketed else None,
    )
    mine = [_by_sentence(batch).to(engine.device) for batch in packed]
    slots = torch.cat([batch.sentence_task for batch in packed])
    tokens = tuple(d.predicted for d in draws)
    return Held(trained, request.affected, mine, slots, tokens, _losses(learner, mine, slots, len(draws)))


def look_again(learner: Learner, held: Held) -> LossChange:
    """Measures what was held at the weights as they are now. Collective."""
    after = _losses(learner, held.batches, held.slots, len(held.affected))
    return LossChange(held.trained, held.affected, tuple(held.before.tolist()), tuple(after.tolist()), held.tokens)


def check_lookahead(learner: Learner) -> None:
    """Refuses before the first step what affinity probing could not measure later. Collective.

    Raises:
        MnmtError: E104 for a direction without sentences of ``method.affinity.split``, or none besides those of a step of its
            own, or with share 0, more affected directions than there are, or fewer than two; E507 where gradients
            cannot be measured as asked.
    """
    if learner.config.method.name != "affinity":
        return
    config = learner.config.method.affinity
    without = [t.name for t in learner.tasks if not learner.store.has(t.pair, config.split)]
    if without:
        raise MnmtError(
            "E104",
            f"no {config.split} text of {', '.join(without[:5])} to measure affinity on",
            where="method.affinity.split",
            remedy="set it to 'train', or leave the direction out of data.tasks",
        )
    covered = learner.stream.covered() if config.split == "train" else []
    if covered:
        raise MnmtError(
            "E104",
            f"a step holds all training text of {', '.join(covered[:5])}: none is left to measure on after a step of its own",
            where="method.affinity.split",
            remedy="set it to 'dev', or lower batch.batch_tokens",
        )
    never = [task.name for task, share in zip(learner.tasks, learner.stream.shares, strict=True) if not share]
    if never:
        raise MnmtError(
            "E104",
            f"no step would train {', '.join(never[:5])}, whose effect on others could not be measured",
            where="sampling.weights",
            remedy="give a weight above 0, or leave the direction out of data.tasks",
        )
    there = len(learner.tasks)
    if there < 2:
        raise MnmtError("E104", "affinity is between directions, and there is one", where="method 'affinity'")
    if config.affected > there:
        raise MnmtError(
            "E104",
            f"affected = {config.affected}, but there are {there} directions",
            where="method.affinity",
            remedy="set it to 0 for all of them",
        )
    if config.estimate_every:
        learner.task_gradients  # noqa: B018 (made here, so that it is refused here)


def _by_sentence(batch: TaskBatch) -> TaskBatch:
    """The batch with a segment for every sentence, as the model sees it."""
    if not batch.num_sentences:
        return batch
    return replace(
        batch,
        source_segments=tuple(batch.source_offsets.tolist()),
        target_segments=tuple(batch.target_offsets.tolist()),
    )


@torch.no_grad()
def _losses(learner: Learner, batches: Sequence[TaskBatch], slots: Tensor, tasks: int) -> Tensor:
    """[A] fp64 on the host: summed negative log-likelihoods over all ranks."""
    module = learner.engine.module
    training = module.training
    found = []
    module.eval()
    try:
        for batch in batches:
            losses = learner.engine.forward(batch, (0.0,) * (len(batch.target_segments) - 1))
            found.append(losses.nlls[: batch.num_sentences])  # an empty batch keeps the segments of its tasks
    finally:
        module.train(training)
    sentences = torch.cat(found).double().cpu()
    return all_sum(torch.zeros(tasks, dtype=torch.float64).index_add_(0, slots, sentences))
