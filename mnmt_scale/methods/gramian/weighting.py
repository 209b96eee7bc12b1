"""From a Gram matrix to weights, by torchjd: the only place that imports it, and only when a weighting is made.

torchjd is written for one process and one fixed set of objectives. Here the tasks of a batch may change from step to step,
every rank must come to the same weights without talking, and a resumed run must go on as if it had not stopped. So a
weighting is made afresh for the tasks of a step; what it remembers is kept by task, as JSON; and what it draws at random
depends on (seed, step) alone and leaves torch's own generators as they were.

Legend: K tasks of the Gram, N tasks of the training.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import MnmtError
from .config import smoothed
from .table import WEIGHTINGS

_WHERE = "method.gramian"
_REMEDY = "pip install 'mnmt_scale[gramian]'"


class NoSolution(RuntimeError):
    """torchjd found no finite weights for this Gram."""


class Weighting:
    """A weighting of torchjd by its name in ``table.WEIGHTINGS``.

    Args:
        arguments: as checked by ``config.check_arguments``.
        num_tasks: N; vectors among the arguments have so many numbers.
        tasks_per_batch: K of a full batch, for the trial that shows at the start what torchjd refuses.
        seed: of what is drawn at random.

    Raises:
        MnmtError: E801 where torchjd or a solver of this weighting is missing, E102 for arguments that torchjd refuses.
    """

    def __init__(self, name: str, arguments: dict[str, Any], *, num_tasks: int, tasks_per_batch: int, seed: int) -> None:
        self.name, self.arguments, self.seed = name, arguments, seed
        self.kept: dict[str, float] = {}  # "task" or "task,task" -> what the weighting remembers of it
        self._check_vectors(name, arguments, num_tasks)
        try:
            self._run(torch.eye(tasks_per_batch, dtype=torch.float64), tuple(range(tasks_per_batch)), step=0)
        except ImportError as error:
            missing = str(error).partition(". Install")[0]
            raise MnmtError("E801", f"{name} cannot run: {missing}", where=f"{_WHERE}.weighting", remedy=_REMEDY) from None
        except Exception as error:  # torchjd and its solvers check their arguments each in their own way
            if tasks_per_batch > 1:  # a single task needs no weighing, and not all of them take one
                raise MnmtError(
                    "E102",
                    f"torchjd refuses {name} with {arguments or 'no arguments'} for {tasks_per_batch} tasks: {error}",
                    where=f"{_WHERE}.arguments",
                ) from error
        self.kept = {}

    def __call__(self, gram: Tensor, tasks: Sequence[int], step: int) -> list[float]:
        """Weights of a step.

        Args:
            gram: [K, K] fp64 on the host, symmetric, of tasks that all have tokens.
            tasks: [K] task indices.
            step: number of the step, from 0.

        Returns:
            [K], as torchjd gives them: how they are scaled, and whether some are negative, is the weighting's own.

        Raises:
            NoSolution: no finite weights; what is remembered stays as it was.
        """
        before = dict(self.kept)
        try:
            weights = self._run(gram, tasks, step)
            if not bool(torch.isfinite(weights).all()):
                raise NoSolution("weights are not finite")
        except Exception as error:  # cvxpy, scipy, quadprog and torch each have errors of their own for a failed solver
            self.kept = before
            raise NoSolution(f"{self.name}: {error}") from error
        return weights.tolist()

    def _run(self, gram: Tensor, tasks: Sequence[int], step: int) -> Tensor:
        assert gram.dtype is torch.float64
        assert gram.shape == (len(tasks), len(tasks))
        drawn = random.Random(f"gramian {self.seed} {step}").getrandbits(63)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(drawn)  # the host's alone: torch.manual_seed would reseed accelerators too
            return self._named(self.name, self.arguments, tasks)(gram)

    def _named(self, name: str, arguments: dict[str, Any], tasks: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """The weighting for these tasks, as a function of their Gram."""
        entry = WEIGHTINGS[name]
        given = {**entry.defaults, **arguments}
        if name == "CRMOGM":
            return lambda gram: self._smoothed(gram, tasks, given)
        for key, kind in entry.arguments.items():
            if kind == "vector" and key in given:
                given[key] = torch.tensor([float(given[key][task]) for task in tasks], dtype=torch.float64)
        if name in ("UPGrad", "DualProj"):
            norms = {key: given.pop(key) for key in ("norm_eps", "reg_eps") if key in given}
            if norms:
                given["projector"] = _projector(**norms)
        aggregation = _aggregation()
        if name == "NashMTL":
            return lambda gram: self._bargained(aggregation.NashMTL(n_tasks=len(tasks), **given).weighting, gram, tasks)
        if name == "ConFIG":
            return lambda gram: _from_vector(aggregation.ConFIG(**given), gram)
        made = getattr(aggregation, f"{name}Weighting")(**given)
        return (lambda gram: self._vaccinated(made, gram, tasks)) if name == "GradVac" else made

    def _vaccinated(self, made: Any, gram: Tensor, tasks: Sequence[int]) -> Tensor:
        """GradVac: the running cosines of all pairs of tasks, 0 at first as in torchjd."""
        keys = [[f"{i},{j}" for j in tasks] for i in tasks]
        _holds(made, "_phi_t", "_state_key")
        made._phi_t = torch.tensor([[self.kept.get(key, 0.0) for key in row] for row in keys], dtype=torch.float64)
        made._state_key = (len(tasks), gram.dtype)
        weights = made(gram)
        for names, values in zip(keys, made._phi_t.tolist(), strict=True):
            self.kept.update(zip(names, values, strict=True))
        return weights

    def _bargained(self, made: Any, gram: Tensor, tasks: Sequence[int]) -> Tensor:
        """Nash-MTL: its iteration starts from the last weights of each task, 1 at first as in torchjd."""
        _holds(made, "prvs_alpha")
        made.prvs_alpha = np.array([self.kept.get(str(task), 1.0) for task in tasks])
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="(?s).*not DPP"
            )  # cvxpy, of how torchjd wrote the problem: slower, no worse
            weights = made(square_root(gram))
        self.kept.update({str(task): float(x) for task, x in zip(tasks, made.prvs_alpha, strict=True)})
        return weights

    def _smoothed(self, gram: Tensor, tasks: Sequence[int], arguments: dict[str, Any]) -> Tensor:
        """CR-MOGM: a moving average of another weighting's weights, which a task not seen before begins with its own."""
        own = {key: value for key, value in arguments.items() if key == "alpha"}
        fresh = self._named(smoothed(arguments), arguments.get("weighting_arguments", {}), tasks)(gram)
        made = _aggregation().CRMOGMWeighting(lambda _: fresh, **own)
        _holds(made, "_lambda")
        kept = [self.kept.get(str(task), float(x)) for task, x in zip(tasks, fresh, strict=True)]
        made._lambda = torch.tensor(kept, dtype=torch.float64)
        weights = made(gram)
        self.kept.update({str(task): float(x) for task, x in zip(tasks, weights, strict=True)})
        return weights

    def _check_vectors(self, name: str, arguments: dict[str, Any], num_tasks: int) -> None:
        for key, value in arguments.items():
            if WEIGHTINGS[name].arguments[key] == "vector" and len(value) != num_tasks:
                raise MnmtError(
                    "E102",
                    f"{name}'s {key} has {len(value)} numbers for {num_tasks} tasks",
                    where=f"{_WHERE}.arguments",
                    remedy="give one for each task of the training, in their order",
                )
        if "weighting_arguments" in arguments:
            self._check_vectors(smoothed(arguments), arguments["weighting_arguments"], num_tasks)


