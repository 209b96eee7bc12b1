"""CATS, acting part: task weights in the loss, observed and updated every m steps.

Li and Gong (2021), Algorithm 1. Between observations training is a plain weighted sum, sum_k alpha_k L_k with L_k the
mean over task k's target tokens; at every m-th update the Gram matrix of the gradients beside that update gives new weights.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import MnmtError
from ...flow import Observation, Request, TaskBatch
from ..spec import Facts, Method, weighted_means
from .config import CatsConfig
from .curvature import Multipliers, Rates, divergence, project, update


class Cats(Method):
    """Weights alpha of all N tasks, of which a batch uses those of its K.

    With ``renormalise`` a batch's weights are its alphas over their sum, and an update moves alpha among these tasks
    only: their sum stays, so that they stay comparable with tasks that were not in the batch. Without, alphas are used
    and replaced as they are. Tasks without tokens in a step take no part in either.

    Raises:
        MnmtError: E104 where ``eps_alpha`` leaves no room for the tasks of a batch.
    """

    def __init__(self, config: CatsConfig, facts: Facts) -> None:
        if config.eps_alpha * facts.tasks_per_batch >= 1.0:
            raise MnmtError(
                "E104",
                f"eps_alpha = {config.eps_alpha} for each of {facts.tasks_per_batch} tasks of a batch is 1 or more in all",
                where="method.cats",
                remedy=f"set method.cats.eps_alpha below {1 / facts.tasks_per_batch:.4g}, or fewer sampling.tasks_per_batch",
            )
        self.config, self.names = config, facts.names
        self.paper = config.alpha_update == "paper"
        self.rates = Rates(
            learning_rate=config.learning_rate,
            lambda_learning_rate=config.lambda_learning_rate,
            lambda_cap=config.lambda_cap,
            eps_curvature=config.eps_curvature,
            eps_alpha=config.eps_alpha,
        )
        tasks = len(facts.names)
        self.initial = 1.0 if config.initial_alpha == "1" else 1.0 / tasks
        self.alpha = [self.initial] * tasks
        self.lambda_c, self.lambda_s, self.lambda_n = 0.0, 0.0, [0.0] * tasks
        self.updates, self.curvature = 0, 0.0

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """[K] alpha_k / N_k, alpha over its sum among the tasks with tokens where ``renormalise`` is on."""
        present = [k for k, tokens in enumerate(batch.step_tokens) if tokens]
        weights = [0.0] * len(batch.tasks)
        for k, weight in zip(present, self._weights([batch.tasks[k] for k in present])[0], strict=True):
            weights[k] = weight
        return weighted_means(weights, batch)

    def wants(self, step: int) -> Request | None:
        """The Gram beside the update, at the last of every m."""
        return Request(gram="beside") if self.config.due(step) else None

    def observe(self, observation: Observation) -> None:
        """Update alpha and the multipliers.

        Raises:
            MnmtError: E506 where alpha is negative or not finite, or its sum far from what it should be.
        """
        seen = observation.gram
        present = [] if seen is None else [k for k, tokens in enumerate(seen.tokens) if tokens]
        if seen is None or not present:
            return
        tasks = [seen.tasks[k] for k in present]
        weights, mass = self._weights(tasks)
        losses = np.array([seen.losses[k] for k in present])
        new, multipliers, self.curvature = update(
            seen.gram.cpu().numpy()[np.ix_(present, present)],
            losses if self.config.losses_count else np.zeros_like(losses),
            weights,
            Multipliers(self.lambda_c, self.lambda_s, np.array([self.lambda_n[n] for n in tasks])),
            self.rates,
            paper=self.paper,
        )
        self.updates += 1
        self._refuse_divergence(tasks, new, observation.report.step)
        self.lambda_c, self.lambda_s = multipliers.lambda_c, multipliers.lambda_s
        for n, weight, floor in zip(tasks, new.tolist(), multipliers.lambda_n.tolist(), strict=True):
            self.alpha[n], self.lambda_n[n] = mass * weight, floor

    def log(self) -> dict[str, Any]:
        """Weights of all tasks as in a batch that holds them all, lambda_c, and alpha' G alpha of the last observation."""
        weights = self._weights(list(range(len(self.names))))[0]
        seen = {"curvature": self.curvature} if self.updates else {}
        return {"weights": dict(enumerate(weights)), "lambda_c": self.lambda_c, **seen, "alpha_updates": self.updates}

    def state_dict(self) -> dict[str, Any]:
        """alpha and lambda_n by task name, the other multipliers, and how many updates made them."""
        return {
            "alpha": dict(zip(self.names, self.alpha, strict=True)),
            "lambda_n": dict(zip(self.names, self.lambda_n, strict=True)),
            "lambda_c": self.lambda_c,
            "lambda_s": self.lambda_s,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of ``state_dict``, whatever the order of the tasks.

        Raises:
            MnmtError: E405 where the state is of another method or another set of tasks.
        """
        kept = state.get("alpha")
        if not isinstance(kept, dict) or "lambda_n" not in state:
            raise MnmtError("E405", "the checkpoint holds no task weights of cats", where="method", remedy=_AFRESH)
        if set(kept) != set(self.names):
            odd = sorted(set(kept) ^ set(self.names))[0]
            which = "is not in the checkpoint" if odd in self.names else "is only in the checkpoint"
            raise MnmtError("E405", f"task weights of other tasks: '{odd}' {which}", where="method.cats", remedy=_AFRESH)
        self.alpha = [float(kept[name]) for name in self.names]
        self.lambda_n = [float(state["lambda_n"][name]) for name in self.names]
        self.lambda_c, self.lambda_s = float(state["lambda_c"]), float(state["lambda_s"])
        self.updates = int(state["updates"])

    def _weights(self, tasks: list[int]) -> tuple[list[float], float]:
        """Weights of tasks that are together in a step, and what one of weight w has to be multiplied by to give alpha."""
        alpha = [self.alpha[n] for n in tasks]
        if not self.config.renormalise:
            return alpha, 1.0
        mass = math.fsum(alpha)  # exactly rounded: does not depend on the order
        if mass == 0.0:  # with eps_alpha = 0 a batch may consist of tasks whose weight has gone to others
            return [1.0 / len(tasks) for _ in tasks], 0.0
        weights = [a / mass for a in alpha]
        floor = self.config.eps_alpha
        if not self.paper and min(weights) < floor:  # alone among larger ones: the bound holds in every batch
            weights = project(np.array(weights), floor).tolist()
        return weights, mass

    def _refuse_divergence(self, tasks: list[int], new: np.ndarray, step: int) -> None:
        usual = 1.0 if self.config.renormalise else self.initial * len(tasks)
        found = divergence(new, usual)
        if found is None:
            return
        slot, clause = found
        count = f"{self.updates} update{'s' if self.updates > 1 else ''} of alpha"
        raise MnmtError(
            "E506",
            f"the weight of {self.names[tasks[slot]]}, {new[slot]:.4g}, {clause} after {count}",
            where=f'step {step}, method.cats.alpha_update = "{self.config.alpha_update}"',
            remedy='set method.cats.alpha_update = "projected"' if self.paper else "lower engine.optimizer.learning_rate",
        )


_AFRESH = "train with the settings of the checkpoint, or begin anew with --resume never"
