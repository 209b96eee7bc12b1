"""How a clustering and an affinity agree with families of languages."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

PERMUTATIONS = 9999


@dataclass(frozen=True, slots=True)
class Effect:
    """Affinity between different tasks of one family against that across families.

    Attributes:
        within, across: means over cells j != i.
        size: their difference in pooled standard deviations (Cohen's d); None where these are 0.
        p: one-sided, that a difference of means so large comes of families dealt out at random.
        permutations: how many were drawn for it, this one not counted.
    """

    within: float
    across: float
    size: float | None
    p: float
    permutations: int


def adjusted_rand(clusters: Sequence[Sequence[int]], families: Sequence[Hashable]) -> float:
    """Adjusted Rand index of a partition of tasks 0 .. N-1 and their families: 1 the same, about 0 by chance."""
    labels = np.empty(len(families), dtype=int)
    for k, cluster in enumerate(clusters):
        labels[list(cluster)] = k
    return float(adjusted_rand_score(_numbered(families), labels))


def family_effect(
    affinity: NDArray[np.float64], families: Sequence[Hashable], *, permutations: int = PERMUTATIONS, seed: int = 1
) -> Effect | None:
    """Effect size of affinity within against across families, with a permutation p-value.

    The families of tasks are permuted, not cells, since the cells of a row or column are not independent: p = (1 + number of
    permutations with at least this difference of means) / (1 + permutations), equal ones counted up to rounding.

    Args:
        affinity: [N, N]; the diagonal is left out.

    Returns:
        None when there are no two tasks of one family, or no two families.
    """
    labels, N = _numbered(families), len(affinity)
    outside = ~np.eye(N, dtype=bool)
    same = labels[:, None] == labels[None, :]
    inner, outer = affinity[same & outside], affinity[~same]
    if not inner.size or not outer.size:
        return None
    difference = inner.mean() - outer.mean()
    freedom = inner.size + outer.size - 2
    squares = ((inner - inner.mean()) ** 2).sum() + ((outer - outer.mean()) ** 2).sum()
    deviation = np.sqrt(squares / freedom) if freedom else 0.0
    cells, random = np.where(outside, affinity, 0.0), np.random.default_rng(seed)
    total, slack = cells.sum(), 1e-12 * np.abs(cells).max()
    reached = 0
    for _ in range(permutations):
        mixed = random.permutation(labels)
        within = cells[mixed[:, None] == mixed[None, :]].sum()
        reached += within / inner.size - (total - within) / outer.size >= difference - slack
    size = float(difference / deviation) if deviation > 0 else None
    return Effect(float(inner.mean()), float(outer.mean()), size, (1 + int(reached)) / (1 + permutations), permutations)


def _numbered(families: Sequence[Hashable]) -> NDArray[np.intp]:
    order = {family: k for k, family in enumerate(dict.fromkeys(families))}
    return np.array([order[family] for family in families], dtype=np.intp)
