"""Diagonal of the empirical Fisher matrix: ``F += scale * g^2`` over ragged fragments in one pass.

The fast version computes ``(g * g) * scale`` in fp32 and adds it to F with one rounding (fma) where the processor can,
so that it differs from the reference by at most one unit in the last place of the product or of F. It is elementwise:
the number of threads changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backend, native
from ..arguments import FLOATS, check_finite, check_same_cut
from ..reference import fisher_accumulate as reference
from .task_gram import check_list


def fisher_accumulate(fisher: Tensor | Sequence[Tensor], gradients: Tensor | Sequence[Tensor], scale: float = 1.0) -> None:
    """Adds ``scale * g^2`` to ``fisher`` in place.

    Args:
        fisher: contiguous fp32 fragments that do not overlap; or one tensor.
        gradients: contiguous fragments of the same sizes; fp32, bf16 or fp16 throughout. Values that are not finite go
            into F as they are.
        scale: 1/D for the mean over D mini-batches.

    Raises:
        ValueError: devices, dtypes or cuts differ, a fragment is not contiguous, ``scale`` is not finite in fp32.
    """
    fisher = [fisher] if isinstance(fisher, Tensor) else list(fisher)
    gradients = [gradients] if isinstance(gradients, Tensor) else list(gradients)
    check_list("fisher", fisher, (torch.float32,))
    check_list("gradients", gradients, FLOATS)
    check_same_cut("gradients", gradients, "fisher", fisher)
    check_finite("scale", torch.tensor(float(scale), dtype=torch.float32))
    if fisher:
        with torch.no_grad():
            _fisher_accumulate(fisher, gradients, float(scale))


@torch.library.custom_op("mnmt::fisher_accumulate", mutates_args=("fisher",))
def _fisher_accumulate(fisher: Sequence[Tensor], gradients: Sequence[Tensor], scale: float) -> None:
    device = fisher[0].device
    kind = backend.implementation("fisher_accumulate", device.type)
    if kind == "reference":
        reference.fisher_accumulate(fisher, gradients, scale)
    elif device.type == "cuda":
        from .. import native_cuda

        native_cuda.fisher_accumulate(list(fisher), list(gradients), scale)
    else:
        native.module().fisher_accumulate(
            fisher=native.addresses(fisher),
            gradients=native.addresses(gradients),
            sizes=[f.numel() for f in fisher],
            dtype=native.DTYPES[gradients[0].dtype],
            scale=scale,
            threads=native.threads(),
        )


@_fisher_accumulate.register_fake
def _(fisher: Sequence[Tensor], gradients: Sequence[Tensor], scale: float) -> None:
    return None
