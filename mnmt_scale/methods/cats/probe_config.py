"""Settings of the measurements of gradients and curvature."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ...settings import Section

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class ProbeConfig(Section):
    """What ``mnmt probe`` and the probes during training measure, and on which sentences. The CATS paper measures on
    mini-batches of training and says neither how many sentences they hold nor how its eigenvalues were found."""

    gradients_every: NonNegative = 0
    """Updates between two measurements of gradient similarity during training; 0: none."""
    curvature_every: NonNegative = 0
    """Updates between two measurements of the Hessian's spectrum during training; 0: none."""
    split: Literal["train", "dev"] = "train"
    """Which sentences; directions without a dev set are left out with ``dev``."""
    sentences: Positive = 128
    """The first so many sentences of each direction's split, always the same ones."""
    batch_tokens: Positive = 1024
    """Tokens (longer side, tag and end included) of a micro-batch. A Hessian-vector product holds some ten fp32 matrices of
    [tokens, vocabulary]; the result does not depend on it, beyond rounding."""
    directions: list[str] = Field(default_factory=list)
    """Directions to measure (SOURCE-TARGET); empty: all that are trained."""
    lanczos_steps: Positive = 40
    """Hessian-vector products at most per direction; as many fp32 vectors are kept, cut over the ranks."""
    lanczos_tolerance: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Stop when the largest and the smallest eigenvalue are each known within this fraction of themselves."""
    hutchinson_samples: NonNegative = 8
    """Random vectors for the trace; 0: no trace."""
    product: Literal["auto", "replicated", "differences"] = "auto"
    """Hessian-vector products by a second backward pass on a whole fp32 copy of the weights on every rank, or by central
    differences of sharded gradients; ``auto``: replicated at ZeRO-1 and 2, differences at ZeRO-3."""
    difference_step: Annotated[float, Field(gt=0.0, lt=1.0)] = 5e-4
    """``differences``: how far the weights are moved either way, as a fraction of their norm. Larger steps smooth the
    curvature over, smaller ones are noisy where ReLUs switch (see the documentation of the probes)."""
    seed: NonNegative = 1
    """Of Lanczos' start and Hutchinson's vectors, which are the same for every number of ranks."""
    host_memory: bool = False
    """Keep the gradients of the directions, 4 bytes a parameter each over all ranks, in host memory."""
