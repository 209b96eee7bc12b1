"""The steps that ``mnmt bench train --method`` times: one learner, on which plain and observed steps take turns.

Everything is what ``mnmt train`` does, with its own objects: ``Learner.update``, the method's ``scales``, ``wants``,
``weigh`` and ``observe``. All kinds of steps share one model, one optimizer and the same batches, so that they differ in
what is measured of the tasks and in nothing else. It runs on whatever device the process group has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import dist
from ..data.config import DataConfig
from ..data.packing import only
from ..engine.task_grads import TaskGradients
from ..flow import Request, TaskBatch
from ..methods.catalog import METHODS, make_method
from ..methods.joint import Joint
from ..methods.spec import Facts, Method, MethodConfig, label
from ..model.groups import parameter_group
from ..runlog import RunLog
from ..train.config import RunConfig
from ..train.learner import Learner
from ..train.observe import observe
from ..train.train import resolve_tasks
from .method_text import opened
from .timing import Clock

NAMES = tuple(name for name in METHODS if name not in ("joint", "affinity", "ftac"))
"""Methods that are measured on mixed steps: ``affinity`` needs steps of its own (``affinity_cost``), and ``ftac`` decides what
is sampled alone, which costs nothing."""
ROUTES = ("segmented", "per_task")
PLAIN = "joint, plain step"
FEWEST = 2

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "gramian": ({"weights": "current"}, {"weights": "lagged"}),
}
"""Settings of a method that cost differently; others run as they are by default."""

Batches = list[TaskBatch]


@dataclass
class Variant:
    """A method with its settings.

    Attributes:
        name: as tables call it.
        request: what it asks for at an observed step.
        period: steps from its first observation to its second, in the settings' own schedule.
    """

    name: str
    method: Method
    request: Request
    period: int

    @classmethod
    def of(cls, name: str, settings: dict[str, Any], facts: Facts) -> Variant:
        config = MethodConfig.model_validate({"name": name, name: settings})
        method = make_method(config, facts)
        asked = [step for step in range(10_000) if method.wants(step) is not None][:2]
        assert len(asked) == 2, f"{name} observes nothing"
        request = method.wants(asked[0])
        assert request is not None
        return cls(label(config), method, request, asked[1] - asked[0])

    @property
    def observed_name(self) -> str:
        """Of a step at which it observes."""
        return f"{self.name}, observed step" + (" (second backward pass)" if self.request.gram == "first" else "")

    @property
    def only_gram(self) -> bool:
        """An observation costs nothing but the Gram of the step's own gradients."""
        return self.request.gram == "beside" and not self.request.alignment


@dataclass
class Kind:
    """One kind of step: ``take`` makes it; ``route`` how the gradients of single tasks are measured in it, "" not at all;
    ``every``: it takes part in each so-manieth round."""

    name: str
    take: Callable[[Batches], None] = field(repr=False)
    route: str = ""
    variant: Variant | None = None
    every: int = 1


