"""The row kernels of the losses, by device: C++ on CPU, Triton on GPU, torch where neither runs and for fp64.

Called between the matrix products of ``linear_cross_entropy`` and ``linear_distillation``, on arguments that these have
checked; what the rows mean stands in ``kernels.reference.vocabulary_rows``.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ..backend import implementation
from ..reference import vocabulary_rows as reference


def teacher_rows(
    logits: Tensor, mixture: Tensor, weights: Tensor, targets: Tensor, temperature: float, accumulate: bool
) -> Tensor:
    """Add ``weights[t] * softmax(logits[t] / temperature)`` to the mixture; arguments and result as the reference has them."""
    return _kernels(mixture).teacher_rows(logits, mixture, weights, targets, temperature, accumulate)


def student_rows(
    logits: Tensor,
    out: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    mixture: Tensor | None,
    mixture_weights: Tensor | None,
    label_smoothing: float,
    temperature: float,
) -> Tensor:
    """Losses of rows of logits and their gradient; arguments and result as the reference has them."""
    return _kernels(logits).student_rows(logits, out, targets, weights, mixture, mixture_weights, label_smoothing, temperature)


def _kernels(rows: Tensor) -> ModuleType:
    kind = implementation("vocabulary_rows", rows.device.type, rows.dtype)
    if kind == "native":
        from .. import native_rows

        return native_rows
    if kind == "triton":
        from ..triton import vocabulary_rows

        return vocabulary_rows
    return reference
