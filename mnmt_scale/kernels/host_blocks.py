"""Blocks of host memory as a GPU reads them: the next ones travel while it works on one, and those that fit stay there.

What ``fisher_similarity`` and ``top_threshold`` take as ``blocks`` where the rows lie in host memory: 200 tasks of 418 M
parameters are 334 GB. Their transfer is the slowest part by far, and the thresholds of Overlap ask for all elements four
times; so as many blocks as the device has room for are kept from the first reading on, and only the others travel again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

AHEAD = 2
"""Blocks on their way while one is worked on: one would do if work on all of them took the same time."""
KEPT_SHARE = 0.5
"""Of the device's free memory, for blocks that are kept; masks and whatever else the caller has need some too."""


class HostBlocks:
    """A function that goes through ``blocks`` on ``device``, a fresh iterator a call, one reading at a time.

    A tensor of the iterator holds its values until the next one is asked for. Work on it belongs on the current stream.

    Args:
        blocks: [n_b] or [P, n_b] host tensors, contiguous; their values must not change meanwhile. Only pinned memory
            travels while the device works.
        device: of the tensors that come; on a CPU they are ``blocks`` themselves.
        keep_bytes: memory on the device for blocks that are kept, the first ones; None: ``KEPT_SHARE`` of what is free at
            the first reading.
    """

    def __init__(self, blocks: Sequence[Tensor], device: torch.device, *, keep_bytes: int | None = None) -> None:
        self.blocks, self.device, self.keep_bytes = blocks, device, keep_bytes
        self._side: torch.cuda.Stream | None = None
        self._memory: list[Tensor | None] = []
        self._arrived: dict[int, torch.cuda.Event] = {}
        self._ring: list[Tensor] = []
        self._read: list[torch.cuda.Event | None] = [None] * (AHEAD + 1)
        self._next = 0

    def __call__(self) -> Iterator[Tensor]:
        if self.device.type == "cpu":
            yield from self.blocks
            return
        if self._side is None:
            self._prepare()
        todo = iter(range(len(self.blocks)))
        ahead: deque[tuple[Tensor, torch.cuda.Event, int | None]] = deque()
        for i in range(AHEAD + len(self.blocks)):
            if (number := next(todo, None)) is not None:
                ahead.append(self._send(number))
            if i < AHEAD:
                continue
            block, arrived, slot = ahead.popleft()
            torch.cuda.current_stream(self.device).wait_event(arrived)
            try:
                yield block
            finally:  # also where the reader gives up
                if slot is not None:
                    self._read[slot] = torch.cuda.current_stream(self.device).record_event()

    @property
    def kept(self) -> int:
        """Blocks that stay on the device; 0 before the first reading."""
        return sum(memory is not None for memory in self._memory)

    def _prepare(self) -> None:
        """All memory at once: what is allocated later might hold work of the current stream for the copies to wait for."""
        room = self.keep_bytes if self.keep_bytes is not None else int(KEPT_SHARE * _free_bytes(self.device))
        for block in self.blocks:
            room -= block.nbytes
            self._memory.append(_empty(block.shape, self.device) if room >= 0 else None)
        passing = [block.numel() for block, memory in zip(self.blocks, self._memory) if memory is None]
        self._ring = [_empty((max(passing),), self.device) for _ in range(AHEAD + 1)] if passing else []
        self._side = torch.cuda.Stream(self.device)
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        for memory in (*self._memory, *self._ring):
            if memory is not None:
                memory.record_stream(self._side)  # else it might be given away under a copy that nobody waited for

    def _send(self, number: int) -> tuple[Tensor, torch.cuda.Event, int | None]:
        """Starts the copy of a block that is not there: its place, the event of its arrival, and its slot of the ring."""
        host, kept = self.blocks[number], self._memory[number]
        if kept is not None and number in self._arrived:
            return kept, self._arrived[number], None
        slot = None
        if kept is None:
            slot, self._next = self._next, (self._next + 1) % len(self._ring)
            if (read := self._read[slot]) is not None:
                self._side.wait_event(read)
        target = self._ring[slot][: host.numel()].view(host.shape) if kept is None else kept
        with torch.cuda.stream(self._side):
            target.copy_(host, non_blocking=True)
            arrived = self._side.record_event()
        if kept is not None:
            self._arrived[number] = arrived
        return target, arrived, slot


def _empty(shape: Sequence[int], device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


def _free_bytes(device: torch.device) -> int:
    """What can still be allocated, torch's own reserves included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
