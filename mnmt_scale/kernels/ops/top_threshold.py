"""The value above which a given share of a row's elements lies, exactly, over blocks and ranks.

Radix selection on keys that order as the floats do: count the elements by the upper 11 bits of their keys, find the bin
that holds the wanted rank, count those in it by their next 11 bits, then by the last 10. Three readings, a histogram of
2048 bins a row each time (summed over ranks), no sorting and no memory for the elements.

Where the blocks lie in host memory, one reading does: a sample gives two values that nearly always have the wanted one
between them; the reading counts the elements above and below, and collects the one percent between, among which radix
selection finds it. The counts tell whether the sample was right; if not, the three readings are made. The result is the
same: it is exact either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .. import backend, native
from ..arguments import check_contiguous, check_dtype, check_like
from ..reference import fisher_similarity as reference

Blocks = Tensor | Sequence[Tensor] | Callable[[], Iterable[Tensor]]
Read = Callable[[], Iterator[Tensor]]
Reduce = Callable[[Tensor], None]

BINS = 2048
MIN_SAMPLE = 1 << 14
"""Elements of a row that are looked at before the reading: at least so many, and 0.4 n^(2/3) of n, which balances the
cost of the sample against that of the bracket (of 10^8 elements 1.7 % lie in it for the top 40 %)."""
SAMPLE_DEVIATIONS = 5.0
"""Half the bracket's width in standard deviations of the sampled rank: wrong once in a million."""
MIN_BRACKETED = 1 << 20
"""Shorter rows are read three times: they stay in the caches."""
BETWEEN_SHARE = 16
"""Room for the elements in the bracket: one in so many of the row's."""


def top_threshold(
    blocks: Blocks, *, fraction: float | None = None, count: int | None = None, reduce: Reduce | None = None
) -> Tensor:
    """The ``count``-th largest value of each row: ``count`` of its elements, and those equal to the last, are >= it.

    Args:
        blocks: the rows, in any cut: fp32, contiguous, a tensor [n] (one row) or [P, n], a sequence of such (n may differ
            and be 0), or a function that returns a fresh iterator over such (read three times, one block at a time).
        fraction: in (0, 1]; ``count = max(1, round(fraction * n))`` with n the length of a whole row, over all ranks.
        count: in [1, n]; instead of ``fraction``.
        reduce: sums an int64 tensor over ranks, in place; each rank passes its own part of the rows. The tensor lies on
            the blocks' device. None: there are no other ranks.

    Returns:
        [P] fp32 on the blocks' device; a zero is +0.0.

    Raises:
        ValueError: another dtype or number of rows, not contiguous, no blocks, values that are not finite, ``fraction`` or
            ``count`` out of range.
    """
    if (fraction is None) == (count is None):
        raise ValueError(f"one of fraction and count is needed, but fraction is {fraction} and count is {count}")
    if fraction is not None and not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}, but must be above 0 and at most 1")
    read = reader(blocks)

    def rank_of(n: int) -> int:
        if fraction is not None:
            if n == 0:
                raise ValueError(f"fraction is {fraction}, but blocks hold n = 0 elements a row")
            return max(1, round(fraction * n))
        if not 1 <= count <= n:
            raise ValueError(f"count is {count}, but must be between 1 and the n = {n} elements of a row")
        return count

    if not callable(blocks):
        thresholds = _bracketed(list(read()), rank_of, reduce or _alone)
        if thresholds is not None:
            return thresholds
    return _radix_select(read, rank_of, reduce or _alone)


def reader(blocks: Blocks) -> Read:
    """A function that goes through ``blocks`` once a call, as [P, n_b] tensors, and checks them on the way."""
    if isinstance(blocks, Tensor):
        return lambda: iter([_as_rows("blocks", blocks, None)])
    if not callable(blocks) and not isinstance(blocks, Sequence):
        raise ValueError(
            f"blocks is a {type(blocks).__name__}, but must be a tensor, a sequence of tensors, or a function that returns "
            "a fresh iterator each time it is called"
        )

    def read() -> Iterator[Tensor]:
        first = None
        for i, block in enumerate(blocks() if callable(blocks) else blocks):
            rows = _as_rows(f"blocks[{i}]", block, first)
            first = rows if first is None else first
            yield rows
        if first is None:
            raise ValueError("blocks has 0 tensors, but needs at least 1 (which may be empty)")

    return read


