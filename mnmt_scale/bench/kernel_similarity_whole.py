"""Cases of ``fisher_similarity`` as a whole, thresholds and all metrics: rows that lie on the device, and rows in host memory.

The rows repeat a block of columns, so that the truth is that of the block: the same thresholds and overlaps, the same means,
``times`` the divergence. On the device the repetitions are memory of their own. In host memory, which may be smaller than the
rows and slow to pin, they are a few blocks that come again and again, as blocks read from files into a ring would.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .kernel_case import OURS, Candidate, Case, Cost, Outputs, Workload
from .kernel_data import normal, readable
from .kernel_similarity_cases import EPS, FRACTION, OP, true_sums

RING = 4
"""Host blocks in memory; more of them would only take longer to pin."""
TOLERANCE = 1e-5


def resident_case(pairs: int, columns: int, times: int, device: str) -> Case:
    """[P, times * columns] in the memory of the device, in one call."""
    n = times * columns
    cost = Cost(4 * pairs * n, "P d 4 bytes, once", {"cpu": "read", "cuda": "copy"}[device])

    def build(place: torch.device) -> Workload:
        block = normal((pairs, columns), place).square_()
        values = torch.empty(pairs, n, device=place)
        for part in values.split(columns, dim=1):
            part.copy_(block)

        def ours() -> Callable[[], Outputs]:
            from ..kernels.ops.fisher_similarity import fisher_similarity

            return lambda: _outputs(fisher_similarity(values, fraction=FRACTION, eps=EPS))

        return Workload([Candidate(OURS, ours)], lambda: _truth(block, times), TOLERANCE, repeatable=True)

    shape = {"P": pairs, "d": n, "fraction": FRACTION}
    return Case(OP, f"resident, P={pairs}, d={readable(n)}", shape, cost, 4 * pairs * (n + columns), build)


def streamed_from_host_case(pairs: int, columns: int, times: int, device: str) -> Case:
    """The same rows in host memory, pinned where there is a GPU; beside their transfer alone, once."""
    n = times * columns
    cost = Cost(4 * pairs * n, "P d 4 bytes, once", {"cpu": "read", "cuda": "transfer"}[device])

    def build(place: torch.device) -> Workload:
        block = normal((pairs, columns), torch.device("cpu")).square_()
        if place.type == "cuda":
            block = block.pin_memory()
        ring = [block, *(torch.empty_like(block, pin_memory=block.is_pinned()).copy_(block) for _ in range(RING - 1))]
        blocks = [ring[i % RING] for i in range(times)]

        def ours(keep_bytes: int | None) -> Callable[[], Callable[[], Outputs]]:
            def start() -> Callable[[], Outputs]:
                from ..kernels.host_blocks import HostBlocks
                from ..kernels.ops.fisher_similarity import fisher_similarity

                def call() -> Outputs:  # blocks that an earlier call kept would be no streaming
                    return _outputs(fisher_similarity(HostBlocks(blocks, place, keep_bytes=keep_bytes), eps=EPS))

                return call

            return start

        candidates = [
            Candidate(OURS, ours(None)),
            Candidate("the transfer alone", lambda: _transfers(blocks, place)),
            Candidate("mnmt_scale, four transfers: no block kept", ours(0)),
        ]
        return Workload(candidates, lambda: _truth(block.to(place), times) | {"block": block}, TOLERANCE, repeatable=True)

    shape = {"P": pairs, "d": n, "fraction": FRACTION, "block": columns}
    name = f"streamed from host memory, P={pairs}, d={readable(n)}"
    input_bytes = 4 * pairs * columns * (RING if device == "cpu" else 1)
    return Case(OP, name, shape, cost, input_bytes, build)


def _transfers(blocks: list[Tensor], place: torch.device) -> Callable[[], Outputs]:
    targets = [torch.empty_like(blocks[0], device=place) for _ in range(2)]

    def call() -> Outputs:
        for i, block in enumerate(blocks):
            targets[i % 2].copy_(block, non_blocking=True)
        return {"block": targets[(len(blocks) - 1) % 2]}

    return call


def _outputs(found) -> Outputs:
    return {"thresholds": found.thresholds, "overlap": found.overlap, "mse": found.mse, "kl": found.kl}


def _truth(block: Tensor, times: int) -> Outputs:
    """Of ``times`` copies of ``block``, in fp64."""
    P, n = block.shape
    count = round(FRACTION * n)
    thresholds = torch.stack([row.sort(descending=True).values[count - 1] for row in block])
    shared = torch.zeros(P, P, dtype=torch.float64, device=block.device)
    for part in block.split(1 << 17, dim=1):
        active = (part >= thresholds[:, None]).double()
        shared += active @ active.T
    sums = true_sums(block)
    return {
        "thresholds": thresholds,
        "overlap": shared / shared.diagonal()[:, None],
        "mse": sums["squares"] / n,
        "kl": (sums["divergence"] * times).abs(),
    }
