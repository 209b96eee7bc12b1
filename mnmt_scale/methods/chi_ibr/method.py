"""chi-IBR: tasks are sampled by the worst case near the base shares, so that the model minimises the worst expected loss.

Zhou, Levy, Li, Ghazvininejad, Neubig 2021, "Distributionally Robust Multilingual Machine Translation": the adversary's best
response to running losses becomes the sampling distribution ("iterated best response"). Where this deviates:
``docs/samplers.md``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...flow import Observation, Request, TaskBatch
from ..spec import Facts, Method, token_mean
from .config import ChiIbrConfig
from .resample import best_response, half_chi_square


class ChiIbr(Method):
    """The loss is the plain token mean; what changes is the sampling. It needs no gradients: the losses of each step, label
    smoothing included, are all that it sees, and they are equal on all ranks."""

    def __init__(self, config: ChiIbrConfig, facts: Facts) -> None:
        self.config, self.facts = config, facts
        self._sums = [0.0] * len(facts.names)  # running mean = sum / weight: no pull to 0 from the start
        self._weights = [0.0] * len(facts.names)
        self._q: list[float] = []
        self._changed = False

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """[K], all equal: 1 / N with N the predicted tokens of the whole step, as the baseline has it."""
        return token_mean(batch)

    def wants(self, step: int) -> Request | None:
        """The report of every step, nothing more."""
        return Request()

    def observe(self, observation: Observation) -> None:
        """Move the running losses; at the steps that are due, respond."""
        report, rate = observation.report, self.config.ema
        for task, loss, tokens in zip(report.tasks, report.losses, report.tokens, strict=True):
            if tokens and math.isfinite(loss):
                self._sums[task] += rate * (loss - self._sums[task])
                self._weights[task] += rate * (1.0 - self._weights[task])
        due = report.step % self.config.every_steps == 0 and report.step >= self.config.warmup_steps
        if due and any(self._weights):
            self._q = best_response(
                self.facts.shares, self.losses(), rho=self.config.rho, min_ratio=self.config.min_ratio
            ).tolist()
            self._changed = True

    def losses(self) -> list[float]:
        """[tasks] running losses; a task that was in no step yet counts as the mean of the others, weighted by their
        shares, so that it keeps about its own."""
        means = [s / w if w else math.nan for s, w in zip(self._sums, self._weights, strict=True)]
        known = [i for i, w in enumerate(self._weights) if w]
        total = sum(self.facts.shares[i] for i in known)
        middle = sum(self.facts.shares[i] * means[i] for i in known) / total if total else 0.0
        return [m if w else middle for m, w in zip(means, self._weights, strict=True)]

    def shares(self) -> list[float] | None:
        """[tasks] the best response, once after each."""
        if not self._changed:
            return None
        self._changed = False
        return list(self._q)

    def log(self) -> dict[str, Any]:
        """Shares by task, their divergence from the base, the running losses by task name, and both expected losses."""
        if not self._q:
            return {}
        losses = self.losses()
        return {
            "weights": dict(enumerate(self._q)),
            "losses": dict(zip(self.facts.names, losses, strict=True)),
            "half_chi_square": half_chi_square(self._q, self.facts.shares),
            "expected_loss": float(np.dot(self.facts.shares, losses)),
            "worst_case_loss": float(np.dot(self._q, losses)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Running losses and the last response; the shares in force are the stream's."""
        return {"sums": list(self._sums), "weights": list(self._weights), "shares": list(self._q)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of ``state_dict``."""
        assert len(state["sums"]) == len(self.facts.names), "the checkpoint is of other tasks"
        self._sums, self._weights, self._q = list(state["sums"]), list(state["weights"]), list(state["shares"])
