"""The global stream: which sentences make up each step, before anything is split over ranks.

What is counted. A sentence costs the tokens of its longer side, tag and end included (``unit = "tokens"``), or 1
(``unit = "sentences"``, of which a step has ``batch_tokens`` divided by the mean cost under p). In each step every task
of the step is credited ``share * budget``, takes the longest run of its coming sentences that the credit covers, and
keeps the rest of the credit. No sentence is passed over and none drawn twice in an epoch, so the realised shares follow
the credited ones to within one sentence per task, for ever. A step may thus be larger than ``batch_tokens`` by less than
one sentence per task; on average it is neither larger nor smaller.

Where ``single_every`` is set, every so many-th step is of one task alone, with the whole budget (``sampler.single_task``).
It reads on from the same cursor and with the same credit, so the state is none the larger; the composition of the mixed
steps is what it would be without.

The sentences of a step and the state are functions of the seed, the step and the settings of sampling and of
``batch_tokens``, never of the number of ranks or micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MnmtError
from ..tasks import Task, TaskSet
from .config import SamplingConfig
from .reader import TARGET_LENGTH, TaskReader, count_pair
from .sampler import TaskSampler, is_single, normalised, single_task, task_shares

_VERSION = 1


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The sentences of one step over all ranks.

    Attributes:
        step: number of the step, from 0.
        tasks: the K tasks, ascending; one that could not yet afford a sentence has none.
        table: [6, sentences] what ``TaskReader.take`` gave, task after task.
        bounds: [K+1] sentences of each task.
        step_tokens: [K] predicted target tokens.
    """

    step: int
    tasks: tuple[Task, ...]
    table: NDArray[np.int64]
    bounds: tuple[int, ...]
    step_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the stream stands: everything that moves from step to step."""

    step: int
    round: int
    positions: tuple[int, ...]
    credits: tuple[float, ...]


class StepPlanner:
    """Endless steps; ``mnmt_scale.data.stream.BatchStream`` hands them out as batches and documents the arguments."""

    def __init__(
        self,
        store: Any,
        tasks: TaskSet,
        sampling: SamplingConfig,
        batch_tokens: int,
        *,
        max_tokens: int,
        seed: int,
        single_every: int = 0,
    ) -> None:
        self._store, self._tasks, self._sampling = store, tasks, sampling
        self._batch_tokens, self._max_tokens, self._single_every = batch_tokens, max_tokens, single_every
        self.counts = {pair: count_pair(store, pair, max_tokens) for pair in tasks.pairs}
        self._check_room()
        self._seed, self._step, self._round = seed, 0, 0
        self._override: list[float] | None = None
        self._open_readers()
        self._use(task_shares(sampling, tasks, store.sizes()))

    def next(self) -> StepPlan:
        """Credit and draw; a step in which no task can afford a sentence yet is credited again."""
        tables: list[NDArray[np.int64]] = []
        while not tables:
            chosen, shares = self._composition()
            bounds = [0]
            for index, share in zip(chosen, shares, strict=True):
                credit = self._credits[index] + share * self.budget
                count, self._credits[index] = self.readers[index].take(credit, tables)
                bounds.append(bounds[-1] + count)
        table = np.concatenate(tables, axis=1)
        predicted = np.concatenate(([0], np.cumsum(table[TARGET_LENGTH] + 1)))
        plan = StepPlan(
            step=self._step,
            tasks=tuple(self._tasks[i] for i in chosen),
            table=table,
            bounds=tuple(bounds),
            step_tokens=tuple(np.diff(predicted[bounds]).tolist()),
        )
        self._step += 1
        return plan

    def _composition(self) -> tuple[list[int], list[float]]:
        """Tasks of the step to come, ascending, and the share of the budget that each is credited."""
        if is_single(self._step, self._single_every):
            sampled = np.flatnonzero(self.shares).tolist()
            return [single_task(self._step, self._single_every, sampled, self._seed)], [1.0]
        self._round += 1
        return self._sampler.shares(self._round - 1)

    def set_shares(self, p: Any) -> None:
        """Sample with ``p`` ([tasks], normalised here) from the next step on; becomes part of the state."""
        p = np.asarray(p, dtype=np.float64)
        assert p.shape == (len(self._tasks),), p.shape
        self._use(normalised(p, "the method's shares"))
        self._override = self.shares.tolist()

    def covered(self) -> list[str]:
        """Names of the tasks of which a step of that task alone holds every sentence."""
        tokens = self._sampling.unit == "tokens"
        all_of = {pair: c.kept * (c.mean_cost if tokens else 1.0) for pair, c in self.counts.items()}
        return [task.name for task in self._tasks if all_of[task.pair] <= self.budget]

    def place(self) -> Place:
        """Where the next step begins."""
        positions = tuple(reader.position for reader in self.readers)
        return Place(self._step, self._round, positions, tuple(self._credits))

    def go_to(self, place: Place) -> None:
        """Go on from ``place``, with the shares as they are now."""
        self._step, self._round, self._credits = place.step, place.round, list(place.credits)
        for reader, position in zip(self.readers, place.positions, strict=True):
            reader.seek(position)

    def state_dict(self, place: Place) -> dict[str, Any]:
        """``place`` with what it takes to come back to it in another process; JSON keeps it exactly."""
        cursors = {}
        for task, reader, position, credit in zip(self._tasks, self.readers, place.positions, place.credits, strict=True):
            epoch, within = divmod(position, reader.sentences)
            cursors[task.name] = {"sentences": reader.sentences, "epoch": epoch, "position": within, "credit": credit}
        return {
            "version": _VERSION,
            "seed": self._seed,
            "step": place.step,
            "round": place.round,
            "max_tokens": self._max_tokens,
            "shares": self._override,
            "cursors": cursors,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; see ``BatchStream.load_state_dict``."""
        self._check_state(state)
        if state["seed"] != self._seed:
            self._seed = state["seed"]
            self._open_readers()
        cursors = [state["cursors"][name] for name in self._tasks.names]
        positions = tuple(c["epoch"] * r.sentences + c["position"] for c, r in zip(cursors, self.readers, strict=True))
        self.go_to(Place(state["step"], state["round"], positions, tuple(c["credit"] for c in cursors)))
        self._override = state["shares"]
        own = task_shares(self._sampling, self._tasks, self._store.sizes())
        self._use(own if self._override is None else np.asarray(self._override))

    def _check_state(self, state: dict[str, Any]) -> None:
        cursors = state.get("cursors", {})
        pairs = (
            ("version", state.get("version"), _VERSION),
            ("max_tokens", state.get("max_tokens"), self._max_tokens),
            ("tasks", sorted(cursors), sorted(self._tasks.names)),
            (
                "sentences",
                {name: cursor["sentences"] for name, cursor in cursors.items()},
                {t.name: r.sentences for t, r in zip(self._tasks, self.readers, strict=True)},
            ),
        )
        for name, theirs, ours in pairs:
            if theirs != ours:
                what = f"the checkpoint's place in the data has {name} = {theirs}, this run {ours}"
                raise MnmtError("E405", what, remedy="resume with the data and the directions that the run began with")

    def _open_readers(self) -> None:
        tokens = self._sampling.unit == "tokens"
        self.readers = [
            TaskReader(self._store, task, seed=self._seed, max_tokens=self._max_tokens, count_tokens=tokens)
            for task in self._tasks
        ]
        self._credits = [0.0] * len(self._tasks)

    def _use(self, p: NDArray[np.float64]) -> None:
        """Sample with p; the mean cost under p fixes the sentences of a step where sentences are the unit."""
        self.shares = p
        self._sampler = TaskSampler(p, self._sampling.tasks_per_batch, self._sampling.within, self._seed)
        self.budget = float(self._batch_tokens)
        if self._sampling.unit == "sentences":
            self.budget /= sum(p[t.index] * self.counts[t.pair].mean_cost for t in self._tasks)

    def _check_room(self) -> None:
        for pair, counts in self.counts.items():
            if counts.longest > self._batch_tokens:
                what = f"a sentence of {counts.longest} tokens does not fit into a step of {self._batch_tokens}"
                remedy = "raise batch.batch_tokens or lower data.max_tokens"
                raise MnmtError("E502", what, where=f"pair {pair}", remedy=remedy)
