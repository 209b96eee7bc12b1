"""Settings of affinity probing and of training a cluster with helpers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...settings import Section

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class AffinityConfig(Section):
    """Training of the universal model with probing: every n-th step holds one direction j alone, and the log-probability of
    held sentences of directions i is measured before and after its update (FTAC, Eq. 7 and 8)."""

    every_steps: Annotated[int, Field(ge=2)] = 2
    """Of so many steps one is of a single direction; 2, as the paper: mixed and single batches alternate."""
    affected: NonNegative = 0
    """Directions i that are measured around a single-direction step: 0 all of them, 1 one at random (the paper), n n different
    ones at random."""
    held_tokens: Positive = 512
    """Held sentences of each direction i, in tokens of the longer side, tag and end included; drawn anew for every step."""
    split: Literal["train", "dev"] = "train"
    """Where held sentences come from. From training text never sentences of the step itself."""
    change: Literal["absolute", "ratio"] = "absolute"
    """``absolute``: the change of the log-probability (Eq. 7). ``ratio``: 1 - loss after / loss before (TAG; the paper's
    footnote 1)."""
    normalise: Literal["token", "sum"] = "token"
    """``absolute`` changes per target token, or summed over the held sentences."""
    window_steps: NonNegative = 0
    """Steps that are accumulated together; 0: a tenth of ``train.max_steps``."""
    estimate_every: NonNegative = 0
    """Also estimate every pair from gradients, <g_i, P g_j> times the learning rate, at one of so many mixed steps; 0 never.
    P is Adam's preconditioner where ``engine.task_gradients.preconditioner`` says so."""


class FtacConfig(Section):
    """Training of one cluster of directions with others that only help, and less so with every epoch (FTAC, Eq. 14 and 15)."""

    groups: str | None = None
    """Groups file (``mnmt cluster``). The run's own settings name its directions instead, and RUN/groups.json is a copy."""
    cluster: NonNegative = 0
    """Which of its clusters this model is for, from 0."""
    tasks: list[str] | None = None
    """The directions that the model is for (c_k), without a groups file; the others of ``data.tasks`` only help."""
    auxiliary: Literal["fade", "temperature"] = "fade"
    """How helpers are sampled. ``fade``: Eq. 15. ``temperature``: as every other direction (the paper's Temp.)."""
    decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.5
    """lambda of Eq. 15; 0 keeps the helpers' weights as they begin (the paper's Fix.). Without helpers (a groups file of
    ``mnmt cluster htac``) it has no meaning."""
    epoch_sentences: NonNegative = 0
    """Sentences drawn, over all of g_k, that make an epoch; 0: as many as g_k has training sentences."""

    @model_validator(mode="after")
    def _one_source(self):
        if self.tasks is not None and not self.tasks:
            raise ValueError("tasks must not be empty")
        if self.tasks is not None and self.groups is not None:
            raise ValueError("groups and tasks both say what the model is for: give one of them")
        return self
