"""What a training method is: the questions that the loop asks it.

A method decides how strongly each task counts, may decide how often it is seen, and says what it wants to observe; it
never holds the trainer. At every step the loop asks ``scales`` (before the forward pass) and ``wants``; then, where that
asked for something, ``weigh`` (only for a Gram that comes first) and, after the update, ``observe``, ``shares``, ``log`` and
``measured``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..settings import Section
from .affinity.config import AffinityConfig, FtacConfig
from .cats.config import CatsConfig
from .chi_ibr.config import ChiIbrConfig
from .gradnorm.config import GradNormConfig
from .gramian.config import GramianConfig
from .gramian.config import label as gramian_label
from .multidds.config import MultiDdsConfig

if TYPE_CHECKING:  # settings are read without torch
    from ..flow import Observation, Request, TaskBatch, TaskGram

Name = Literal["joint", "cats", "gradnorm", "gramian", "multidds", "chi_ibr", "affinity", "ftac"]
NEED_GRADIENTS = ("cats", "gradnorm", "gramian", "multidds")
"""Methods that see the gradients of single tasks."""


class MethodConfig(Section):
    """Which method decides how the tasks count, and the settings of each; only those of the one named are read."""

    name: Name = "joint"
    """``joint``: one model for all directions, the loss is the plain mean over target tokens. ``cats``: curvature-aware
    task scaling. ``gradnorm``: gradient norms that follow training rates. ``gramian``: any weighting of torchjd.
    ``multidds``: sampling by agreement with dev gradients. ``chi_ibr``: sampling by the chi-square worst case.
    ``affinity``: ``joint`` with steps of single directions in between, which measure how training one changes the loss of the
    others. ``ftac``: one cluster of directions with helpers that fade."""
    cats: CatsConfig = CatsConfig()
    gradnorm: GradNormConfig = GradNormConfig()
    gramian: GramianConfig = GramianConfig()
    multidds: MultiDdsConfig = MultiDdsConfig()
    chi_ibr: ChiIbrConfig = ChiIbrConfig()
    affinity: AffinityConfig = AffinityConfig()
    ftac: FtacConfig = FtacConfig()


def label(config: MethodConfig) -> str:
    """What a table or a log calls the method; one that works on stale weights has a name of its own."""
    return gramian_label(config.gramian) if config.name == "gramian" else config.name


def state_name(config: MethodConfig) -> str:
    """What tells whether the state of one method can be another's: its name, with the weighting of ``gramian``."""
    return f"gramian {config.gramian.weighting}" if config.name == "gramian" else config.name


@dataclass(frozen=True, slots=True)
class Facts:
    """What a method is told about the training when it is made.

    Attributes:
        names: of the tasks, by index.
        shares: [tasks] p, how often each is sampled as the settings have it.
        tasks_per_batch: K, tasks of a step.
        seed: ``train.seed``.
        sizes: [tasks] training sentences.
        max_steps: ``train.max_steps``.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]
    tasks_per_batch: int
    seed: int
    sizes: tuple[int, ...] = ()
    max_steps: int = 0


class Method(Protocol):
    """The contract between the loop and a method, with the answers of one that wants nothing. State must be
    JSON-serialisable, and everything a pure function of what was observed, so that all ranks agree without talking."""

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """[K] factor of each task's summed token losses; ``1 / sum(batch.step_tokens)`` for the token mean, ``alpha_k /
        batch.step_tokens[k]`` (0 where a task has no tokens) for ``sum_k alpha_k L_k``."""
        ...

    def wants(self, step: int) -> Request | None:
        """What to observe at the step after ``step`` updates, or None for an ordinary one."""
        return None

    def weigh(self, gram: TaskGram, batch: TaskBatch) -> tuple[float, ...]:
        """``scales`` that depend on this step's Gram; asked where ``wants`` said ``gram = "first"`` and all is finite."""
        raise AssertionError("never asked for a Gram that comes first")

    def observe(self, observation: Observation) -> None:
        """Called after a step for which ``wants`` asked for something; a Gram in it is finite."""
        return None

    def shares(self) -> list[float] | None:
        """[tasks] sampling probabilities to use from the next step on (any positive multiple), once after they changed;
        else None. Asked before the first step too."""
        return None

    def measured(self, step: int, last: bool) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What it measured so far, as metadata (``kind`` and what that kind has of its own) and tensors of a probe file
        (``probes``), where one is due after ``step`` updates; ``last`` when the training ends here."""
        return None

    def log(self) -> dict[str, Any]:
        """What it decided last, for the run's metrics: ``weights`` {task index: weight} and any scalars by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint, as JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of ``state_dict``."""
        assert not state, state


def weighted_means(alpha: list[float] | tuple[float, ...], batch: TaskBatch) -> tuple[float, ...]:
    """``scales`` of ``sum_k alpha_k L_k``: alpha_k / N_k, 0 for a task without tokens in this step."""
    return tuple(a / n if n else 0.0 for a, n in zip(alpha, batch.step_tokens, strict=True))


def token_mean(batch: TaskBatch) -> tuple[float, ...]:
    """``scales`` of the plain mean over the step's predicted tokens: [K], all 1 / N."""
    total = sum(batch.step_tokens)
    return tuple(1.0 / total if total else 0.0 for _ in batch.tasks)
