"""The training stream of one rank: planned steps, split over ranks and micro-batches and made into tensors.

Sentences are dealt to the ``size * accumulation`` parts of a step in order of length, back and forth, so that parts are
nearly equal in tokens and each holds all lengths. Where a step has fewer sentences than parts, some parts are empty: a
``TaskBatch`` of no sentences and no blocks, whose rank still takes part in every collective. What is in a step, and how
it is counted, is ``plan.py``'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..flow import TaskBatch
from ..tasks import Task, TaskSet
from .config import BatchConfig, SamplingConfig
from .packing import FRAME, assemble
from .plan import Place, StepPlan, StepPlanner
from .reader import ROW, SOURCE_LENGTH, SOURCE_START, TARGET_LENGTH, TARGET_START


class BatchStream:
    """Endless steps of training sentences.

    Args:
        store: an opened ``TokenStore`` (or anything with its interface).
        tasks: directions to train; each needs its pair in the store's training split.
        max_tokens: longest side, tag and end included; longer sentences are passed over (``dropped`` counts them).
        seed: fixes the order; a loaded state brings its own.
        rank, size: which part of a step this process gets.
        bucketed: give batches ``buckets`` (attention without a variable-length kernel).
        single_every: every so many-th step is of one task alone, each as often as any other; 0 none.

    Attributes:
        rows: row numbers in the last delivered step over all ranks, task after task; empty before the first.

    Raises:
        MnmtError: E105 a weight of an unknown direction, E206 a pair without a sentence short enough, E502 a sentence
            longer than a step; from ``next`` E307 an id beyond the vocabulary.
    """

    def __init__(
        self,
        store: Any,
        tasks: TaskSet,
        sampling: SamplingConfig,
        batch: BatchConfig,
        *,
        max_tokens: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        bucketed: bool = True,
        single_every: int = 0,
    ) -> None:
        assert 0 <= rank < size
        self._planner = StepPlanner(
            store, tasks, sampling, batch.batch_tokens, max_tokens=max_tokens, seed=seed, single_every=single_every
        )
        self._tokenizer, self._tasks, self._sampling, self._batch = store.tokenizer, tasks, sampling, batch
        self._max_tokens, self._rank, self._size = max_tokens, rank, size
        self._max_waste = batch.max_waste if bucketed else None
        self.dropped = {pair: c.sentences - c.kept for pair, c in self._planner.counts.items()}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="batches") if batch.prefetch else None
        self._ahead: Future[tuple[list[TaskBatch], NDArray[np.int64], Place]] | None = None
        self._delivered = self._planner.place()
        self.rows = np.zeros(0, dtype=np.int64)

    @property
    def shares(self) -> NDArray[np.float64]:
        """p: [tasks]."""
        return self._planner.shares.copy()

    @property
    def step(self) -> int:
        """Steps delivered so far."""
        return self._delivered.step

    @property
    def drawn(self) -> tuple[int, ...]:
        """[tasks] sentences of each that the steps delivered so far have moved on by, those too long for ``max_tokens``
        included: a whole epoch of a task is all of its sentences."""
        return self._delivered.positions

    def next(self) -> list[TaskBatch]:
        """This rank's ``accumulation`` micro-batches of the next step, on the CPU."""
        if self._executor is None:
            batches, self.rows, self._delivered = self._make()
            return batches
        batches, self.rows, self._delivered = (self._ahead or self._executor.submit(self._make)).result()
        self._ahead = self._executor.submit(self._make)
        return batches

    def plan(self) -> StepPlan:
        """The next step's sentences without their tokens; the stream moves on as by ``next``."""
        self._rewind()
        plan = self._planner.next()
        self.rows, self._delivered = plan.table[ROW], self._planner.place()
        return plan

    def set_shares(self, p: Sequence[float]) -> None:
        """Sample with ``p`` ([tasks], normalised here) from the next step on; becomes part of the state."""
        self._rewind()
        self._planner.set_shares(p)

    def covered(self) -> list[str]:
        """Names of the tasks of which a step of that task alone holds every sentence."""
        return self._planner.covered()

    def describe(self) -> dict[str, Any]:
        """What is sampled how, for the log."""
        return {
            "p": {t.name: float(self._planner.shares[t.index]) for t in self._tasks},
            "tasks_per_batch": min(self._sampling.tasks_per_batch or len(self._tasks), len(self._tasks)),
            "within": self._sampling.within,
            "unit": self._sampling.unit,
            "batch_tokens": self._batch.batch_tokens,
            "budget": self._planner.budget,
            "parts": self._size * self._batch.accumulation,
            "max_tokens": self._max_tokens,
            "sentences": {pair: c.kept for pair, c in self._planner.counts.items()},
            "dropped": dict(self.dropped),
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last delivered step, the same on all ranks; JSON keeps it exactly."""
        return self._planner.state_dict(self._delivered)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the stream that gave ``state``, its seed included, on any number of ranks. Shares that a method set
        are part of the state; those of the settings are not, so that other settings may be resumed with.

        Raises:
            MnmtError: E405 when it belongs to other tasks, another corpus or another length limit.
        """
        self._rewind()
        self._planner.load_state_dict(state)
        self._delivered = self._planner.place()
        self.rows = self.rows[:0]

    def close(self) -> None:
        """End the prefetching thread; ``next`` goes on without it."""
        self._rewind()
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None

    def _make(self) -> tuple[list[TaskBatch], NDArray[np.int64], Place]:
        plan = self._planner.next()
        parts = self._size * self._batch.accumulation
        dealt = deal(plan.table[SOURCE_LENGTH] + plan.table[TARGET_LENGTH], parts)
        mine = [dealt[micro * self._size + self._rank] for micro in range(self._batch.accumulation)]
        batches = [self._pack(plan, micro, members) for micro, members in enumerate(mine)]
        return batches, plan.table[ROW], self._planner.place()

    def _pack(self, plan: StepPlan, micro: int, members: NDArray[np.int64]) -> TaskBatch:
        table = plan.table[:, members]
        tokens = [self._planner.readers[t.index].tokens for t in plan.tasks]
        return assemble(
            ([source for source, _ in tokens], [target for _, target in tokens]),
            (table[SOURCE_START], table[TARGET_START]),
            (table[SOURCE_LENGTH], table[TARGET_LENGTH]),
            np.searchsorted(members, plan.bounds).tolist(),
            plan.tasks,
            self._tokenizer,
            step=plan.step,
            micro=micro,
            rows=table[ROW],
            step_tokens=plan.step_tokens,
            max_waste=self._max_waste,
        )

    def _rewind(self) -> None:
        """Forget a step that was made ahead."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.exception()  # waits; what went wrong there goes wrong again when it is asked for
            self._planner.go_to(self._delivered)


def deal(tokens: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
    """Sentences of each part, ascending: dealt from the longest to the shortest, back and forth over the parts, so that
    any two parts differ by less than the longest sentence.

    Args:
        tokens: [sentences] of both sides together.
    """
    if parts == 1:
        return [np.arange(len(tokens))]
    order = np.argsort(-tokens, kind="stable")
    there = np.arange(parts)
    part = np.tile(np.concatenate((there, there[::-1])), math.ceil(len(order) / (2 * parts)))[: len(order)]
    return [np.sort(order[part == q]) for q in range(parts)]


def evaluation_batches(
    store: Any,
    task: Task,
    split: str,
    *,
    max_tokens: int,
    batch_tokens: int,
    limit: int | None = None,
    bucketed: bool = True,
    max_waste: float = 0.15,
) -> Iterator[TaskBatch]:
    """Every sentence of ``split`` once, one task alone (K = 1), the longest first; ``rows`` tell which sentence it is.

    Sides longer than ``max_tokens`` are cut (``count_cut`` says how many). A batch holds at most ``batch_tokens`` (longer
    side, tag and end included), or one sentence. ``step_tokens`` are those of the batch.

    Args:
        limit: only the first so many sentences of the split.
    """
    sides, starts, lengths = _split_sides(store, task, split, limit)
    lengths = [np.minimum(n, max_tokens - FRAME) for n in lengths]
    longer = np.maximum(*lengths)
    order = np.lexsort((-(lengths[0] + lengths[1]), -longer))
    ends = np.cumsum(longer[order] + FRAME)
    begin = number = 0
    while begin < len(order):
        spent = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(ends.searchsorted(spent + batch_tokens, side="right")))
        members = order[begin:end]
        yield assemble(
            [[side] for side in sides],
            [s[members] for s in starts],
            [n[members] for n in lengths],
            [0, len(members)],
            (task,),
            store.tokenizer,
            step=number,
            micro=0,
            rows=members,
            step_tokens=None,
            max_waste=max_waste if bucketed else None,
        )
        begin, number = end, number + 1


def count_cut(store: Any, task: Task, split: str, *, max_tokens: int, limit: int | None = None) -> int:
    """Sentences of ``split`` of which ``evaluation_batches`` cuts a side."""
    _, _, lengths = _split_sides(store, task, split, limit)
    return int(np.count_nonzero(np.maximum(*lengths) > max_tokens - FRAME))


def _split_sides(store: Any, task: Task, split: str, limit: int | None) -> tuple[list[Any], list[Any], list[Any]]:
    corpus = store.pair(task.pair, split)
    count = len(corpus) if limit is None else min(limit, len(corpus))
    sides = [corpus.side(language) for language in (task.source, task.target)]
    offsets = [np.asarray(side.offsets[: count + 1]).astype(np.int64) for side in sides]
    return [np.asarray(side.tokens) for side in sides], [o[:-1] for o in offsets], [np.diff(o) for o in offsets]
