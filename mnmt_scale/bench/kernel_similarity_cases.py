"""Cases of ``fisher_similarity``: exact thresholds, masks, all-pairs overlap, all-pairs sums, and all of them streamed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .kernel_case import OURS, Candidate, Case, Cost, Outputs, Unavailable, Workload
from .kernel_data import normal, readable
from .kernel_rivals import numpy_of

OP = "fisher_similarity"
FRACTION = 0.4
EPS = 1e-8
_BLOCK = 1 << 20
_PEAK = {"cpu": "read", "cuda": "copy"}
DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "squares of normal": lambda x: x.square_(),
    "lognormal": lambda x: x.mul_(3.0).exp_(),
    "constant-heavy": lambda x: x.square_().clamp_(min=1.0),  # two thirds are the constant
}


def threshold_case(n: int, distribution: str, device: str) -> Case:
    """The exact value that the largest 40 % reach."""
    cost = Cost(4 * n, "4 n bytes", _PEAK[device])

    def build(place: torch.device) -> Workload:
        values = DISTRIBUTIONS[distribution](normal(n, place))
        rank = n - round(FRACTION * n)  # from below, counted from 0

        def truth() -> Outputs:
            return {"threshold": values.kthvalue(rank + 1).values}

        def ours() -> Callable[[], Outputs]:
            from ..kernels.ops.fisher_similarity import top_threshold

            blocks = [values.view(1, -1)]
            return lambda: {"threshold": top_threshold(blocks, fraction=FRACTION)}

        def partition() -> Callable[[], Outputs]:
            (array,) = numpy_of([values])
            return lambda: {"threshold": float(np.partition(array, rank)[rank])}

        rivals = [
            Candidate("numpy partition", partition),
            Candidate("torch kthvalue", lambda: lambda: {"threshold": values.kthvalue(rank + 1).values}),
        ]
        if device == "cuda":
            rivals.append(Candidate("torch sort", lambda: lambda: {"threshold": values.sort().values[rank]}))
        return Workload([Candidate(OURS, ours), *rivals], truth, 0.0, repeatable=True)

    shape = {"n": n, "distribution": distribution, "fraction": FRACTION}
    return Case(OP, f"threshold, n={readable(n)}, {distribution}", shape, cost, 4 * n, build)


def masks_case(pairs: int, n: int, device: str) -> Case:
    """Bit-packed masks of the values that reach a threshold; n is a multiple of 64."""
    assert n % 64 == 0
    cost = Cost(pairs * n * 4 + pairs * n // 8, "P n (4 + 1/8) bytes", _PEAK[device])

    def build(place: torch.device) -> Workload:
        values = normal((pairs, n), place).square_()
        thresholds = torch.linspace(0.5, 1.0, pairs, device=place)

        def truth() -> Outputs:
            bits = [np.packbits((v >= t).cpu().numpy(), bitorder="little") for v, t in zip(values, thresholds, strict=True)]
            return {"packed": torch.from_numpy(np.stack(bits)), "unpacked": values >= thresholds[:, None]}

        def ours() -> Callable[[], Outputs]:
            from ..kernels.ops.fisher_similarity import pack_masks

            return lambda: {"packed": pack_masks(values, thresholds).view(torch.uint8)}

        def packbits() -> Callable[[], Outputs]:
            array, limits = numpy_of([values, thresholds])
            return lambda: {"packed": np.packbits(array >= limits[:, None], axis=1, bitorder="little")}

        rivals = [
            Candidate("numpy packbits", packbits),
            Candidate("eager torch, a byte each", lambda: lambda: {"unpacked": values >= thresholds[:, None]}),
        ]
        return Workload([Candidate(OURS, ours), *rivals], truth, 0.0, repeatable=True)

    name = f"masks, P={pairs}, n={readable(n)}"
    return Case(OP, name, {"P": pairs, "n": n}, cost, pairs * n * 5, build)


def overlap_case(pairs: int, n: int, device: str) -> Case:
    """All-pairs counts of common bits of packed masks."""
    words = -(-n // 64)
    cost = Cost(pairs * words * 8, "P n / 8 bytes", _PEAK[device])

    def build(place: torch.device) -> Workload:
        generator = torch.Generator(device=place).manual_seed(0)
        bounds = -(2**63), 2**63 - 1
        masks = torch.randint(*bounds, (pairs, words), dtype=torch.int64, device=place, generator=generator)

        def truth() -> Outputs:
            return {"overlap": sum(_common_bits(part) for part in masks.split(_BLOCK // 64, dim=1))}

        def ours() -> Callable[[], Outputs]:
            from ..kernels.ops.fisher_similarity import mask_overlap

            return lambda: {"overlap": mask_overlap(masks)}

        def loop() -> Callable[[], Outputs]:
            if not hasattr(np, "bitwise_count"):
                raise Unavailable(f"numpy {np.__version__} has no bitwise_count (2.0 has)")
            (array,) = numpy_of([masks])
            return lambda: {"overlap": _numpy_overlap(array.view(np.uint64))}

        def product() -> Callable[[], Outputs]:
            unpacked = torch.empty(pairs, words * 64, dtype=torch.bool, device=place)
            for to, part in zip(unpacked.split(_BLOCK, dim=1), masks.split(_BLOCK // 64, dim=1), strict=True):
                to.copy_(_unpack(part))

            def call() -> Outputs:
                overlap = torch.zeros(pairs, pairs, dtype=torch.float64, device=place)
                for block in unpacked.split(_BLOCK, dim=1):
                    m = block.float()
                    overlap += m @ m.T  # below 2^24: exact
                return {"overlap": overlap}

            return call

        rivals = [
            Candidate("numpy bitwise_count loop", loop),
            Candidate("eager torch, blocked product of bytes", product, needs_bytes=pairs * n),
        ]
        return Workload([Candidate(OURS, ours), *rivals], truth, 0.0, repeatable=True)

    name = f"overlap, P={pairs}, n={readable(n)}"
    return Case(OP, name, {"P": pairs, "n": n}, cost, pairs * words * 8, build)


def pair_sums_case(pairs: int, n: int, device: str) -> Case:
    """All-pairs sums of squared differences and of the Kullback-Leibler terms."""
    cost = Cost(pairs * n * 4, "P n 4 bytes", _PEAK[device])

    def build(place: torch.device) -> Workload:
        values = normal((pairs, n), place).square_()

        def ours() -> Callable[[], Outputs]:
            from ..kernels.ops.fisher_similarity import pair_sums

            def call() -> Outputs:
                squares, divergence = pair_sums(values, eps=EPS)
                return {"squares": squares, "divergence": divergence}

            return call

        rivals = [
            Candidate("eager torch, a row of pairs at a time", lambda: lambda: _eager_sums(values), 1e-3),
            Candidate("eager torch, products in fp64", lambda: lambda: _sums_by_products(values), 1e-3),
        ]
        return Workload([Candidate(OURS, ours), *rivals], lambda: true_sums(values), 1e-5, repeatable=True)

    name = f"pair sums, P={pairs}, n={readable(n)}"
    return Case(OP, name, {"P": pairs, "n": n}, cost, pairs * n * 4, build)


def streamed_case(pairs: int, d: int, device: str, *, block: int = _BLOCK) -> Case:
    """Masks, overlap and pair sums of ``pairs`` x ``d`` values that never lie in memory together: the same block comes again
    and again, as blocks read from files would."""
    times = max(1, d // block)
    cost = Cost(pairs * times * block * 4, "P d 4 bytes", _PEAK[device])

    def build(place: torch.device) -> Workload:
        values = normal((pairs, block), place).square_()
        thresholds = torch.linspace(0.5, 1.0, pairs, device=place)

        def truth() -> Outputs:
            m = (values >= thresholds[:, None]).double()
            return {"overlap": m @ m.T * times} | {k: v * times for k, v in true_sums(values).items()}

        def ours() -> Callable[[], Outputs]:
            from ..kernels.ops.fisher_similarity import mask_overlap, pack_masks, pair_sums

            def one() -> list[Tensor]:
                return [mask_overlap(pack_masks(values, thresholds)), *pair_sums(values, eps=EPS)]

            return lambda: _summed(one, times)

        def eager() -> list[Tensor]:
            m = (values >= thresholds[:, None]).float()
            return [m @ m.T, *_eager_sums(values).values()]

        rivals = [Candidate("eager torch, block by block", lambda: lambda: _summed(eager, times), 1e-3)]
        return Workload([Candidate(OURS, ours), *rivals], truth, 1e-5, repeatable=True)

    name = f"streamed, P={pairs}, d={readable(d)}, blocks of {readable(block)}"
    return Case(OP, name, {"P": pairs, "d": times * block, "block": block}, cost, pairs * block * 4, build)


def _summed(one: Callable[[], list[Tensor]], times: int) -> Outputs:
    totals = [part.double() for part in one()]
    for _ in range(times - 1):
        totals = [total + part for total, part in zip(totals, one(), strict=True)]
    return dict(zip(("overlap", "squares", "divergence"), totals, strict=True))


def _unpack(words: Tensor) -> Tensor:
    """[P, W] int64 -> [P, 64 W] of 0 and 1."""
    shifts = torch.arange(8, device=words.device, dtype=torch.uint8)
    return (words.contiguous().view(torch.uint8)[..., None] >> shifts & 1).flatten(1)


def _common_bits(words: Tensor) -> Tensor:
    m = _unpack(words).float()
    return (m @ m.T).double()


def _numpy_overlap(masks: np.ndarray) -> np.ndarray:
    P = len(masks)
    counts = np.zeros((P, P), dtype=np.int64)
    for i in range(P):
        for j in range(i + 1):
            counts[i, j] = counts[j, i] = np.bitwise_count(masks[i] & masks[j]).sum()
    return counts


def _eager_sums(values: Tensor) -> dict[str, Tensor]:
    logs = (values + EPS).log()
    squares = torch.stack([(values - v).square().sum(dim=1) for v in values])
    divergence = torch.stack([(values * (logs - log)).sum(dim=1) for log in logs])
    return {"squares": squares, "divergence": divergence}


def _sums_by_products(values: Tensor) -> dict[str, Tensor]:
    """The square and the difference of logarithms multiplied out: rows that are nearly equal cancel, in fp64 only beyond
    seven common digits. The logarithms are fp32."""
    gram = torch.zeros(len(values), len(values), dtype=torch.float64, device=values.device)
    cross = torch.zeros_like(gram)  # row t, column a: sum F_a log F_t
    for part in values.split(_BLOCK, dim=1):
        wide = part.double()
        gram += wide @ wide.T
        cross += (part + EPS).log().double() @ wide.T
    norms = gram.diagonal()
    return {"squares": norms + norms[:, None] - 2 * gram, "divergence": cross.diagonal() - cross}


def true_sums(values: Tensor) -> dict[str, Tensor]:
    """The sums of ``pair_sums`` in fp64, some columns at a time: [P, P] each."""
    totals: dict[str, Tensor] = {}
    for part in values.split(1 << 17, dim=1):
        for name, value in _eager_sums(part.double()).items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
