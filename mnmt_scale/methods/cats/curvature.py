"""CATS, deciding part: from the Gram matrix of the task gradients to new task weights. Pure, numpy in fp64.

Li and Gong (2021), "Robust Optimization for Multilingual Translation with Imbalanced Data". With G the Gram matrix of the
K gradients of a batch and l their losses, Eq. 4 is

    l . alpha - lambda_c (eps - alpha' G alpha) + lambda_s (sum alpha - 1)^2 - sum_n lambda_n (alpha_n - eps)

with descent in alpha and ascent in the multipliers, all gradients taken at the old values (Algorithm 1, lines 11 to 13).
``paper_step`` does just that. ``projected_step``, ours, keeps the two constraints on alpha by projection, so lambda_s and
lambda_n are gone, and divides the step by 1 + 2 lambda_c |G|: with a learning rate up to 1 it never overshoots, since
2 lambda_c |G| is the Lipschitz constant of the gradient.

Results do not depend on the order of the tasks, to the last bit: the arithmetic is done in an order that the numbers fix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

FAR = 100.0
"""A sum of weights this many times above or below what it should be has diverged."""


@dataclass(frozen=True, slots=True)
class Multipliers:
    """lambda_c of the curvature, lambda_s of the sum, lambda_n [K] of the lower bounds; the last two for ``paper_step``."""

    lambda_c: float
    lambda_s: float
    lambda_n: Vector


@dataclass(frozen=True, slots=True)
class Rates:
    """What the settings say about a step; see ``CatsConfig``. A cap of infinity is none."""

    learning_rate: float
    lambda_learning_rate: float
    lambda_cap: float
    eps_curvature: float
    eps_alpha: float


def update(
    gram: ArrayLike, losses: ArrayLike, alpha: ArrayLike, multipliers: Multipliers, rates: Rates, *, paper: bool
) -> tuple[Vector, Multipliers, float]:
    """One update of task weights and multipliers.

    Args:
        gram: [K, K] inner products of the task gradients, symmetric.
        losses: [K]; zeros leave the loss term out.
        alpha: [K] present weights.
        paper: ``paper_step`` instead of ``projected_step``.

    Returns:
        new alpha [K], new multipliers, and alpha' G alpha of the old alpha.
    """
    matrix, loss, old = (np.asarray(numbers, dtype=np.float64) for numbers in (gram, losses, alpha))
    matrix = (matrix + matrix.T) / 2
    order = _canonical(matrix, loss, old, multipliers.lambda_n)
    matrix, loss, old = matrix[np.ix_(order, order)], loss[order], old[order]
    step = paper_step if paper else projected_step
    new, after = step(matrix, loss, old, replace(multipliers, lambda_n=multipliers.lambda_n[order]), rates)
    back = np.argsort(order)
    return new[back], replace(after, lambda_n=after.lambda_n[back]), curvature(matrix, old)


def projected_step(
    gram: Vector, losses: Vector, alpha: Vector, multipliers: Multipliers, rates: Rates
) -> tuple[Vector, Multipliers]:
    """``update`` that stays on {sum = 1, alpha >= eps_alpha}; lambda_c within [0, cap], falling where alpha' G alpha is
    below eps_curvature."""
    c = multipliers.lambda_c
    length = rates.learning_rate / (1.0 + 2.0 * c * spectral_norm(gram))
    new = project(alpha - length * (losses + 2.0 * c * (gram @ alpha)), rates.eps_alpha)
    risen = c + rates.lambda_learning_rate * (curvature(gram, alpha) - rates.eps_curvature)
    return new, replace(multipliers, lambda_c=min(max(risen, 0.0), rates.lambda_cap))


def paper_step(
    gram: Vector, losses: Vector, alpha: Vector, multipliers: Multipliers, rates: Rates
) -> tuple[Vector, Multipliers]:
    """``update`` by Eq. 4 as it stands: no projection, no bounds, nothing that keeps alpha positive but lambda_n."""
    c, s, n = multipliers.lambda_c, multipliers.lambda_s, multipliers.lambda_n
    excess = float(alpha.sum()) - 1.0
    new = alpha - rates.learning_rate * (losses + 2.0 * c * (gram @ alpha) + 2.0 * s * excess - n)
    rate = rates.lambda_learning_rate
    after = Multipliers(
        lambda_c=c + rate * (curvature(gram, alpha) - rates.eps_curvature),
        lambda_s=s + rate * excess**2,
        lambda_n=n - rate * (alpha - rates.eps_alpha),
    )
    return new, after


def project(point: Vector, floor: float) -> Vector:
    """The nearest point of {x: sum x = 1, x >= floor}, for K * floor < 1.

    The answer is floor + max(point - shift, 0) with the one shift that makes the sum 1; sorting finds how many entries
    are above it (Held, Wolfe and Crowder 1974).
    """
    radius = 1.0 - len(point) * floor
    assert radius > 0.0, (len(point), floor)
    point = point - point.max()  # changes nothing, and keeps large numbers from swallowing the radius
    falling = np.sort(point)[::-1]
    shifts = (np.cumsum(falling) - radius) / np.arange(1, len(point) + 1)
    above = int(np.flatnonzero(falling > shifts)[-1])  # the first always is: 0 > -radius
    return floor + np.maximum(point - shifts[above], 0.0)


def curvature(gram: Vector, alpha: Vector) -> float:
    """alpha' G alpha: the squared norm of the combined gradient, the paper's stand-in for the trace of the Hessian."""
    return float(alpha @ gram @ alpha)


def spectral_norm(gram: Vector) -> float:
    """Largest eigenvalue of [K, K], in absolute value."""
    return float(np.abs(np.linalg.eigvalsh(gram)).max())


def divergence(alpha: Vector, usual: float) -> tuple[int, str] | None:
    """Slot and clause where weights that should sum to about ``usual`` have left every sensible range; else None."""
    wrong = np.flatnonzero(~np.isfinite(alpha))
    if len(wrong):
        return int(wrong[0]), "is not finite"
    lowest, highest, total = int(alpha.argmin()), int(alpha.argmax()), float(alpha.sum())
    if alpha[lowest] < 0.0:
        return lowest, "is negative"
    if total > FAR * max(usual, 1.0):
        return highest, f"is in a batch whose weights sum to {total:.4g}"
    if total < min(usual, 1.0) / FAR:
        return lowest, f"is in a batch whose weights sum to {total:.4g}"
    return None


def _canonical(gram: Vector, losses: Vector, alpha: Vector, lambda_n: Vector) -> NDArray[np.intp]:
    """[K] an order of the tasks that depends on their numbers alone, not on how they came."""
    keys = [(gram[k, k], losses[k], alpha[k], lambda_n[k], *np.sort(gram[k])) for k in range(len(alpha))]
    return np.array(sorted(range(len(alpha)), key=keys.__getitem__))
