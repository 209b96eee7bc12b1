"""FTAC's training of one cluster: its directions at the shares of the settings, helpers that fade from epoch to epoch.

Eq. 14 and 15 of the paper and the variants of its Table 6 (``temperature`` is Temp., ``decay = 0`` Fix., a groups file with
random helpers Rand., one without helpers HTAC). Where this deviates: ``docs/ftac.md``.
"""

from __future__ import annotations

from typing import Any

from ...errors import MnmtError
from ...flow import Observation, Request, TaskBatch
from ..spec import Facts, Method, token_mean
from .config import FtacConfig
from .sampling import epoch_of, faded_shares


class Ftac(Method):
    """The loss is the plain token mean; what changes is the sampling, once an epoch. It needs no gradients: all that it sees
    is how many sentences were drawn, which is equal on all ranks. Without ``config.tasks`` every direction is served."""

    def __init__(self, config: FtacConfig, facts: Facts) -> None:
        self.config, self.facts = config, facts
        self.served = sorted(facts.names.index(name) for name in config.tasks or facts.names)
        self.epoch_sentences = config.epoch_sentences or sum(facts.sizes) or 1
        self.epoch = 0
        self._drawn = self._begun = (0,) * len(facts.names)
        self._given: list[float] | None = None  # handed over last, by this process
        self._gave = False  # whether the stream samples with what was handed over at any time, not with the settings' shares

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """[K], all equal: 1 / N with N the predicted tokens of the whole step, as the baseline has it."""
        return token_mean(batch)

    def wants(self, step: int) -> Request | None:
        """How many sentences were drawn, after every step; nothing more."""
        return Request()

    def observe(self, observation: Observation) -> None:
        """Count; E moves on with the sentences drawn from all of g_k."""
        self._drawn = observation.drawn
        epoch = epoch_of(sum(self._drawn), self.epoch_sentences)
        if epoch != self.epoch:
            self.epoch, self._begun = epoch, self._drawn

    def probabilities(self) -> list[float]:
        """[tasks] P_k of the present epoch (``auxiliary = "temperature"``: P^_k)."""
        if self.config.auxiliary == "temperature":
            return list(self.facts.shares)
        return faded_shares(self.facts.shares, self.served, self.epoch, self.config.decay).tolist()

    def shares(self) -> list[float] | None:
        """[tasks] ``probabilities``, once where they differ from what was sampled with before, and once after a resume: the
        stream's state has those of before, also where the settings of now no longer let anything fade."""
        plain = self.config.auxiliary == "temperature" or len(self.served) == len(self.facts.names)
        if plain and not self._gave:
            return None
        now = self.probabilities()
        if now == self._given:
            return None
        self._given, self._gave = now, True
        return list(now)

    def log(self) -> dict[str, Any]:
        """Shares in force by task, the epoch, and ``drawn``: by task name, the part of the sentences of this epoch so far
        that came from it; left out where the epoch began with this step."""
        values: dict[str, Any] = {"weights": dict(enumerate(self.probabilities())), "epoch": self.epoch}
        counts = [now - then for now, then in zip(self._drawn, self._begun, strict=True)]
        if sum(counts):
            values["drawn"] = {name: n / sum(counts) for name, n in zip(self.facts.names, counts, strict=True)}
        return values

    def state_dict(self) -> dict[str, Any]:
        """Epoch, counts and the cluster; the shares in force are the stream's."""
        return {
            "served": [self.facts.names[task] for task in self.served],
            "epoch": self.epoch,
            "begun": list(self._begun),
            "drawn": list(self._drawn),
            "gave": self._gave,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of ``state_dict``. Shares that other settings of the resumed run ask for hold from its first step on.

        Raises:
            MnmtError: E405 when the checkpoint is of a model for other directions.
        """
        ours = [self.facts.names[task] for task in self.served]
        if state["served"] != ours:
            raise MnmtError(
                "E405",
                f"the checkpoint is of a model for {', '.join(state['served'])}, this run is for {', '.join(ours)}",
                where="method ftac",
                remedy="give another --run-dir",
            )
        self.epoch, self._begun, self._drawn = state["epoch"], tuple(state["begun"]), tuple(state["drawn"])
        self._gave = state["gave"]
