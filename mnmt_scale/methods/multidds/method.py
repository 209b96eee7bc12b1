"""MultiDDS-S: how often a task is seen follows how well its training gradient agrees with the dev gradients of all.

Wang, Tsvetkov, Neubig 2020, "Balancing Training for Multilingual Neural Machine Translation", sections 3 and 4.3: reward of
task j = mean over dev tasks i of the cosine between dev gradient i and training gradient j ("stabilised": cosine by cosine,
not one cosine with the summed dev gradient), an actor with one logit per task. Where this deviates: ``docs/samplers.md``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...flow import Observation, Request, TaskBatch
from ..spec import Facts, Method, token_mean
from .config import MultiDdsConfig
from .sampler import Actor, fitted, reinforce, shares


class MultiDds(Method):
    """The loss is the plain token mean; what changes is the sampling. Tasks whose share is 0 at the start keep it.

    Everything is computed in float64 from rewards that are equal on all ranks, so all ranks get the same shares.
    """

    def __init__(self, config: MultiDdsConfig, facts: Facts) -> None:
        self.config, self.facts = config, facts
        self._sampled = [task for task, share in enumerate(facts.shares) if share > 0]
        self._actor = fitted([facts.shares[task] for task in self._sampled])
        self._rewards: tuple[float, ...] = ()
        self._changed = False

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """[K], all equal: 1 / N with N the predicted tokens of the whole step, as the baseline has it."""
        return token_mean(batch)

    def wants(self, step: int) -> Request | None:
        """The rewards after every ``every_steps``-th update."""
        return Request(alignment=True) if (step + 1) % self.config.every_steps == 0 else None

    def observe(self, observation: Observation) -> None:
        """Move the actor by rewards that are finite."""
        rewards = observation.alignment
        assert rewards is not None
        assert len(rewards) == len(self.facts.names)
        self._rewards = tuple(rewards)
        self._actor = reinforce(
            self._actor,
            [rewards[task] for task in self._sampled],
            objective=self.config.objective,
            learning_rate=self.config.learning_rate,
            steps=self.config.reinforce_steps,
        )
        self._changed = True

    def shares(self) -> list[float] | None:
        """[tasks] the actor's shares, after each measurement."""
        if not self._changed:
            return None
        self._changed = False
        return self._p()

    def log(self) -> dict[str, Any]:
        """Shares by task, rewards of the last measurement by task name, and their mean."""
        if not self._rewards:
            return {}
        return {
            "weights": dict(enumerate(self._p())),
            "rewards": dict(zip(self.facts.names, self._rewards, strict=True)),
            "mean_reward": float(np.mean(self._rewards)),
        }

    def state_dict(self) -> dict[str, Any]:
        """The actor and the last rewards; the shares in force are the stream's."""
        return {
            "logits": self._actor.logits.tolist(),
            "first": self._actor.first.tolist(),
            "second": self._actor.second.tolist(),
            "steps": self._actor.steps,
            "rewards": list(self._rewards),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of ``state_dict``."""
        logits, first, second = (np.array(state[name], dtype=np.float64) for name in ("logits", "first", "second"))
        assert logits.shape == self._actor.logits.shape, "the checkpoint is of other tasks"
        self._actor = Actor(logits, first, second, state["steps"])
        self._rewards = tuple(state["rewards"])

    def _p(self) -> list[float]:
        p = np.zeros(len(self.facts.names))
        p[self._sampled] = shares(self._actor.logits)
        return p.tolist()
