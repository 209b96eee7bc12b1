"""What a training method is: the questions that the loop asks it.

A method decides how strongly each task counts and what it wants to observe; it never holds the trainer. The loop asks,
in this order: ``scales`` before the forward pass, ``wants`` for what to observe at a step, ``observe`` after the update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..settings import Section

if TYPE_CHECKING:  # settings are read without torch
    from ..flow import StepReport, TaskBatch


class MethodConfig(Section):
    """Which method decides how the tasks count."""

    name: Literal["joint"] = "joint"
    """``joint``: one model for all directions, the loss is the plain mean over target tokens."""


class Method(Protocol):
    """The contract between the loop and a method; state must be JSON-serialisable."""

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """[K] factor of each task's summed token losses; ``1 / sum(batch.step_tokens)`` for the token mean."""

    def wants(self, step: int) -> str | None:
        """Name of what the method must see at this step, or None for an ordinary one."""

    def observe(self, report: StepReport) -> None:
        """Called after a step for which ``wants`` gave a name."""

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint, as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of ``state_dict``."""
