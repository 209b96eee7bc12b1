"""The weight update of GradNorm, pure.

Legend: K tasks of the batch. Weights are 1 on average over the tasks of the training.
"""

from __future__ import annotations

from collections.abc import Sequence


def targets(weights: Sequence[float], norms: Sequence[float], ratios: Sequence[float], asymmetry: float) -> list[float]:
    """[K] norms that the weighted gradients should have: nbar r_k^a, with nbar the mean of w_k n_k and r_k the loss ratio of
    task k over the mean loss ratio (Chen et al., 2018, section 3.1).

    Args:
        weights: [K] w. norms: [K] n, of the gradients of the unweighted losses.
        ratios: [K] L_k(t) / L_k(0); large means little learnt.
    """
    mean_norm = sum(w * n for w, n in zip(weights, norms, strict=True)) / len(weights)
    mean_ratio = sum(ratios) / len(ratios)
    return [mean_norm * (ratio / mean_ratio) ** asymmetry if mean_ratio else mean_norm for ratio in ratios]


def objective(weights: Sequence[float], norms: Sequence[float], wanted: Sequence[float]) -> float:
    """L_grad = sum_k |w_k n_k - target_k| (equation 2 of the paper)."""
    return sum(abs(w * n - t) for w, n, t in zip(weights, norms, wanted, strict=True))


def updated(
    weights: Sequence[float],
    norms: Sequence[float],
    ratios: Sequence[float],
    *,
    asymmetry: float,
    learning_rate: float,
    minimum: float,
) -> tuple[list[float], float]:
    """One step of gradient descent on L_grad in w, targets held constant, and renormalisation.

    The paper renormalises to the number of tasks. Here the batch may hold K of N tasks: their sum stays what it was, so that
    the sum over all N stays N. Weights that would fall below ``minimum`` stay there, and the others make up for them.

    Returns:
        [K] new weights, with the sum of the old ones, and L_grad before the step.
    """
    wanted = targets(weights, norms, ratios, asymmetry)
    moved = []
    for weight, norm, target in zip(weights, norms, wanted, strict=True):
        error = weight * norm - target
        sign = (error > 0) - (error < 0)
        moved.append(weight - learning_rate * norm * sign)
    return renormalised(moved, sum(weights), minimum), objective(weights, norms, wanted)


def renormalised(weights: Sequence[float], total: float, minimum: float) -> list[float]:
    """``weights`` scaled to sum to ``total`` with none below ``minimum``: those that would be (all that are not positive
    among them) are set to it, and the rest is scaled to what is left, until none is below. All alike where none is positive.

    Args:
        total: at least K times ``minimum`` (up to rounding; all are ``minimum`` then).
    """
    assert total >= len(weights) * minimum * (1 - 1e-9), (total, weights, minimum)
    free = {k: w for k, w in enumerate(weights) if w > 0.0}
    if not free:
        return [total / len(weights)] * len(weights)
    out = [minimum] * len(weights)
    while free:
        factor = (total - minimum * (len(weights) - len(free))) / sum(free.values())
        low = [k for k, w in free.items() if w * factor < minimum]
        if not low:
            for k, w in free.items():
                out[k] = w * factor
            break
        for k in low:
            del free[k]
    return out
