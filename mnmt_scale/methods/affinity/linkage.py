"""Agglomerative clustering from distances, the elbow that chooses a number of clusters, and average linkage on affinity."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

Kind = Literal["ward", "average", "complete", "single"]
Clusters = tuple[tuple[int, ...], ...]


def affinity_distances(affinity: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, N] distances: the largest mutual affinity less that of the two tasks, (Z_{j->i} + Z_{i->j}) / 2; 0 on the diagonal.

    The zero point is free: average linkage orders its unions by means of distances, which all move with it alike.
    """
    mutual = (affinity + affinity.T) / 2.0
    outside = ~np.eye(len(mutual), dtype=bool)
    distances = (mutual[outside].max() if outside.any() else 0.0) - mutual
    return np.where(outside, distances, 0.0)


def tree(distances: NDArray[np.float64], kind: Kind) -> NDArray[np.float64]:
    """scipy's linkage matrix [N - 1, 4]; ``ward`` takes the distances to be Euclidean."""
    return hierarchy.linkage(squareform(distances, checks=False), kind)


def cut(merged: NDArray[np.float64], count: int) -> Clusters:
    """The ``count`` clusters of a tree, by their smallest index."""
    labels = hierarchy.cut_tree(merged, n_clusters=count)[:, 0]  # exactly so many, where fcluster may give fewer in ties
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(index)
    return tuple(map(tuple, groups.values()))


def dispersion(distances: NDArray[np.float64], clusters: Clusters) -> float:
    """Sum over clusters of the distances of its pairs divided by its size: of squared Euclidean distances, the sum of squares
    about the centroids."""
    return float(sum(distances[np.ix_(c, c)].sum() / (2 * len(c)) for c in map(list, clusters)))


def elbow(merged: NDArray[np.float64], distances: NDArray[np.float64]) -> int:
    """The number of clusters at the elbow of the dispersion (Thorndike 1953): where its curve over K = 1 .. N lies farthest
    below the straight line between its ends; the smallest K of equals.

    Tan et al. (2019) name the elbow and no rule for it; this one needs no threshold.

    Args:
        distances: [N, N] for ``dispersion``; squared ones where Euclidean.
    """
    N = len(distances)
    assert N > 2
    curve = np.array([dispersion(distances, cut(merged, count)) for count in range(1, N + 1)])
    line = curve[0] + (curve[-1] - curve[0]) * np.arange(N) / (N - 1)
    below = line - curve
    return 1 + int(np.flatnonzero(below >= below.max() - 1e-9 * max(curve[0], 1e-300))[0])


def average_clusters(distances: NDArray[np.float64], count: int | None = None) -> Clusters:
    """Average linkage; ``count`` None: at the elbow, for N > 2."""
    if len(distances) == 1:
        return ((0,),)
    merged = tree(distances, "average")
    return cut(merged, elbow(merged, distances) if count is None else count)
