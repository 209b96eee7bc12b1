"""How alike tasks are by their Fisher informations: Overlap of the top elements, MSE and KL, for all pairs of P rows.

Equations 4 to 6 of "Clustering Pseudo Language Family in Multilingual Translation Models with Fisher Information Matrix",
with the row of a result the target t and the column the auxiliary a. Everything is a sum over parameters, so the rows
pass through in blocks [P, n_b], and over ranks; beside a block only its masks and [P, P] sums are held. 200 pairs of 418 M
parameters are 334 GB that need not be in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import backend, native
from ..arguments import check_contiguous, check_dtype, check_like, check_shape
from ..reference import fisher_similarity as reference
from .top_threshold import Blocks, Read, Reduce, reader, top_threshold

__all__ = ["METRICS", "Similarity", "fisher_similarity", "mask_overlap", "pack_masks", "pair_sums", "top_threshold"]

METRICS = ("overlap", "mse", "kl")


@dataclass(frozen=True, slots=True)
class Similarity:
    """All pairs of P rows; what was not asked for is None.

    Attributes:
        n: elements of a row, over all blocks and ranks.
        thresholds: [P] fp32 value of each row's smallest activated element.
        active: [P] int64 elements of each mask; more than asked for where several equal the threshold.
        overlap: [P, P] fp64, elements in both masks over those in the target's (Eq. 6); higher is more alike.
        mse: [P, P] fp64, mean squared difference (Eq. 4; the authors' code leaves out the division); lower is more alike.
        kl: [P, P] fp64, ``|sum F_a log((F_a + eps) / (F_t + eps))|`` (Eq. 5); rows are not normalised to distributions, as
            in the authors' code. Lower is more alike.
    """

    n: int
    thresholds: Tensor | None
    active: Tensor | None
    overlap: Tensor | None
    mse: Tensor | None
    kl: Tensor | None


def fisher_similarity(
    blocks: Blocks,
    *,
    fraction: float = 0.4,
    metrics: Collection[str] = METRICS,
    eps: float = 1e-16,
    reduce: Reduce | None = None,
) -> Similarity:
    """Similarities of P tasks by the diagonals of their Fisher informations.

    Args:
        blocks: a row a task, as ``top_threshold`` takes them; a function is called once, and three times more for the
            thresholds of Overlap. For a GPU and rows in host memory: ``HostBlocks``.
        fraction: share of a row's elements that its mask activates, chosen over the whole row.
        metrics: which of ``METRICS``.
        eps: added inside the logarithms.
        reduce: sums an int64 or fp64 tensor over ranks, in place; each rank passes its part of the parameters.

    Raises:
        ValueError: as ``top_threshold``; an unknown metric; for MSE and KL, values that are negative or not finite.
    """
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics:
        raise ValueError(f"metrics is {list(metrics)}, but must be some of {list(METRICS)}")
    _check_eps(eps)
    read = reader(blocks)
    with_masks, sums = "overlap" in metrics, _PairSums(eps) if {"mse", "kl"} & set(metrics) else None
    thresholds = None
    if with_masks and sums is not None and callable(blocks):
        # the first of its readings is the slow one (HostBlocks): the sums, which take longest, are made behind it
        thresholds = top_threshold(sums.along(read), fraction=fraction, reduce=reduce)
    elif with_masks:
        thresholds = top_threshold(blocks, fraction=fraction, reduce=reduce)
    shared = parameters = None
    for i, block in enumerate(read()):
        if shared is None:
            shared = torch.zeros(block.shape[0], block.shape[0], dtype=torch.int64, device=block.device)
            parameters = shared.new_zeros(1)
        parameters += block.shape[1]
        if with_masks:
            shared += _mask_overlap(_pack_masks(block, thresholds))
        if sums is not None and not sums.complete:
            sums.add(i, block)
    totals = None if sums is None else sums.totals
    for total in (parameters, shared, totals):
        if reduce is not None and total is not None:
            reduce(total)
    n = int(parameters)
    active = shared.diagonal().clone() if with_masks else None
    return Similarity(
        n=n,
        thresholds=thresholds,
        active=active,
        overlap=shared.double() / active[:, None] if with_masks else None,
        mse=totals[0] / n if "mse" in metrics else None,
        kl=totals[1].abs() if "kl" in metrics else None,
    )


class _PairSums:
    """The sums of MSE and KL over blocks, made while these are read for something else too.

    Attributes:
        totals: [2, P, P] fp64; None before the first block.
        complete: one whole reading went by.
    """

    def __init__(self, eps: float) -> None:
        self.eps, self.complete = eps, False
        self.totals: Tensor | None = None

    def add(self, number: int, block: Tensor) -> None:
        largest = _check_fisher(f"blocks[{number}]", block)
        found = torch.stack(_pair_sums(block, self.eps, largest))
        self.totals = found if self.totals is None else self.totals + found

    def along(self, read: Read) -> Read:
        """``read``, whose first reading adds the blocks here."""

        def tapped() -> Iterator[Tensor]:
            for i, block in enumerate(read()):
                if not self.complete:
                    self.add(i, block)
                yield block
            self.complete = True

        return tapped


def pack_masks(values: Tensor, thresholds: Tensor) -> Tensor:
    """Which elements are at or above their row's threshold, as bits.

    Args:
        values: [P, n] or [n] fp32, contiguous.
        thresholds: [P] fp32 on the same device.

    Returns:
        [P, ceil(n / 64)] int64: bit i of word w is ``values[:, 64 w + i] >= thresholds``; bits beyond n are 0. Elements
        that equal the threshold are all active, so there may be more than the ``count`` that it was made for.
    """
    (rows,) = reader(values)()
    check_like("thresholds", thresholds, "values", rows)
    check_shape("thresholds", thresholds, rows.shape[:1], f"values of {rows.shape[0]} rows")
    return _pack_masks(rows, thresholds.contiguous())


def mask_overlap(masks: Tensor) -> Tensor:
    """[P, W] int64, contiguous -> [P, P] int64: bits that rows i and j share; on the diagonal, those of each row."""
    check_dtype("masks", masks, (torch.int64,))
    check_shape("masks", masks, (None, None), "an overlap of packed masks")
    check_contiguous("masks", masks)
    return _mask_overlap(masks)


def pair_sums(values: Tensor, eps: float = 1e-16) -> tuple[Tensor, Tensor]:
    """The sums of MSE and KL, for all pairs of rows.

    Differences are taken element by element (``F_tt + F_aa - 2 F_ta`` would cancel for rows that are near each other), in
    fp32 within 1024 columns and in fp64 beyond; the order of summation is fixed.

    Args:
        values: [P, n] fp32, contiguous, finite and not negative.
        eps: a normal fp32 number.

    Returns:
        mse_sum: [P, P] fp64 ``sum (F_t - F_a)^2``.
        kl_sum: [P, P] fp64 ``sum F_a (log(F_a + eps) - log(F_t + eps))``, with its sign: blocks are summed before the
            absolute value of Eq. 5 is taken.
    """
    (rows,) = reader(values)()
    _check_eps(eps)
    return _pair_sums(rows, eps, _check_fisher("values", rows))


def _check_eps(eps: float) -> None:
    limits = torch.finfo(torch.float32)
    if not limits.tiny <= eps <= limits.max:
        raise ValueError(f"eps is {eps}, but must be a normal fp32 number, between {limits.tiny} and {limits.max}")


def _check_fisher(name: str, values: Tensor) -> float:
    """The largest of the values; 0 of none."""
    if values.numel() == 0:
        return 0.0
    low, high = (x.item() for x in values.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite, but its values run from {low} to {high}")
    if low < 0.0:
        raise ValueError(f"{name} must not be negative (a Fisher information is a mean of squares), but holds {low}")
    return high


# -------------------------------------------------------------------------------------------------------- torch operators


def _runs_as(values: Tensor) -> str:
    """``reference``, ``cuda`` or ``cpu``."""
    kind = values.device.type
    return "reference" if backend.implementation("fisher_similarity", kind) == "reference" else kind


@torch.library.custom_op("mnmt::pack_masks", mutates_args=())
def _pack_masks(values: Tensor, thresholds: Tensor) -> Tensor:
    how = _runs_as(values)
    if how == "reference":
        return reference.pack_masks(values, thresholds)
    masks = _empty_masks(values, thresholds)
    if how == "cuda":
        from .. import native_cuda

        native_cuda.pack_masks(values, thresholds, masks)
    else:
        addresses = values.data_ptr(), *values.shape, thresholds.data_ptr(), masks.data_ptr()
        native.module().pack_masks(*addresses, native.threads())
    return masks


@_pack_masks.register_fake
def _empty_masks(values: Tensor, thresholds: Tensor) -> Tensor:
    return values.new_empty(values.shape[0], (values.shape[1] + 63) // 64, dtype=torch.int64)


@torch.library.custom_op("mnmt::mask_overlap", mutates_args=())
def _mask_overlap(masks: Tensor) -> Tensor:
    how = _runs_as(masks)
    if how == "reference":
        return reference.mask_overlap(masks)
    counts = _empty_counts(masks).zero_()
    if how == "cuda":
        from .. import native_cuda

        native_cuda.mask_overlap(masks, counts)
    else:
        native.module().mask_overlap(masks.data_ptr(), *masks.shape, counts.data_ptr(), native.threads())
    return counts


@_mask_overlap.register_fake
def _empty_counts(masks: Tensor) -> Tensor:
    return masks.new_empty(masks.shape[0], masks.shape[0])


@torch.library.custom_op("mnmt::pair_sums", mutates_args=())
def _pair_sums(values: Tensor, eps: float, largest: float) -> tuple[Tensor, Tensor]:
    """``largest`` of the values, of which ``cuda`` makes the power of two that they are scaled by."""
    how = _runs_as(values)
    if how == "reference":
        return reference.pair_sums(values, eps)
    mse, kl = (x.zero_() for x in _empty_sums(values, eps, largest))
    if how == "cuda":
        from .. import native_cuda

        native_cuda.pair_sums(values, mse, kl, eps, largest)
    else:
        addresses = values.data_ptr(), *values.shape, eps, mse.data_ptr(), kl.data_ptr()
        native.module().pair_sums(*addresses, native.threads())
    return mse, kl


@_pair_sums.register_fake
def _empty_sums(values: Tensor, eps: float, largest: float) -> tuple[Tensor, Tensor]:
    P = values.shape[0]
    return values.new_empty(P, P, dtype=torch.float64), values.new_empty(P, P, dtype=torch.float64)
