"""What happens around an update because a method asked for it: the Gram, its refusal when it is not finite, alignment, and
what held sentences lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import MnmtError
from ..flow import Observation, Request, StepReport, TaskGram
from ..methods.spec import Method
from ..runlog import RunLog
from .alignment import measure_alignment
from .learner import Learner
from .lookahead import Held, look_again


def observe(
    learner: Learner,
    method: Method,
    request: Request,
    report: StepReport,
    gram: TaskGram | None,
    log: RunLog,
    held: Held | None = None,
) -> bool:
    """Shows the method what it asked for and takes its new sampling shares over. Collective.

    Args:
        held: sentences that were measured before the update, where a lookahead was asked for.

    Returns:
        False when what was measured was not finite: then the method sees nothing of this step.

    Raises:
        MnmtError: E505 when that happened more than ``engine.task_gradients.max_bad`` times in a row.
    """
    if gram is not None and not _agreed(learner, [gram.tasks[slot] for slot in gram.bad], log):
        return False
    if report.skipped:  # the weights are the old ones: nothing was learnt from this step
        return False
    alignment = measure_alignment(learner, learner.task_gradients) if request.alignment else None
    if alignment is not None and not _agreed(learner, [j for j, r in enumerate(alignment) if not math.isfinite(r)], log):
        return False
    change = look_again(learner, held) if held is not None else None
    if change is not None and not _agreed(learner, change.bad, log, "loss"):
        return False
    method.observe(Observation(report, gram, alignment, change, learner.stream.drawn))
    shares = method.shares()
    if shares is not None:
        learner.stream.set_shares(shares)
    return True


def log_method(learner: Learner, method: Method, log: RunLog, label: str) -> None:
    """One line of metrics with the weights by direction and the method's scalars."""
    values: dict[str, Any] = dict(method.log())
    if not values:
        return
    names = learner.tasks.names
    if "weights" in values:
        values["weights"] = {names[task]: float(weight) for task, weight in sorted(values["weights"].items())}
    log.record("method", step=learner.step, name=label, **values)


def _agreed(learner: Learner, bad: Sequence[int], log: RunLog, what: str = "gradient") -> bool:
    """True when nothing of a task is ``bad``; else the observation is counted. What is measured is equal on all ranks, and
    so is what follows from it."""
    if not bad:
        learner.bad_in_row = 0
        return True
    learner.bad_observations += 1
    learner.bad_in_row += 1
    names = ", ".join(learner.tasks.names[task] for task in bad)
    text = f"{what} of {names} not finite, observation left out ({learner.bad_observations} so far)"
    log.record("event", step=learner.step, text=text)
    log.say(f"step {learner.step}: {text}")
    if learner.bad_in_row > learner.config.engine.task_gradients.max_bad:
        raise MnmtError(
            "E505",
            f"{what} of {names} not finite, {learner.bad_in_row} observations in a row",
            where=f"step {learner.step}",
            remedy="no method saw them; lower the learning rate, look at the batches that were written down, "
            "or raise engine.task_gradients.max_bad",
        )
    return False
