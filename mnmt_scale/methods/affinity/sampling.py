"""How often helpers are sampled beside the tasks of a cluster (Eq. 15). Pure: numbers in, numbers out.

Shape legend: T tasks of the training, g_k; those of the cluster, c_k, are *served*, the others are its helpers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def faded_shares(base: Any, served: Collection[int], epoch: int, decay: float) -> Floats:
    """Eq. 15 of FTAC: a helper's share is multiplied by |c_k| / |g_k| / (1 + decay * epoch), that of a served task is kept.

    The right side of the equation does not sum to 1; what is sampled is that side divided by its sum over g_k. Without
    helpers it is the base. The paper's HTAC, "lambda = +infinity", is a training on c_k alone, so no infinity comes here.

    Args:
        base: [T] P^ of Eq. 14, any positive multiple; a task with 0 stays at 0.
        served: indices of c_k, at least one.
        epoch: E, from 0.
        decay: lambda, >= 0 and finite.

    Returns:
        [T] P, sums to 1.
    """
    base = np.asarray(base, dtype=np.float64)
    assert served
    assert all(0 <= task < len(base) for task in served)
    helps = np.ones(len(base), dtype=bool)
    helps[list(served)] = False
    weights = base.copy()
    weights[helps] *= len(served) / len(base) / (1.0 + decay * epoch)
    return weights / weights.sum()


def epoch_of(drawn: int, epoch_sentences: int) -> int:
    """E, from 0: whole epochs in ``drawn`` sentences."""
    return drawn // epoch_sentences
