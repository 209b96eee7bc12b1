"""The actor of MultiDDS: one logit per task, moved by Adam on what the rewards say. Pure: numbers in, numbers out.

Shape legend: T tasks of the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Objective = Literal["log_probability", "expected_reward"]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's, torch's defaults as in the paper's code."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Logits [T], Adam's first and second moments [T] of their gradient, and Adam steps so far."""

    logits: Floats
    first: Floats
    second: Floats
    steps: int


def fitted(p: Any) -> Actor:
    """The actor whose shares are p, with moments 0.

    The paper's code gets there by descent on the mean squared error until it is 1e-6, which may leave a share 0.001 and
    more off its value (the smallest share of TED-8-Related is 0.006), and goes on with the moments of that descent.

    Args:
        p: [T] positive, sums to 1.
    """
    p = np.asarray(p, dtype=np.float64)
    assert (p > 0).all(), "a task that is never sampled has no logit"
    zeros = np.zeros_like(p)
    return Actor(np.log(p), zeros, zeros, 0)


def shares(logits: Floats) -> Floats:
    """Softmax: [T] sampling probabilities."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def ascent(p: Floats, rewards: Floats, objective: Objective) -> Floats:
    """Gradient [T] of the objective with respect to the logits.

    ``log_probability``, sum_j r_j log p_j (Wang, Tsvetkov, Neubig 2020, Algorithm 1: sum over the languages of
    R(j) grad log p_j): r_k - p_k sum_j r_j. Every task counts, however rarely it is sampled; where all rewards are positive
    the only maximum is p = r / sum r, so equal rewards draw the shares to uniform. With a negative reward there is no
    maximum: that task's share falls as long as its reward is negative.

    ``expected_reward``, sum_j p_j r_j, the expectation of REINFORCE's estimate taken exactly instead of sampled:
    p_k (r_k - sum_j p_j r_j). Unmoved by a constant added to all rewards; slow for small shares.

    Args:
        p: [T] shares. rewards: [T].
    """
    if objective == "log_probability":
        return rewards - p * rewards.sum()
    return p * (rewards - p @ rewards)


def reinforce(actor: Actor, rewards: Any, *, objective: Objective, learning_rate: float, steps: int) -> Actor:
    """The actor after ``steps`` steps of Adam, uphill, on rewards [T] that stay as they are meanwhile."""
    rewards = np.asarray(rewards, dtype=np.float64)
    assert rewards.shape == actor.logits.shape
    logits, first, second = actor.logits, actor.first, actor.second
    for step in range(actor.steps + 1, actor.steps + steps + 1):
        gradient = ascent(shares(logits), rewards, objective)
        first = BETA1 * first + (1.0 - BETA1) * gradient
        second = BETA2 * second + (1.0 - BETA2) * gradient**2
        size = np.sqrt(second / (1.0 - BETA2**step)) + EPSILON
        logits = logits + learning_rate * first / (1.0 - BETA1**step) / size
    return Actor(logits, first, second, actor.steps + steps)