def square_root(gram: Tensor) -> Tensor:
    """[K, K] R with R R' = gram: what stands in for the [K, parameters] Jacobian where torchjd wants that but only uses
    inner products of its rows, which R's rows share. Directions below the rounding of the Gram are set to zero."""
    values, vectors = torch.linalg.eigh(gram)
    floor = values[-1] * len(values) * torch.finfo(gram.dtype).eps
    return vectors * torch.where(values > floor, values, 0.0).sqrt()


def _from_vector(aggregator: Any, gram: Tensor) -> Tensor:
    """Weights of an aggregator that gives only a combined vector: those that combine the rows of R to it."""
    root = square_root(gram)
    return torch.linalg.lstsq(root.T, aggregator(root).unsqueeze(1), driver="gelsd").solution[:, 0]


def _aggregation() -> Any:
    import torchjd.aggregation

    return torchjd.aggregation


def _projector(**norms: float) -> Any:
    from torchjd.linalg import QuadprogProjector

    return QuadprogProjector(**norms)


def _holds(made: Any, *names: str) -> None:
    """What a weighting remembers is read from attributes of torchjd 0.18: another version may name them otherwise, and a
    state that is silently not restored would be worse than none."""
    for name in names:
        if not hasattr(made, name):
            raise AttributeError(f"{type(made).__name__} of this torchjd has no {name}; 0.18 is known to have it")
