"""LEC: clusters of languages by their embeddings in the universal model (Tan et al. 2019), as FTAC compares with them.

Only for translation out of one language or into one: there a direction is its other language. Otherwise the two languages of
a direction may fall into different clusters (FTAC, section 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from .linkage import Clusters, Kind, cut, elbow, tree


def languages_of(directions: Sequence[tuple[str, str]]) -> list[str] | None:
    """The language that each direction stands for; None where the directions share neither source nor target."""
    sources, targets = zip(*directions, strict=True)
    if len(set(sources)) == 1:
        return list(targets)
    return list(sources) if len(set(targets)) == 1 else None


def language_clusters(vectors: NDArray[np.float64], count: int | None = None, kind: Kind = "ward") -> Clusters:
    """Agglomerative clustering of vectors by Euclidean distance.

    Args:
        vectors: [L, D], finite.
        count: of clusters; None: at the elbow of the sum of squares within clusters, for L > 2.
        kind: of linkage. The papers name none; ``ward`` unites what raises that sum of squares least.
    """
    if len(vectors) == 1:
        return ((0,),)
    distances = squareform(pdist(vectors))
    merged = tree(distances, kind)
    return cut(merged, elbow(merged, distances**2) if count is None else count)
