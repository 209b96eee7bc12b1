"""The best response within a chi-square ball. Pure: numbers in, numbers out.

Shape legend: T tasks of the training.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def half_chi_square(q: Any, p: Any) -> float:
    """sum_k p_k (q_k / p_k - 1)^2 / 2 over the tasks with p_k > 0; q is 0 where p is."""
    q, p = np.asarray(q, dtype=np.float64), np.asarray(p, dtype=np.float64)
    there = p > 0
    return 0.5 * float(p[there] @ (q[there] / p[there] - 1.0) ** 2)


def best_response(p: Any, losses: Any, *, rho: float, min_ratio: float = 0.0) -> Floats:
    """The q that weighs high losses most and is as far from p as rho allows.

    Zhou, Levy, Li, Ghazvininejad, Neubig 2021, "Distributionally Robust Multilingual Machine Translation", with the steps of
    their code: q = p relu(losses - eta), divided by its sum; q / p raised to ``min_ratio`` where it is less; divided by the
    sum again; eta found by bisection such that ``half_chi_square(q, p)`` of the outcome is rho. With ``min_ratio`` 0 that is
    the maximum of sum q_k losses_k over the simplex within radius rho (the Karush-Kuhn-Tucker conditions give q this form).

    The divergence rises with eta. Where even eta -> max(losses), which leaves the tasks with the largest loss alone, stays
    within rho, this limit is the answer (their code divides 0 by 0 there).

    Args:
        p: [T] sums to 1; a task with 0 stays at 0.
        losses: [T] finite where p > 0; only their differences count.
        rho: radius, >= 0; 0 gives p.
        min_ratio: in [0, 1).

    Returns:
        [T] q, sums to 1.
    """
    p, losses = np.asarray(p, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    there = p > 0
    q = np.zeros_like(p)
    base, above = p[there], losses[there] - losses[there].max()  # at most 0, eta too
    spread = -float(above.min())
    if rho == 0.0 or spread == 0.0:
        q[there] = base
        return q
    worst = _raised(base, np.where(above == 0.0, 1.0, 0.0), min_ratio)
    if half_chi_square(worst, base) <= rho:
        q[there] = worst
        return q
    # |q / p - 1| <= spread / (min(losses) - eta), and raising small ratios brings q nearer to p: below rho here
    low, high = -spread - spread / math.sqrt(2.0 * rho), 0.0
    while low < (eta := 0.5 * (low + high)) < high:
        if half_chi_square(_raised(base, np.maximum(above - eta, 0.0), min_ratio), base) <= rho:
            low = eta
        else:
            high = eta
    q[there] = _raised(base, np.maximum(above - low, 0.0), min_ratio)
    return q


def _raised(p: Floats, weights: Floats, min_ratio: float) -> Floats:
    ratios = np.maximum(weights / (p @ weights), min_ratio)
    q = p * ratios
    return q / q.sum()
