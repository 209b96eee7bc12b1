"""Ends and trace of the spectrum of a symmetric operator that is known only by its products: Lanczos and Hutchinson.

Pure: vectors are flat tensors, the operator is a function v -> Hv, and inner products are a function too, so that a
vector may be cut over ranks (each holds its piece, the inner product is summed over ranks). All decisions follow from
inner products; ranks that get the same numbers from ``inner`` do the same number of products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""[n] -> [n], symmetric and linear up to rounding; [n] is this rank's piece of the vector."""
Inner = Callable[[Sequence[Tensor], Tensor], Tensor]
"""(rows [n] each, vector [n]) -> their inner products, fp64, over the pieces of all ranks."""

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What ``lanczos`` found; nan where a product was not finite.

    Attributes:
        largest, smallest: Ritz values at the two ends of the spectrum.
        largest_residual, smallest_residual: ``|H x - theta x|`` of each, x its unit Ritz vector: an eigenvalue of H lies that
            close to theta.
        steps: products that were made.
        converged: both residuals came below the tolerance, or the Krylov space was exhausted.
    """

    largest: float
    smallest: float
    largest_residual: float
    smallest_residual: float
    steps: int
    converged: bool

    @property
    def top(self) -> float:
        """The signed eigenvalue of largest magnitude (the positive one where both are equal)."""
        return self.largest if abs(self.largest) >= abs(self.smallest) else self.smallest

    @property
    def residual(self) -> float:
        """The larger of the two residuals, as a fraction of ``|top|``."""
        worst = max(self.largest_residual, self.smallest_residual)
        return worst / abs(self.top) if self.top else worst


@dataclass(frozen=True, slots=True)
class Trace:
    """Hutchinson's estimate and its standard error (nan for one sample)."""

    value: float
    error: float


def local_inner(rows: Sequence[Tensor], vector: Tensor) -> Tensor:
    """[rows] fp64 inner products of whole vectors in this process, widened piecewise: no fp64 copy of a row is made."""
    out = torch.zeros(len(rows), dtype=torch.float64)
    for begin in range(0, vector.shape[0], _CHUNK):
        v = vector[begin : begin + _CHUNK].double()
        out += torch.stack([row[begin : begin + _CHUNK].double() @ v for row in rows]).cpu()
    return out


def lanczos(
    product: Product,
    start: Tensor,
    *,
    steps: int,
    dimension: int,
    tolerance: float = 1e-3,
    inner: Inner = local_inner,
) -> Spectrum:
    """Both ends of the spectrum of a symmetric operator, by Lanczos with full reorthogonalisation.

    Each new vector is orthogonalised twice against all earlier ones, so no copies of converged eigenvalues appear; memory
    is ``steps`` vectors. With a random start both ends converge first, faster than the power iteration, which finds only the
    eigenvalue of largest magnitude and hesitates between two of opposite sign.

    Args:
        product: v -> Hv in the dtype of ``start`` (fp32 or fp64), a fresh tensor that may be written to.
        start: [n] any vector with a share in the eigenvectors sought: random, the same for every number of ranks.
        steps: products at most.
        dimension: size of the whole space (sum of n over ranks); no more products than that are made.
        tolerance: stop when the residual of either end is at most this fraction of that end; 0: never before ``steps``,
            unless the Krylov space is exhausted. Where one end is 0 but for rounding, all ``steps`` are made.
    """
    norm = _norm(start, inner)
    assert norm > 0, "the start vector is zero"
    basis = [start / norm]
    diagonal: list[float] = []
    beside: list[float] = []
    result = Spectrum(math.nan, math.nan, math.nan, math.nan, 0, False)
    for step in range(1, min(steps, dimension) + 1):
        w = product(basis[-1])
        first = inner(basis, w)
        if not bool(torch.isfinite(first).all()):
            return Spectrum(math.nan, math.nan, math.nan, math.nan, step, False)
        _subtract(w, basis, first)
        second = inner(basis, w)
        _subtract(w, basis, second)
        diagonal.append(float(first[-1] + second[-1]))
        beta = _norm(w, inner)
        result = _ends(diagonal, beside, beta, tolerance)
        scale = max(abs(result.largest), abs(result.smallest))
        exhausted = beta <= 16 * torch.finfo(w.dtype).eps * scale or step == dimension
        if exhausted:
            return replace(result, converged=True)
        if result.converged:
            break
        beside.append(beta)
        basis.append(w.div_(beta))
    return result


def hutchinson(product: Product, signs: Callable[[int], Tensor], samples: int, *, inner: Inner = local_inner) -> Trace:
    """Trace of the operator as the mean of ``z' H z`` over random sign vectors z.

    Args:
        signs: number of the sample -> [n] of +1 and -1, independent, each with probability 1/2.
        samples: how many; the standard error falls with their square root.
    """
    assert samples > 0
    values = []
    for sample in range(samples):
        z = signs(sample)
        values.append(float(inner([z], product(z))[0]))
    error = float(np.std(values, ddof=1)) / math.sqrt(samples) if samples > 1 else math.nan
    return Trace(float(np.mean(values)), error)


def _ends(diagonal: list[float], beside: list[float], beta: float, tolerance: float) -> Spectrum:
    """Ritz values and residuals of the tridiagonal matrix so far; ``beta`` couples it to the vector that comes next."""
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(matrix)
    residuals = beta * np.abs(vectors[-1])
    largest, smallest = float(values[-1]), float(values[0])
    high, low = float(residuals[-1]), float(residuals[0])
    # each against its own size: beside a large top eigenvalue all of the bulk has residuals that look small
    known = high <= tolerance * abs(largest) and low <= tolerance * abs(smallest)
    # one product alone gives one Ritz value for both ends, whose residual says nothing about the other end
    converged = len(diagonal) > 1 and tolerance > 0 and known
    return Spectrum(largest, smallest, high, low, len(diagonal), converged)


def _norm(vector: Tensor, inner: Inner) -> float:
    return math.sqrt(max(float(inner([vector], vector)[0]), 0.0))


def _subtract(w: Tensor, basis: Sequence[Tensor], coefficients: Tensor) -> None:
    for row, c in zip(basis, coefficients.tolist(), strict=True):
        w.sub_(row, alpha=c)