class Trainee:
    """One model in training, for all kinds of steps.

    Args:
        data: with a store that is there.
        model: settings of ``[model]``.
        num_tasks: K of a step; all directions where there are fewer.
        dtype: of ``engine.dtype``.
        budget: tokens of a step.
        batches: how many different steps' sentences there are to train on, in turn.
        device: ``cpu`` or ``cuda``; None: a GPU where there is one.
        vocabulary_size: as for ``opened``.

    Attributes:
        batches: of each step its one micro-batch, planned by the stream as in training: temperature 5.
    """

    def __init__(
        self,
        data: DataConfig,
        model: dict[str, Any],
        num_tasks: int,
        dtype: str,
        budget: int,
        batches: int = 10,
        *,
        device: str | None = None,
        vocabulary_size: int | None = None,
    ) -> None:
        store = opened(Path(data.store), vocabulary_size)
        config = RunConfig.model_validate(
            {
                "data": data.model_dump(),
                "model": model,
                "sampling": {"tasks_per_batch": num_tasks},
                "batch": {"batch_tokens": budget, "prefetch": False},
                "engine": {"dtype": dtype},
            }
        )
        tasks = resolve_tasks(config, store)
        self.learner = Learner.build(config, store, tasks, dist.join(device))
        self.learner.engine.module.train()
        self.batches = [self.learner.stream.next() for _ in range(batches)]
        self.clock = Clock(self.learner.world.device, flush=False)
        shares = self.learner.stream.shares.tolist()
        self.num_tasks = min(num_tasks, sum(p > 0 for p in shares))
        self.facts = Facts(tuple(tasks.names), tuple(shares), self.num_tasks, config.train.seed)
        self._joint, self._log = Joint(), RunLog(Path(data.store), active=False)
        self._by_route = {route: self._task_gradients(route) for route in ROUTES}

    def _task_gradients(self, route: str) -> TaskGradients:
        config = self.learner.config
        how = config.engine.task_gradients.model_copy(update={"route": route})
        return TaskGradients(self.learner.engine, how, seed=config.train.seed, only=only, group_of=parameter_group)

    @property
    def target_tokens(self) -> list[int]:
        """Predicted target tokens of each of ``batches``."""
        return [sum(step[0].step_tokens) for step in self.batches]

    def variants(self, name: str) -> list[Variant]:
        """The method's variants, for these tasks."""
        return [Variant.of(name, settings, self.facts) for settings in VARIANTS.get(name, ({},))]

    def kinds(self, variants: Sequence[Variant], rare: int = 1) -> list[Kind]:
        """The plain step, and an observed step of each variant by each route; route ``per_task`` in each ``rare``-th round
        only, since it takes several times as long."""
        kinds = [Kind(PLAIN, self.plain)]
        for variant in variants:
            for route in ROUTES:
                if not variant.request.gram and route != ROUTES[0]:
                    continue  # alignment has no routes
                kinds.append(
                    Kind(
                        f"{variant.observed_name}, {route}",
                        partial(self.observed, variant, route),
                        route,
                        variant,
                        rare if route == "per_task" else 1,
                    )
                )
        return kinds

    def plain(self, batches: Batches) -> None:
        """A joint step: nothing is measured."""
        self.learner.update(batches, self._joint.scales(batches[0]))

    def observed(self, variant: Variant, route: str, batches: Batches) -> None:
        """A step at which the method sees what it asks for."""
        self.learner.task_gradients = self._by_route[route]
        self._update(variant.method, variant.request, batches)

    def trained(self, variant: Variant, step: int, batches: Batches) -> None:
        """Step number ``step`` (from 0) of a training with this method, observed or not as the method wants it."""
        self.learner.task_gradients = self._by_route[ROUTES[0]]
        self._update(variant.method, variant.method.wants(step), batches)

    def _update(self, method: Method, request: Request | None, batches: Batches) -> None:
        """As the loop of ``train/loop.py`` makes it."""
        scales = method.scales(batches[0])
        weigh = partial(method.weigh, batch=batches[0])
        report, _, gram = self.learner.update(batches, scales, gram=request.gram if request else "", weigh=weigh)
        if request:
            observe(self.learner, method, request, report, gram, self._log)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Of one call, the device's work included."""
        return self.clock.time(call)[0]

    def in_turns(self, kinds: Sequence[Kind], rounds: int, seconds: float | None = None) -> dict[str, list[float | None]]:
        """Seconds of each kind of step in each round, None where it took no part; in a round all train on the same batch,
        and who begins changes. One round before is not counted.

        Args:
            seconds: shared out evenly; a kind that takes more than its share is left out after ``FEWEST`` rounds, and
                the rounds end once only plain steps are left.
        """
        found: dict[str, list[float | None]] = {kind.name: [] for kind in kinds}
        share = math.inf if seconds is None else seconds / len(kinds)
        for number in range(-1, rounds):
            going_on = [k for k in kinds if k.variant and (number < FEWEST or _within(found[k.name], share))]
            if not going_on:
                break
            batches = self.batches[number % len(self.batches)]
            first = number % len(kinds)
            for kind in [*kinds[first:], *kinds[:first]]:
                takes_part = number < 0 or not kind.variant or (kind in going_on and number % kind.every == 0)
                taken = self.seconds(partial(kind.take, batches)) if takes_part else None
                if number >= 0:
                    found[kind.name].append(taken)
        return found

    def trainings(self, variant: Variant, blocks: int) -> tuple[list[float], list[float]]:
        """Seconds of ``blocks`` stretches of ``variant.period`` steps, joint and with the method as it trains; step by step
        in turns, on the same batches."""
        joint, method = [], []
        for block in range(blocks):
            sums = [0.0, 0.0]
            for place in range(variant.period):
                step = block * variant.period + place
                batches = self.batches[step % len(self.batches)]
                calls = [partial(self.plain, batches), partial(self.trained, variant, step, batches)]
                for side in (0, 1) if step % 2 else (1, 0):
                    sums[side] += self.seconds(calls[side])
            joint.append(sums[0])
            method.append(sums[1])
        return joint, method

    def close(self) -> None:
        """Frees the engine."""
        self.learner.close()
        torch.use_deterministic_algorithms(False)


def _within(seconds: Sequence[float | None], share: float) -> bool:
    """Whether one more step, as long as those before on average, keeps to the share."""
    taken = [s for s in seconds if s is not None]
    return not taken or sum(taken) * (1 + 1 / len(taken)) <= share
