"""GradNorm (Chen et al., 2018, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks").

The loss is ``sum_k (w_k / K) L_k``; after an observed step the weights w of the batch's tasks take one step of gradient
descent that brings the norm of ``w_k grad L_k`` nearer to the mean norm, times ``r_k^a`` where r_k says how little task k has
learnt compared with the others. Norms come from the diagonal of the step's Gram, so a step costs what observing costs.

Deviations: a batch may hold K of N tasks, whose sum of weights is what the update keeps; weights have a floor; norms are those
of any groups of parameters; w moves by plain gradient descent (the paper names no optimizer for it); L_k(0) is the loss
of task k in the first step that was observed with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import MnmtError
from ...flow import Request
from ..spec import Facts, Method, weighted_means
from .config import GradNormConfig
from .weights import updated

if TYPE_CHECKING:
    from ...flow import Observation, TaskBatch, TaskGram


class GradNorm(Method):
    """Weights w of all N tasks, 1 at first.

    Raises:
        MnmtError: in training, E102 where ``groups`` names one that the model does not have.
    """

    def __init__(self, config: GradNormConfig, facts: Facts) -> None:
        self.config = config
        self.weights = [1.0] * len(facts.names)
        self.first_losses: list[float | None] = [None] * len(facts.names)
        self.objective = 0.0

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """Of ``sum_k (w_k / K) L_k``, K the tasks with tokens, so that the mean factor of a task is 1 / K."""
        present = max(1, sum(n > 0 for n in batch.step_tokens))
        return weighted_means([self.weights[task] / present for task in batch.tasks], batch)

    def wants(self, step: int) -> Request | None:
        return Request(gram="beside") if step % self.config.every == 0 else None

    def observe(self, observation: Observation) -> None:
        gram = observation.gram
        if gram is None:
            return
        slots = [slot for slot, tokens in enumerate(gram.tokens) if tokens]
        for slot in slots:
            if self.first_losses[gram.tasks[slot]] is None and gram.losses[slot] > 0.0:
                self.first_losses[gram.tasks[slot]] = gram.losses[slot]
        slots = [slot for slot in slots if self.first_losses[gram.tasks[slot]]]  # a loss of exactly 0 has no ratio
        if not slots:
            return
        squares = self._squares(gram)
        tasks = [gram.tasks[slot] for slot in slots]
        weights, self.objective = updated(
            [self.weights[task] for task in tasks],
            [max(0.0, squares[slot]) ** 0.5 for slot in slots],
            [gram.losses[slot] / (self.first_losses[gram.tasks[slot]] or 1.0) for slot in slots],
            asymmetry=self.config.asymmetry,
            learning_rate=self.config.learning_rate,
            minimum=self.config.minimum,
        )
        for task, weight in zip(tasks, weights, strict=True):
            self.weights[task] = weight

    def _squares(self, gram: TaskGram) -> list[float]:
        """[K] squared gradient norms over the chosen groups."""
        if self.config.groups == "all":
            return gram.gram.diagonal().tolist()
        for name in self.config.groups:
            if name not in gram.groups:
                raise MnmtError(
                    "E102",
                    f"this model has no parameters in group '{name}'",
                    where="method.gradnorm.groups",
                    remedy=f"it has {', '.join(gram.groups)}",
                )
        return sum(gram.groups[name].diagonal() for name in set(self.config.groups)).tolist()  # type: ignore[union-attr]

    def log(self) -> dict[str, Any]:
        """w of all tasks (1 on average; the loss of a task counts w / K) and L_grad before the last update."""
        return {"weights": dict(enumerate(self.weights)), "l_grad": self.objective}

    def state_dict(self) -> dict[str, Any]:
        return {"weights": list(self.weights), "first_losses": list(self.first_losses), "l_grad": self.objective}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = [float(w) for w in state["weights"]]
        self.first_losses = [None if x is None else float(x) for x in state["first_losses"]]
        self.objective = float(state["l_grad"])
