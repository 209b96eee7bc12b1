"""Settings of gradnorm."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...errors import MnmtError
from ...model.groups import GROUPS
from ...settings import Section

PositiveFloat = Annotated[float, Field(gt=0.0)]


class GradNormConfig(Section):
    """Task weights that make gradient norms follow relative training rates (Chen et al., 2018)."""

    asymmetry: Annotated[float, Field(ge=0.0)] = 1.5
    """The paper's alpha: how strongly tasks that have learnt less are pulled up; 0 only makes gradient norms equal. The
    paper takes 1.5 for its real tasks and 0.12 for its constructed ones, and asks for more where tasks differ in how they
    learn, as language pairs of very different sizes do."""
    learning_rate: PositiveFloat = 0.025
    """Of the weights, which are 1 on average, by plain gradient descent. The gradient in a weight is the norm of its task's
    gradient, so the right rate depends on the scale of the losses; this one is ours."""
    every: Annotated[int, Field(gt=0)] = 1
    """Update the weights every this many steps. The paper does at each."""
    groups: Literal["all"] | list[str] = "all"
    """Parameters whose gradient norms count: all, or groups such as ``["D.FC"]`` (E.SA, E.FC, E.LN, D.SA, D.EA, D.FC, D.LN,
    embeddings). The paper takes the last layer that all tasks share, to save time; here the norms of all cost the same."""
    minimum: PositiveFloat = 0.01
    """Smallest weight. The paper has none and gradient descent may cross zero, after which the task would be unlearnt."""

    @model_validator(mode="after")
    def _fits(self) -> GradNormConfig:
        if self.groups == []:
            raise ValueError("groups is empty; name some, or set 'all'")
        for name in self.groups if self.groups != "all" else ():
            if name not in GROUPS:
                where, remedy = "method.gradnorm.groups", f"one of {', '.join(GROUPS)}"
                raise MnmtError("E102", f"no group of parameters '{name}'", where=where, remedy=remedy)
        if self.minimum >= 1.0:
            raise ValueError("minimum must be below 1, the mean of all weights")
        return self
