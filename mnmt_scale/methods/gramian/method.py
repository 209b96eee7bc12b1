"""gramian: any weighting of torchjd under ZeRO, from the Gram matrix of this step's per-task gradients.

``weights = "current"``: every step is measured first (``Request(gram="first")``), torchjd turns the [K, K] Gram into
weights w, and the update is that of ``sum_k w_k L_k``: what torchjd does on one process with the whole Jacobian, at the
price of a second forward and backward pass. ``"lagged"``: w comes from the last Gram that was observed beside an update;
that is another method, ``config.label`` says so, and its state lives in the checkpoint.

Deviations from torchjd, all of them where its fixed set of objectives meets batches of changing tasks:
    - a task without tokens in a step has no gradient: it is left out before torchjd sees the Gram, as if it did not exist;
    - state (GradVac, Nash-MTL, CR-MOGM) is kept per task or pair of tasks;
    - the Gram is fp64, and inner products are those of the engine (a preconditioner among them, where one is set).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import MnmtError
from ...flow import Request
from ..spec import Facts, Method, weighted_means
from .config import GramianConfig, label
from .weighting import NoSolution, Weighting

if TYPE_CHECKING:
    from ...flow import Observation, TaskBatch, TaskGram


class Gramian(Method):
    """Asks torchjd at every step (``current``) or after every ``every``-th (``lagged``).

    Raises:
        MnmtError: E801 where torchjd or a solver is missing, E102 for arguments that torchjd refuses; in training, E506
            after ``max_failures`` steps in a row for which it found no weights.
    """

    def __init__(self, config: GramianConfig, facts: Facts) -> None:
        self.config = config
        self.weighting = Weighting(
            config.weighting,
            config.arguments,
            num_tasks=len(facts.names),
            tasks_per_batch=facts.tasks_per_batch,
            seed=facts.seed,
        )
        self.weights: dict[int, float] = {}  # last of each task; under "lagged" those that scales() uses
        self.failed = self.failed_in_row = self.idle = 0

    def wants(self, step: int) -> Request | None:
        if self.config.weights == "current":
            return Request(gram="first")
        return Request(gram="beside") if step % self.config.every == 0 else None

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """``current``, where the Gram was not finite and ``weigh`` was not asked: the mean of the tasks with tokens.
        ``lagged``: the last weights; a task without any gets the mean of those that have some, and before the first
        observation all count alike."""
        present = sum(n > 0 for n in batch.step_tokens)
        if self.config.weights == "current" or not self.weights:
            return weighted_means([1.0 / max(1, present)] * len(batch.tasks), batch)
        mean = sum(self.weights.values()) / len(self.weights)
        return weighted_means([self.weights.get(task, mean) for task in batch.tasks], batch)

    def weigh(self, gram: TaskGram, batch: TaskBatch) -> tuple[float, ...]:
        found = self._found(gram, batch.step)
        if found is None:
            return self.scales(batch)
        self.weights = found
        return weighted_means([found.get(task, 0.0) for task in batch.tasks], batch)

    def observe(self, observation: Observation) -> None:
        if self.config.weights == "lagged" and observation.gram is not None:
            self.weights.update(self._found(observation.gram, observation.report.step - 1) or {})

    def _found(self, gram: TaskGram, step: int) -> dict[int, float] | None:
        """Weight of each task with tokens; None where there is none, or torchjd found no weights."""
        slots = [slot for slot, tokens in enumerate(gram.tokens) if tokens]
        if not slots:
            return None
        tasks = [gram.tasks[slot] for slot in slots]
        whole = gram.gram
        symmetric = (0.5 * (whole + whole.T))[slots][:, slots]
        try:
            weights = self.weighting(symmetric, tasks, step)
        except NoSolution as error:
            if len(tasks) == 1:  # nothing to weigh: Nash-MTL and Krum do not take a single task
                return {tasks[0]: 1.0}
            self.failed += 1
            self.failed_in_row += 1
            if self.failed_in_row > self.config.max_failures:
                raise MnmtError(
                    "E506",
                    f"no weights for {self.failed_in_row} steps in a row: {error}",
                    where=f"step {step}",
                    remedy="another weighting, a lower learning rate, or a larger method.gramian.max_failures",
                ) from error
            return None
        self.failed_in_row = 0
        self.idle += not any(weights)
        return dict(zip(tasks, weights, strict=True))

    def log(self) -> dict[str, Any]:
        """The weights w of ``sum_k w_k L_k`` (``current``: of this step's tasks with tokens), the name for tables, and the
        steps so far for which torchjd found none, or all of them 0."""
        return {"weights": dict(self.weights), "label": label(self.config), "failed": self.failed, "idle": self.idle}

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": {str(task): weight for task, weight in self.weights.items()},
            "kept": dict(self.weighting.kept),
            "failed": self.failed,
            "failed_in_row": self.failed_in_row,
            "idle": self.idle,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = {int(task): float(weight) for task, weight in state["weights"].items()}
        self.weighting.kept = {key: float(value) for key, value in state["kept"].items()}
        self.failed, self.failed_in_row, self.idle = (int(state[key]) for key in ("failed", "failed_in_row", "idle"))
