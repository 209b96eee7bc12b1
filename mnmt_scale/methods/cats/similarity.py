"""Similarity of gradients in direction and in magnitude, from their Gram matrix, and its means over classes of tasks.

Source: CATS (section 4.1, after GradVac): ``cos(a, b)`` and ``gamma(a, b) = 2 |a| |b| / (|a|^2 + |b|^2)``, the latter 1
for gradients of equal length and near 0 where one is much longer. A Gram matrix is all that either needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CLASSES = ("high", "medium", "low")
"""The order in which a pair of classes is named: ``high-low``, never ``low-high``."""


def with_sum(groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The Gram matrices of disjoint groups of parameters, and ``all``, that of all parameters together: their sum."""
    return {**groups, "all": torch.stack(list(groups.values())).sum(dim=0)}


def norms(gram: Tensor) -> Tensor:
    """[..., N] lengths of the gradients of Gram matrices [..., N, N]."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def cosine(gram: Tensor) -> Tensor:
    """[..., N, N] cosines of Gram matrices [..., N, N], within [-1, 1]; nan beside a gradient of zero length."""
    length = norms(gram)
    product = length[..., :, None] * length[..., None, :]
    return torch.where(product > 0, gram / product, math.nan).clamp(-1.0, 1.0)


def magnitude(gram: Tensor) -> Tensor:
    """[..., N, N] gamma of Gram matrices [..., N, N], within [0, 1]; nan where both gradients have zero length."""
    length = norms(gram)
    squares = length.square()
    total = squares[..., :, None] + squares[..., None, :]
    return torch.where(total > 0, 2 * length[..., :, None] * length[..., None, :] / total, math.nan).clamp(0.0, 1.0)


def class_pair(a: str, b: str) -> str:
    """``("low", "high")`` -> ``"high-low"``."""
    first, second = sorted((a, b), key=CLASSES.index)
    return f"{first}-{second}"


def class_means(matrix: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Means of a symmetric [N, N] matrix over unordered pairs of different tasks: ``all`` pairs, and those of each pair of
    classes that occurs.

    Args:
        matrix: of ``cosine`` or ``magnitude``; undefined entries (nan) are left out.
        classes: [N] high, medium or low.

    Returns:
        Only the keys that have a defined pair; empty for one task.
    """
    found: dict[str, list[float]] = {}
    for i, a in enumerate(classes):
        for j in range(i + 1, len(classes)):
            value = float(matrix[i, j])
            if math.isfinite(value):
                for key in ("all", class_pair(a, classes[j])):
                    found.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}
