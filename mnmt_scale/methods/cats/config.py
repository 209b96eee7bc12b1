"""Settings of CATS: curvature-aware task scaling."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...settings import Section

Rate = Annotated[float, Field(gt=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Interval(Section):
    """From which update on the task weights are updated how often."""

    from_step: Annotated[int, Field(ge=0)]
    """Updates of the model that are done by then; the first interval begins at 0."""
    every: Annotated[int, Field(gt=0)]
    """m of Algorithm 1: updates of the model for one update of the task weights."""


class CatsConfig(Section):
    """Task weights alpha that keep the squared norm of the combined gradient small. Defaults that the paper does not give
    are ours; ``docs/cats.md`` has the reasons and what each choice does."""

    alpha_update: Literal["projected", "paper"] = "projected"
    """``projected``: a gradient step of bounded length, then projection on {sum over the batch = 1, alpha >= eps_alpha}.
    ``paper``: Eq. 4 and Algorithm 1 to the letter, which diverges for ordinary losses (E506 says so when it happens)."""
    learning_rate: Rate = 0.1
    """SGD rate of alpha; the paper chose 0.1 or 0.2 by validation loss. ``projected`` divides it by 1 + 2 lambda_c |G|."""
    lambda_learning_rate: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.1
    """Rate of the multipliers' gradient ascent. The paper is silent; the same as for alpha."""
    lambda_cap: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 100.0
    """``projected``: lambda_c stays within [0, lambda_cap]. The paper has no bound."""
    eps_curvature: NonNegativeFloat = 0.0
    """Squared norm of the combined gradient above which lambda_c rises and below which it falls. The paper calls it epsilon
    and gives no value; 0 asks for the smallest norm, as its Eq. 3 does."""
    eps_alpha: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.005
    """Smallest weight of a task in its batch; times the tasks of a batch it must be below 1. The paper has 0 in Eq. 3 and
    the same epsilon as above, without a value, in Eq. 4."""
    initial_alpha: Literal["1/N", "1"] = "1/N"
    """``1/N`` as in the paper's appendix B, ``1`` as in its Algorithm 1; with ``renormalise`` they are the same."""
    renormalise: bool = True
    """Weights of a batch are alpha divided by its sum over the tasks in the batch, none below ``eps_alpha``, and an update
    moves alpha among these only. The paper, whose batches hold K of N languages, does not say; ``false`` takes alpha as
    it is."""
    loss_term: bool | None = None
    """Whether the losses themselves are in d/d alpha. Eq. 4 has them, and so has ``paper`` unless this is false. On the
    simplex they move weight to the tasks with the lowest loss, so ``projected`` leaves them out unless this is true."""
    schedule: Annotated[list[Interval], Field(min_length=1)] = [
        Interval(from_step=0, every=10),
        Interval(from_step=8000, every=100),
        Interval(from_step=16000, every=1000),
    ]
    """m by update of the model, as in the paper's appendix B (read as: 10 before update 8,000, 100 before 16,000)."""

    @model_validator(mode="after")
    def _schedule_rises(self):
        starts = [interval.from_step for interval in self.schedule]
        if starts[0] != 0:
            raise ValueError(f"schedule must begin with from_step = 0, not {starts[0]}")
        for before, after in itertools.pairwise(starts):
            if after <= before:
                raise ValueError(f"from_step in schedule must rise, but {after} follows {before}")
        return self

    @property
    def losses_count(self) -> bool:
        """``loss_term``, resolved."""
        return self.alpha_update == "paper" if self.loss_term is None else self.loss_term

    def due(self, step: int) -> bool:
        """Whether the update of the model after ``step`` updates is the last of m: the one whose gradients alpha sees."""
        now = max((i for i in self.schedule if i.from_step <= step), key=lambda i: i.from_step)
        return (step - now.from_step + 1) % now.every == 0
