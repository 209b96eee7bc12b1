"""Settings of multidds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ...settings import Section

Positive = Annotated[int, Field(gt=0)]


class MultiDdsConfig(Section):
    """Sampling by agreement with dev gradients (MultiDDS-S). It starts from the shares of ``sampling``; the paper's start is
    ``sampling.temperature = 1``."""

    every_steps: Positive = 1000
    """Updates between two measurements (1000 in the paper's code); after each the sampling shares change."""
    batch_tokens: Positive = 4096
    """Size of the batch of each direction, once of training and once of dev text, that a measurement takes its gradients
    from: tokens of the longer side, over all ranks. The paper's code takes 8 sentences, which is much noisier."""
    objective: Literal["log_probability", "expected_reward"] = "log_probability"
    """What the shares p climb on. ``log_probability``: sum_j r_j log p_j, as the paper's algorithm and code have it; with
    rewards above 0 it ends at p_j = r_j / sum r. ``expected_reward``: sum_j p_j r_j, which REINFORCE estimates; it ends at
    the direction with the largest reward alone (the code's ``--scale-reward``)."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    """Of the Adam that moves one logit per direction (the paper's)."""
    reinforce_steps: Positive = 200
    """Adam steps on each measurement (the paper's). The first moves a logit by learning_rate times this, 0.02, at most; later
    ones, by noisy rewards, up to about four times that."""
