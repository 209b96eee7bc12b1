"""What ``fisher_similarity`` means, in plain torch: the radix digits and what they select, masks, sums over pairs."""

from __future__ import annotations

import torch
from torch import Tensor

DIGITS = ((21, 11), (10, 11), (0, 10))
"""Level -> (lowest bit, number of bits) of the part of a radix key that is counted there."""


def top_threshold(values: Tensor, count: int) -> Tensor:
    """[P, n] -> [P], the ``count``-th largest value of each row."""
    return values.sort(dim=1, descending=True).values[:, count - 1]


def radix_keys(values: Tensor) -> Tensor:
    """fp32 -> int64 in [0, 2^32) that order as the values do: the bits, all flipped under a minus sign, else the sign."""
    bits = values.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)


def values_of_keys(keys: Tensor) -> Tensor:
    """What ``radix_keys`` made, back to fp32."""
    bits = torch.where(keys >> 31 == 1, keys ^ 0x80000000, keys ^ 0xFFFFFFFF)
    return (bits - (bits >> 31 << 32)).to(torch.int32).view(torch.float32)


def radix_histogram(values: Tensor, prefix: Tensor, level: int, histogram: Tensor) -> None:
    """``histogram`` [P, 2048] int64 += numbers of elements of each row of ``values`` [P, n] by their digit at ``level``,
    of those whose key starts with ``prefix`` [P] int64 (at level 0: of all)."""
    shift, bits = DIGITS[level]
    for row, wanted, counts in zip(values, prefix, histogram, strict=True):
        keys = radix_keys(row)
        if level:
            keys = keys[keys >> (shift + bits) == wanted]
        counts += torch.bincount((keys >> shift) & ((1 << bits) - 1), minlength=histogram.shape[1])


def pack_masks(values: Tensor, thresholds: Tensor) -> Tensor:
    """[P, n] -> [P, ceil(n / 64)] int64; bit i of word w: ``values[:, 64 w + i] >= thresholds``."""
    rows, n = values.shape
    words = -(-n // 64)
    mask = torch.zeros(rows, words * 64, dtype=torch.int64, device=values.device)
    mask[:, :n] = values >= thresholds[:, None]
    return (mask.view(rows, words, 64) << torch.arange(64, device=values.device)).sum(dim=2)


def mask_overlap(masks: Tensor) -> Tensor:
    """[P, W] int64 -> [P, P] int64, bits that two rows share."""
    table = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.uint8, device=masks.device)
    return torch.stack([table[(masks & row).view(torch.uint8).long()].sum(dim=1, dtype=torch.int64) for row in masks])


def pair_sums(values: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """[P, n] -> two [P, P] fp64: ``sum (F_t - F_a)^2`` and ``sum F_a (log(F_a + eps) - log(F_t + eps))``, row t, column
    a."""
    wide = values.double()
    logs = (wide + eps).log()
    mse = torch.stack([(wide - row).square().sum(dim=1) for row in wide])
    kl = torch.stack([(wide * (logs - row)).sum(dim=1) for row in logs])
    return mse, kl
