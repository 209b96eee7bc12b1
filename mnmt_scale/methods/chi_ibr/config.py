"""Settings of chi_ibr."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ...settings import Section

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class ChiIbrConfig(Section):
    """Sampling by the worst case within a chi-square ball around the shares of ``sampling`` (iterated best response). The
    paper's ball is around the sizes: ``sampling.temperature = 1``."""

    rho: Annotated[float, Field(ge=0.0)] = 0.05
    """Radius: half the chi-square divergence of the new shares from those of ``sampling`` (0.05 and 0.1 in the scripts of
    the paper's code). 0 keeps the shares as they are."""
    min_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """No share falls below about this part of its start (0.2 in the paper's code; dividing by the sum afterwards makes it a
    little less)."""
    ema: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Weight of the newest loss in each direction's running mean, which moves in steps that hold the direction."""
    every_steps: Positive = 1000
    """Updates between two best responses. The paper's is an epoch; steps of a mixed stream have none, so set it to the
    sentences of all pairs over the sentences of a step to follow it."""
    warmup_steps: NonNegative = 1000
    """No best response before so many updates (one epoch in the paper)."""
