"""How often each task is seen: p over tasks, and which tasks with which shares make up a step.

The share of a task in a step is random when a step holds fewer tasks than there are; its expectation is p exactly, step
by step. Steps are not drawn independently: in a block of ``BLOCK`` steps each task gets as many of the slots as its
chance says, rounded down or up by systematic sampling (Madow 1949) with a random start that moves on by the golden ratio
from block to block, and the slots are then dealt to the steps at random. So realised shares stay within a few slots of
p at all times, where independent draws would wander off as the square root of the number of steps.

A training that measures how one task changes the others has single steps in between (``single_task``), each of one task
alone; those come uniformly and do not count in the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import MnmtError
from ..tasks import TaskSet
from .config import SamplingConfig
from .order import hashes, mix, shuffled, uniforms

BLOCK = 256
"""Steps over which slots are allotted together; even."""
NEGLIGIBLE = 1e-15
"""A share that is within the rounding of the others."""
_MIXING = 4
_SINGLE = 0x73696E67
_NEARLY = 1e-9
_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0

Floats = NDArray[np.float64]


def task_shares(config: SamplingConfig, tasks: TaskSet, sizes: Mapping[str, int]) -> Floats:
    """p: [tasks] summing to 1.

    Args:
        config: temperature p ~ size^(1/T) (T may be inf), uniform, or fixed weights by direction name.
        sizes: training sentences by pair. A corpus serves both directions; each counts the pair's full size.

    Raises:
        MnmtError: E105 for a weight of an unknown direction (nearest named), E102 when all weights are 0.
    """
    if config.kind == "fixed":
        weights = np.zeros(len(tasks))
        for name, weight in (config.weights or {}).items():
            weights[tasks.by_name(name).index] = weight
        return normalised(weights, "sampling.weights")
    if config.kind == "uniform":
        return np.full(len(tasks), 1.0 / len(tasks))
    logs = np.log([max(float(sizes[t.pair]), 1e-300) for t in tasks])
    return normalised(np.exp((logs - logs.max()) / config.temperature), "sampling.temperature")


def normalised(weights: Any, where: str) -> Floats:
    """``weights`` divided by their sum; E102 when one is negative or not finite, or all are 0."""
    p = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(p).all() or (p < 0).any() or not 0 < p.sum() < math.inf:
        raise MnmtError("E102", "shares must be finite, not negative, and not all 0", where=where)
    return p / p.sum()


@dataclass(frozen=True, slots=True)
class Composition:
    """What every step is made of: ``fixed`` shares, and ``slots`` different tasks for ``slot_share`` each.

    Attributes:
        fixed: [tasks] share that a task has in every step.
        chance: [tasks] probability, below 1, that a task holds one of the slots; sums to ``slots``.
    """

    fixed: Floats
    chance: Floats
    slots: int
    slot_share: float


def compose(p: Floats, tasks_per_batch: int, within: Literal["proportional", "equal"]) -> Composition:
    """The composition whose expected shares are p: ``fixed + chance * slot_share == p``.

    ``proportional``: survey sampling with take-all strata. A task with p_i * K >= 1, among the tasks and slots that are
    left, is in every step with share p_i; the others share the remaining slots and the remaining share equally. Always K
    different tasks. ``equal``: K equal slots; a task has the whole part of K * p_i of them for certain, and the fraction
    by chance.

    Args:
        p: [tasks] summing to 1; a task with 0, or less than ``NEGLIGIBLE``, is never in a step.
        tasks_per_batch: K; 0 or more than there are tasks with p > 0: all of these.
    """
    p = np.where(np.asarray(p) < NEGLIGIBLE, 0.0, p)
    positive = int(np.count_nonzero(p))
    k = min(tasks_per_batch or positive, positive)
    if within == "equal":
        held = np.floor(k * p + _NEARLY)
        return _with_chances(held / k, np.clip(k * p - held, 0.0, None), k - int(held.sum()), 1.0 / k)
    rest, mass, slots = p > 0, 1.0, k
    while slots > 0:
        certain = rest & (p * slots >= mass * (1.0 - _NEARLY))
        if not certain.any():
            break
        rest &= ~certain
        slots = k - int(np.count_nonzero((p > 0) & ~rest))
        mass = float(p[rest].sum())
    fixed = np.where(rest, 0.0, p)
    return _with_chances(fixed, np.where(rest, p, 0.0), slots, mass / slots if slots else 0.0)


def _with_chances(fixed: Floats, weights: Floats, slots: int, slot_share: float) -> Composition:
    total = float(weights.sum())
    if slots == 0:
        return Composition(fixed, np.zeros_like(weights), 0, 0.0)
    return Composition(fixed, weights / total * slots, slots, slot_share)


class TaskSampler:
    """Which tasks make up composition number ``index`` (a step, as a rule), with which shares; a function of the seed,
    p and ``index`` alone."""

    def __init__(self, p: Floats, tasks_per_batch: int, within: Literal["proportional", "equal"], seed: int) -> None:
        self.composition = compose(p, tasks_per_batch, within)
        self._seed = seed
        self._block: tuple[int, NDArray[np.int64]] | None = None

    def shares(self, index: int) -> tuple[list[int], list[float]]:
        """Tasks in ascending order and their shares, which sum to 1."""
        shares = self.composition.fixed.copy()
        if self.composition.slots:
            block, place = divmod(index, BLOCK)
            if self._block is None or self._block[0] != block:
                self._block = (block, deal_slots(self.composition, self._seed, block))
            shares[self._block[1][place]] += self.composition.slot_share  # a task holds one slot at most
        tasks = np.flatnonzero(shares)
        return tasks.tolist(), shares[tasks].tolist()


def deal_slots(composition: Composition, seed: int, block: int) -> NDArray[np.int64]:
    """The tasks in the slots of each step of a block: [BLOCK, slots], no task twice in a row.

    Each task's number of slots in the block is its expected number rounded down or up, so that the sums are right; the
    steps are interchangeable, so each holds the task with its exact chance. Swapping tasks between random pairs of
    steps makes who meets whom random too.
    """
    slots = composition.slots
    start = (uniforms(mix(seed, 1), 1)[0] + block * _GOLDEN_RATIO) % 1.0
    ends = np.concatenate(([0.0], np.cumsum(composition.chance) * BLOCK))
    ends[-1] = BLOCK * slots
    counts = np.diff(np.ceil(ends - start).clip(0, BLOCK * slots)).astype(np.int64)
    assert counts.max() <= BLOCK, "a chance above 1"
    key = mix(seed, 2, block)
    turn = shuffled(mix(key, 0), len(counts))
    # task after task over the cells, row by row: at most BLOCK cells in a row, so never the same column twice
    grid = np.repeat(turn, counts[turn]).reshape(slots, BLOCK)
    for r in range(_MIXING * slots if slots > 1 else 0):
        columns = shuffled(mix(key, 1, r), BLOCK)
        left, right = columns[: BLOCK // 2], columns[BLOCK // 2 :]
        picks = (hashes(mix(key, 2, r), BLOCK) >> np.uint64(32)).astype(np.int64) % slots
        i, j = picks[: BLOCK // 2], picks[BLOCK // 2 :]
        a, b = grid[i, left], grid[j, right]
        able = ~((grid[:, left] == b) | (grid[:, right] == a)).any(axis=0)
        grid[i[able], left[able]], grid[j[able], right[able]] = b[able], a[able]
    return np.ascontiguousarray(grid[:, shuffled(mix(key, 3), BLOCK)].T)


def is_single(step: int, every: int) -> bool:
    """Whether the step after ``step`` updates is of one task alone, where every ``every``-th is; never with 0."""
    return every > 0 and (step + 1) % every == 0


def single_task(step: int, every: int, tasks: Sequence[int], seed: int) -> int:
    """Which of ``tasks`` the single step after ``step`` updates is of: in each block of as many single steps as there are
    tasks every one comes once, in random order. A function of the seed and the step alone."""
    assert is_single(step, every), (step, every)
    block, place = divmod(step // every, len(tasks))
    return tasks[int(shuffled(mix(seed, _SINGLE, block), len(tasks))[place])]