def _as_rows(name: str, block: Tensor, first: Tensor | None) -> Tensor:
    check_dtype(name, block, (torch.float32,))
    check_contiguous(name, block)
    if block.dim() not in (1, 2):
        raise ValueError(f"{name} has shape {list(block.shape)}, but needs [n] or [P, n]")
    rows = block.view(1, -1) if block.dim() == 1 else block
    if rows.shape[0] == 0:
        raise ValueError(f"{name} has shape {list(block.shape)}, but needs at least 1 row")
    if first is not None:
        check_like(name, rows, "blocks[0]", first)
        if rows.shape[0] != first.shape[0]:
            raise ValueError(f"{name} has {rows.shape[0]} rows, but blocks[0] has {first.shape[0]}")
    return rows


def _alone(_: Tensor) -> None:
    """Sums over one rank."""


# ------------------------------------------------------------------------------------------------------- radix selection


@torch.library.custom_op("mnmt::radix_histogram", mutates_args=("histogram",))
def radix_histogram(values: Tensor, prefix: Tensor, level: int, histogram: Tensor) -> None:
    """``reference.radix_histogram``."""
    rows, n = values.shape
    assert histogram.shape == (rows, BINS)
    assert histogram.is_contiguous()
    if backend.implementation("fisher_similarity", values.device.type) == "reference":
        reference.radix_histogram(values, prefix, level, histogram)
    elif values.device.type == "cuda":
        from .. import native_cuda

        native_cuda.radix_histogram(values, prefix, level, histogram)
    else:
        addresses = values.data_ptr(), rows, n, prefix.data_ptr(), level, histogram.data_ptr()
        native.module().radix_histogram(*addresses, native.threads())


@radix_histogram.register_fake
def _(values: Tensor, prefix: Tensor, level: int, histogram: Tensor) -> None:
    return None


def _radix_select(read: Read, rank_of: Callable[[int], int | Tensor], reduce: Reduce, *, finite: bool = True) -> Tensor:
    """[P] values of rank ``rank_of(n)`` (1 is the largest; a number, or [P]) of rows of n elements over all ranks."""
    prefix = rank = expected = None
    for level, (_, bits) in enumerate(reference.DIGITS):
        histogram = None
        for block in read():
            if histogram is None:
                histogram = torch.zeros(block.shape[0], BINS, dtype=torch.int64, device=block.device)
                prefix = histogram.new_zeros(block.shape[0]) if prefix is None else prefix
            if block.shape[1]:
                radix_histogram(block, prefix, level, histogram)
        reduce(histogram)
        found = histogram.sum(dim=1)
        if level == 0:
            if finite:
                _check_finite(histogram)
            rank = torch.zeros_like(found) + rank_of(int(found[0]))
        elif not torch.equal(found, expected):
            raise ValueError(f"blocks held {expected.tolist()} elements of one prefix when read first, then {found.tolist()}")
        from_top = histogram.flip(1).cumsum(1)
        place = (from_top < rank[:, None]).sum(dim=1, keepdim=True)
        expected = histogram.flip(1).gather(1, place)[:, 0]
        rank = rank - (from_top.gather(1, place)[:, 0] - expected)
        prefix = prefix << bits | (BINS - 1 - place[:, 0])
    return reference.values_of_keys(prefix) + 0.0  # -0.0 becomes 0.0


def _check_finite(histogram: Tensor) -> None:
    """The keys of what is not finite fill the four bins at either end of level 0, and nothing else does."""
    bad = (histogram[:, :4].sum(dim=1) + histogram[:, -4:].sum(dim=1)).tolist()
    if any(bad):
        row = next(i for i, number in enumerate(bad) if number)
        total = int(histogram[row].sum())
        raise ValueError(f"blocks must be finite, but {bad[row]} of the {total} values of row {row} are infinite or NaN")


# ---------------------------------------------------------------------------------------------------- in a single reading


