"""Fuzzy task clustering: greedy unions of clusters, each with the tasks that help all of it (FTAC, section 3.2).

``affinity`` is [N, N] everywhere: row = trained task j, column = affected task i, so ``affinity[j, i]`` is the paper's
Z_{j->i}; positive helps. The diagonal counts.

What the rules come to, which is not plain to see from the paper:

- A helper of a union must have positive affinity to *all* of its tasks (Eq. 12), so every helper of the union is already one
  of both clusters, and g is a function of c alone, however c came about: c and all j with affinity[j, i] > 0 for every i in c.
  The tasks of c itself need not help each other; ``remarks`` counts those that do not.
- S (Eq. 11) is a sum over c, divided by |g|. With equal g it is additive: S(c1 + c2) = S(c1) + S(c2), which by Eq. 13 is no
  gain. So a perfect block matrix gives N singletons, each with its block as helpers, and an affinity that is positive
  everywhere gives N singletons with all others as helpers: the bound ``at_most`` is what makes blocks of blocks. It also makes
  exact ties common: for clusters whose unions have equal g, it does not matter which two come first.
- A union gains by dropping helpers that lie below the average of g. Where the diagonal is far above the rest, two tasks that
  share nothing may gain from a union for that reason alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-9
"""Gains that differ by less, relative to the scores in absolute value, are equal, and a gain below it is none."""

_NAMED = 3
"""How many cells or unions are named."""

Clusters = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Merge:
    """One union.

    Attributes:
        first, second: the smallest task index of the two clusters; that of the union is ``first``.
        gain: S of the union less S of the two.
        forced: no gain (Eq. 13), made for the sake of ``at_most``.
        ties: how many other unions would have gained as much within the tolerance; the first in order of indices was taken.
        tied: the first few of these.
    """

    first: int
    second: int
    gain: float
    forced: bool
    ties: int
    tied: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class FuzzyClusters:
    """C and G, by task index; clusters by their smallest task, indices ascending.

    Attributes:
        helpers: g_k without c_k.
        scores: S(c_k, g_k).
        merges: in their order.
    """

    clusters: Clusters
    helpers: Clusters
    scores: tuple[float, ...]
    merges: tuple[Merge, ...]

    @property
    def total(self) -> float:
        """The overall affinity, which the unions raise."""
        return float(sum(self.scores))


def fuzzy_clusters(
    affinity: NDArray[np.float64], *, tolerance: float = TOLERANCE, at_most: int | None = None, at_least: int = 1
) -> FuzzyClusters:
    """Unites those two clusters whose union raises the overall affinity most, until none does (Eq. 10 to 13).

    O(N^3): the gain of every pair is kept, and only those with the new cluster are computed again.

    Args:
        affinity: [N, N], finite.
        tolerance: a gain counts if it exceeds this fraction of the scores in question, taken of absolute affinities (so that
            rounding is nothing even where scores cancel); ties likewise.
        at_most: goes on with the least loss while there are more clusters than this.
        at_least: stops when there are this few (the paper's footnote 3).
    """
    N = len(affinity)
    assert affinity.shape == (N, N)
    assert N > 0
    assert np.isfinite(affinity).all()
    assert 1 <= at_least <= (N if at_most is None else at_most) <= N
    state = _Unions(affinity, tolerance)
    merges = []
    while (count := int(state.alive.sum())) > at_least:
        merge = state.best(forced=at_most is not None and count > at_most)
        if merge is None:
            break
        merges.append(merge)
        state.unite(merge.first, merge.second)
    slots = np.flatnonzero(state.alive)
    clusters = tuple(tuple(np.flatnonzero(state.members[a]).tolist()) for a in slots)
    helpers = tuple(helpers_of(affinity, cluster) for cluster in clusters)
    return FuzzyClusters(clusters, helpers, tuple(state.own[0, slots].tolist()), tuple(merges))


class _Unions:
    """Clusters in the slot of their smallest task, and the gain of every union of two.

    Attributes:
        members, positive: [slot, j] tasks of the cluster; tasks with positive affinity to all of it.
        towards: [2, slot, j] affinity of j to the cluster, summed over its tasks; of absolute values in [1].
        own: [2, slot] S of the cluster; of absolute values in [1].
        gains, margins: [slot, slot] above the diagonal, for two clusters that there are; -inf elsewhere.
    """

    def __init__(self, affinity: NDArray[np.float64], tolerance: float) -> None:
        N = len(affinity)
        self.tolerance = tolerance
        self.alive = np.ones(N, dtype=bool)
        self.members = np.eye(N, dtype=bool)
        self.positive = affinity.T > 0
        self.towards = np.stack([affinity.T, np.abs(affinity.T)])
        self.own = self._scores(self.members | self.positive, self.towards)
        self.gains = np.full((N, N), -np.inf)
        self.margins = np.zeros((N, N))
        for a in range(N - 1):
            self._measure(a, np.arange(a + 1, N))

    @staticmethod
    def _scores(group: NDArray[np.bool_], towards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Eq. 11 of B clusters at once: [B, N], [2, B, N] -> [2, B]."""
        return (towards * group).sum(axis=-1) / group.sum(axis=-1)

    def _measure(self, a: int, others: NDArray[np.intp]) -> None:
        """Gains of the unions of ``a`` with ``others``."""
        group = self.members[a] | self.members[others] | (self.positive[a] & self.positive[others])
        union = self._scores(group, self.towards[:, [a]] + self.towards[:, others])
        apart = self.own[:, [a]] + self.own[:, others]
        low, high = np.minimum(a, others), np.maximum(a, others)
        self.gains[low, high] = union[0] - apart[0]
        self.margins[low, high] = self.tolerance * np.maximum(union[1], apart[1])

    def best(self, forced: bool) -> Merge | None:
        """The union to make, None where Eq. 13 says to stop."""
        improving = self.gains > self.margins
        gains = self.gains if forced else np.where(improving, self.gains, -np.inf)
        top = np.unravel_index(np.argmax(gains), gains.shape)
        if gains[top] == -np.inf:
            return None
        alike = np.argwhere(gains >= gains[top] - self.margins[top])  # in order of indices
        (first, second), *tied = ((int(a), int(b)) for a, b in alike[: 1 + _NAMED])
        gain = float(self.gains[first, second])
        return Merge(first, second, gain, bool(~improving[first, second]), len(alike) - 1, tuple(tied))

    def unite(self, a: int, b: int) -> None:
        """Puts the union of ``a`` < ``b`` into slot ``a``."""
        self.alive[b] = False
        self.gains[b, :] = self.gains[:, b] = -np.inf
        self.members[a] |= self.members[b]
        self.positive[a] &= self.positive[b]
        self.towards[:, a] += self.towards[:, b]
        self.own[:, a] = self._scores((self.members | self.positive)[[a]], self.towards[:, [a]])[:, 0]
        others = np.flatnonzero(self.alive)
        self._measure(a, others[others != a])


def helpers_of(affinity: NDArray[np.float64], cluster: Sequence[int]) -> tuple[int, ...]:
    """Tasks outside a cluster with positive affinity to every task of it (Eq. 10, 12), ascending."""
    helps = (affinity[:, list(cluster)] > 0).all(axis=1)
    return tuple(j for j in np.flatnonzero(helps).tolist() if j not in cluster)


def score(affinity: NDArray[np.float64], cluster: Sequence[int], helpers: Sequence[int]) -> float:
    """S(c, g) of Eq. 11 with g = c and its helpers: affinity per task trained, summed over the tasks of the cluster."""
    group = [*cluster, *helpers]
    return float(affinity[np.ix_(group, list(cluster))].sum() / len(group))


def random_helpers(clusters: Clusters, counts: Sequence[int], seed: int) -> Clusters:
    """As many other tasks for each cluster as ``counts`` says, drawn uniformly (the paper's Rand.), ascending."""
    N, random = sum(map(len, clusters)), np.random.default_rng(seed)
    chosen = []
    for cluster, count in zip(clusters, counts, strict=True):
        others = np.setdiff1d(np.arange(N), cluster)
        chosen.append(tuple(sorted(random.choice(others, size=count, replace=False).tolist())))
    return tuple(chosen)


def remarks(affinity: NDArray[np.float64], error: NDArray[np.float64], found: FuzzyClusters, names: Sequence[str]) -> list[str]:
    """What a person should know of a result, a sentence each: degeneration (footnote 3), ties, cells within their standard
    error of zero, tasks that do not help their own cluster.

    Args:
        error: [N, N] standard errors; NaN where one is not known.
    """
    N, K = len(affinity), len(found.clusters)
    out = []
    outside = affinity[~np.eye(N, dtype=bool)]
    if K == N > 1:
        why = "every cell is positive, so that unions only add up (look at later windows)" if (outside > 0).all() else ""
        out.append(
            f"every direction is a cluster of its own, as with bilingual models{': ' * bool(why)}{why}; bound the number"
        )
    if K == 1 < N:
        out.append("all directions are one cluster, as in the universal model; ask for more clusters at least")
    forced = sum(merge.forced for merge in found.merges)
    if forced:
        out.append(
            f"{forced} of {len(found.merges)} unions gained nothing and were made for the bound on the number of clusters"
        )
    tied = [merge for merge in found.merges if merge.ties]
    if tied:
        which = [f"{names[m.first]} + {names[m.second]} like {names[m.tied[0][0]]} + {names[m.tied[0][1]]}" for m in tied]
        out.append(f"{len(tied)} of {len(found.merges)} unions were tied with others: {some(which)}")
    out += _uncertain(affinity, error, found, names)
    inside = [(j, i) for c in found.clusters for j in c for i in c if j != i and not affinity[j, i] > 0]
    if inside:
        cells = [f"{names[j]} -> {names[i]}" for j, i in inside]
        out.append(f"{len(inside)} pairs inside a cluster do not help, which the union rule does not ask for: {some(cells)}")
    return out


def _uncertain(
    affinity: NDArray[np.float64], error: NDArray[np.float64], found: FuzzyClusters, names: Sequence[str]
) -> list[str]:
    out = []
    within = np.abs(affinity) <= error
    if within.any():
        cells = [f"{names[j]} -> {names[i]}" for j, i in np.argwhere(within)]
        helping = [(j, c) for c, helpers in zip(found.clusters, found.helpers, strict=True) for j in helpers]
        shaky = sum(bool(within[j, list(c)].any()) for j, c in helping)
        out.append(
            f"{len(cells)} of {affinity.size} cells lie within their standard error of zero, so whether these help is not "
            f"known ({shaky} of {len(helping)} helpers rest on such cells): {some(cells)}"
        )
    if np.isnan(error).any():
        out.append(f"{int(np.isnan(error).sum())} of {affinity.size} cells were measured too seldom for a standard error")
    return out


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
