"""Affinity probing: a joint training in which every n-th step holds one direction alone and shows what it does to others.

FTAC, Eq. 7 and 8: Z_{j->i} adds up log p(y|x, M^{t+1}) - log p(y|x, M^t) over steps t, where M^{t+1} is M^t after an update
on task j alone and (x, y) is held text of task i. The update is an ordinary one of the training, with the optimizer's state.
Where this deviates: ``docs/ftac.md``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...data.order import mix, shuffled
from ...data.sampler import is_single
from ...errors import MnmtError
from ...flow import Lookahead, LossChange, Observation, Request, TaskBatch, TaskGram
from ..spec import Facts, Method, token_mean
from .config import AffinityConfig
from .probe import Windows

_AFFECTED = 0x61666663


class Affinity(Method):
    """The loss is the plain token mean at every step, of one task or of several. Which steps are of one task is the
    stream's (``data.sampler.single_task``), of which this class knows the rhythm alone."""

    def __init__(self, config: AffinityConfig, facts: Facts) -> None:
        self.config, self.facts = config, facts
        self.windows = Windows(len(facts.names), config.window_steps or max(1, facts.max_steps // 10))
        self._measured = 0

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """[K], all equal: 1 / N with N the predicted tokens of the whole step."""
        return token_mean(batch)

    def wants(self, step: int) -> Request | None:
        """A lookahead around single steps, the Gram beside mixed ones that are due."""
        every = self.config.every_steps
        if is_single(step, every):
            return Request(lookahead=Lookahead(self._affected(step), self.config.split, self.config.held_tokens))
        mixed = step - step // every
        due = self.config.estimate_every and (mixed + 1) % self.config.estimate_every == 0
        return Request(gram="beside") if due else None

    def observe(self, observation: Observation) -> None:
        """Adds what was measured or estimated to the window that the step belongs to."""
        window = self.windows.at(observation.report.step)
        if observation.change is not None:
            affected, values = self._values(observation.change)
            window.add(observation.change.trained, affected, values)
            self._measured += 1
        if observation.gram is not None:
            window.add_estimate(*self._estimates(observation.gram, observation.report.learning_rate))

    def measured(self, step: int, last: bool) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The probe file ``affinity`` at the end of each window, and of the training."""
        if not self.windows.all or not (last or self.windows.ended(step)):
            return None
        config = self.config
        about = {
            "kind": "affinity",
            "split": config.split,
            "windows": self.windows.spans(step),
            "quantity": quantity(config),
            "estimate": estimate_quantity(config),
            "rows": "trained",
            "columns": "affected",
            "change": config.change,
            "normalise": config.normalise,
            "held_tokens": config.held_tokens,
            "affected": config.affected,
            "every_steps": config.every_steps,
        }
        return about, self.windows.tensors()

    def log(self) -> dict[str, Any]:
        """How often it measured, the smallest number of measurements of a cell, the means on and off the diagonal."""
        if not self._measured:
            return {}
        mean, tasks = self.windows.mean(), len(self.facts.names)
        own = float(np.trace(mean))
        return {
            "measured_steps": self._measured,
            "smallest_count": int(self.windows.total("count").min()),
            "mean_on_itself": own / tasks,
            "mean_on_others": (float(mean.sum()) - own) / max(tasks * (tasks - 1), 1),
        }

    def state_dict(self) -> dict[str, Any]:
        """Every table of every window, bit for bit, with what was measured."""
        return {"measured": self._measured, "settings": self._settings(), "windows": self.windows.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of ``state_dict``.

        Raises:
            MnmtError: E405 where other settings would make the cells mean something else.
        """
        then, now = state["settings"], self._settings()
        for name in now:
            if then.get(name) != now[name]:
                raise MnmtError(
                    "E405",
                    f"affinity was measured with {name} = {then.get(name)}, this run has {now[name]}",
                    where="method.affinity",
                    remedy="go on with the settings of the checkpoint, or begin anew with --resume never",
                )
        self._measured = int(state["measured"])
        self.windows.load(state["windows"])

    def _settings(self) -> dict[str, Any]:
        """What decides what a cell means."""
        config = self.config
        return {
            "split": config.split,
            "change": config.change,
            "normalise": config.normalise,
            "held_tokens": config.held_tokens,
        }

    def _affected(self, step: int) -> tuple[int, ...]:
        tasks, wanted = len(self.facts.names), self.config.affected
        if not wanted:
            return tuple(range(tasks))
        drawn = shuffled(mix(self.facts.seed, _AFFECTED, step), tasks)[:wanted]
        return tuple(sorted(drawn.tolist()))

    def _values(self, change: LossChange) -> tuple[list[int], list[float]]:
        """The affected tasks of which text was held, and the measurement of each: positive where training j helped i."""
        affected, values = [], []
        for i, before, after, tokens in zip(change.affected, change.before, change.after, change.tokens, strict=True):
            if not tokens or (self.config.change == "ratio" and not before):
                continue
            affected.append(i)
            if self.config.change == "ratio":
                values.append((before - after) / before)  # 1 - after / before without its cancellation
            else:
                values.append((before - after) / (tokens if self.config.normalise == "token" else 1))
        return affected, values

    def _estimates(self, gram: TaskGram, learning_rate: float) -> tuple[list[int], np.ndarray]:
        """To first order an update along task j's preconditioned gradient changes the mean log-probability of i by the
        learning rate times g_i' P g_j."""
        present = [k for k, tokens in enumerate(gram.tokens) if tokens]
        values = learning_rate * gram.gram.cpu().double().numpy()[np.ix_(present, present)]
        if self.config.change == "ratio":
            losses = np.array([gram.losses[k] for k in present])
            values = np.where(losses > 0, values / np.where(losses > 0, losses, 1.0), 0.0)
        return [gram.tasks[k] for k in present], values


def quantity(config: AffinityConfig) -> str:
    """What a cell is, for people."""
    if config.change == "ratio":
        return "1 - loss of i after / loss of i before an update on j"
    per = "per target token" if config.normalise == "token" else f"summed over {config.held_tokens} tokens of held sentences"
    return f"change of the log-probability of i by an update on j, nats {per}"


def estimate_quantity(config: AffinityConfig) -> str:
    """What an estimated cell is, for people."""
    base = "learning rate x <gradient of i, P gradient of j>"
    return f"{base} / loss of i" if config.change == "ratio" else f"{base}, nats per target token"