def _bracketed(blocks: list[Tensor], rank_of: Callable[[int], int], reduce: Reduce) -> Tensor | None:
    """What ``_radix_select`` returns, if one reading is enough for it. Whether it is depends on sums over ranks alone, so
    all ranks go the same way."""
    device = blocks[0].device
    if device.type != "cpu" or backend.implementation("fisher_similarity", device.type) != "native":
        return None
    n_local = sum(b.shape[1] for b in blocks)
    n = _sum(n_local, reduce)
    if n < MIN_BRACKETED:
        return None
    rank = rank_of(n)
    low, high = _bracket(_sample(blocks, n // max(MIN_SAMPLE, int(0.4 * n ** (2 / 3)))), rank / n, reduce)
    counts, candidates = _collect(blocks, low, high, n_local // BETWEEN_SHARE + BINS)
    reduce(counts)
    above_high, from_high, above_low, from_low, unusable = counts.unbind(1)
    if unusable.any() or (rank <= above_high).any() or (rank > from_low).any():
        return None
    is_high, is_low = rank <= from_high, rank > above_low
    if (is_high | is_low).all():
        return torch.where(is_high, high, low)
    ranks = (rank - from_high).clamp(min=1)
    between = _radix_select(lambda: iter([candidates]), lambda _: ranks, reduce, finite=False)
    return torch.where(is_high, high, torch.where(is_low, low, between))


def _sum(number: int, reduce: Reduce) -> int:
    total = torch.tensor([number], device="cpu")
    reduce(total)
    return int(total)


def _sample(blocks: list[Tensor], stride: int) -> Tensor:
    """[P, s] elements at the same places of all rows, one at random of every ``stride``."""
    lengths = [b.shape[1] for b in blocks]
    count = sum(lengths) // stride
    generator = torch.Generator("cpu").manual_seed(0)
    offsets = torch.randint(stride, (count,), generator=generator, device="cpu")
    places = torch.arange(0, count * stride, stride, device="cpu") + offsets
    starts = torch.tensor([0, *lengths], device="cpu").cumsum(0)
    cuts = torch.searchsorted(places, starts).tolist()
    parts = [blocks[0].new_empty(blocks[0].shape[0], 0)]
    for block, i, j, start in zip(blocks, cuts, cuts[1:], starts.tolist()):
        if i < j:  # row by row: many times faster than block[:, places]
            parts.append(torch.stack([row.index_select(0, places[i:j] - start) for row in block]))
    return torch.cat(parts, dim=1)


def _bracket(sample: Tensor, share: float, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """(low, high), each [P]: values of the sample that the one with ``share`` of a row's elements above it is between."""
    size = _sum(sample.shape[1], reduce)
    slack = SAMPLE_DEVIATIONS * (size * share * (1 - share)) ** 0.5 + 1
    first, last = int(share * size - slack), int(share * size + slack) + 1
    limit = sample.new_full((sample.shape[0],), torch.finfo(torch.float32).max)

    def of_rank(rank: int) -> Tensor:
        return _radix_select(lambda: iter([sample]), lambda _: rank, reduce, finite=False)

    return of_rank(last) if last <= size else -limit, of_rank(first) if first >= 1 else limit


def _collect(blocks: list[Tensor], low: Tensor, high: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """[P, 5] counts and the candidates [P, m] of ``collect_between`` (csrc/include/mnmt/fisher_similarity.h), rows filled
    up with -inf."""
    P = low.shape[0]
    counts, sizes = low.new_zeros(P, 5, dtype=torch.int64), low.new_zeros(P, dtype=torch.int64)
    candidates = low.new_empty(P, capacity)
    outputs = (*native.addresses((low, high, counts, candidates)), capacity, sizes.data_ptr(), native.threads())
    for block in blocks:
        native.module().collect_between(block.data_ptr(), *block.shape, *outputs)
    sizes.clamp_(max=capacity)
    longest = int(sizes.max())
    for row, size in enumerate(sizes.tolist()):
        candidates[row, size:longest] = -torch.inf
    return counts, candidates[:, :longest].contiguous()
