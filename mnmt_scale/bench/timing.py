"""One measured call: caches flushed before it, its time by the device's own clock, and the memory that it takes."""

from __future__ import annotations

import ctypes
import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import MnmtError, nearest

_GPU_FLUSH_BYTES = 512 << 20
"""Several times the largest L2 there is (H100, H200: 50 MB)."""
_DEFAULT_L3_BYTES = 64 << 20
_CYCLES_PER_MS = 1_800_000
"""Of a GPU's clock, roughly: for a delay whose length does not matter."""


class Clock:
    """Times calls on one device, each from cold caches.

    Args:
        device: where the calls run.
        flush: read a buffer larger than the last cache before each call. Reading it leaves nothing that would have to be
            written back while the call is timed.
        ahead_ms: a GPU waits so long before each call, while the host launches it: then the time is the device's alone, as
            in a training whose host runs ahead. 0: from an idle device, with the time that the host takes.

    Attributes:
        host_seconds: of the last call, until it returned to the host.
    """

    def __init__(self, device: torch.device, *, flush: bool = True, ahead_ms: float = 0.0) -> None:
        self.device, self.ahead_ms, self.host_seconds = device, ahead_ms, 0.0
        size = _GPU_FLUSH_BYTES if device.type == "cuda" else 2 * last_cache_bytes()
        self._buffer = torch.ones(size // 4 if flush else 0, dtype=torch.float32, device=device)  # zeros might be no memory

    def time(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of one call, and what it returned."""
        self._buffer.sum()
        if self.device.type != "cuda":
            began = time.perf_counter()
            result = call()
            self.host_seconds = time.perf_counter() - began
            return self.host_seconds, result
        torch.cuda.synchronize(self.device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if self.ahead_ms:
            torch.cuda._sleep(int(self.ahead_ms * _CYCLES_PER_MS))
        start.record()
        began = time.perf_counter()
        result = call()
        self.host_seconds = time.perf_counter() - began
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / 1e3, result


def chosen_device(name: str | None) -> torch.device:
    """The device that ``--device`` names: cpu or cuda; None: a GPU where there is one.

    Raises:
        MnmtError: E102 for another name, or for cuda where torch sees no GPU.
    """
    known = ("cpu", "cuda")
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in known:
        raise MnmtError("E102", f"there is no device {name!r}", where="--device", remedy=nearest(name, known) or "cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MnmtError("E102", "torch sees no GPU", where="--device", remedy="leave --device out, or give cpu")
    return torch.device(name)


def peak_extra_bytes(device: torch.device, call: Callable[[], Any]) -> tuple[int | None, Any]:
    """Memory in use during a call beyond that before it, at its highest, and what the call returned.

    On a GPU as the caching allocator counts it. On CPU the high-water mark of resident memory, which Linux resets on
    request: whatever the allocator (torch, numpy, C++, MKL) and however short, at the cost of one system call. Free
    memory is given back before, so that it cannot be used again unseen. None where the mark cannot be reset.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM
        before = _status_bytes("VmRSS")
    except (OSError, AttributeError):
        return None, call()
    result = call()
    return max(0, _status_bytes("VmHWM") - before), result


def available_bytes(device: torch.device) -> int:
    """Memory that can still be allocated without swapping."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return psutil.virtual_memory().available


def release(device: torch.device) -> None:
    """Give free memory back, after a failure above all; nothing where the device is lost, which whoever uses it next says."""
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def in_one_line(problem: BaseException) -> str:
    """What a row says about an exception."""
    line = next((part.strip() for part in str(problem).splitlines() if part.strip()), "")
    memory = isinstance(problem, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(problem)
    kind = "out of memory" if memory else type(problem).__name__
    return f"{kind}: {line[:200]}" if line else kind


class TooLong(BaseException):
    """A ``time_limit`` is over. No ``Exception``, which compilers catch on the way to try something else."""


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Ends what runs inside with ``TooLong`` after so many seconds of wall time; None: never.

    In the main thread of a process alone, as signals are, and between two steps of the interpreter: one call into a library
    is not interrupted. It comes again each second until somebody listens.
    """
    if seconds is None:
        yield
        return

    def over(*_: Any) -> None:
        raise TooLong(f"{what} took longer than {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, over)
    began = time.monotonic()
    left, again = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's timer goes on
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), again)


def last_cache_bytes() -> int:
    """Size of the last-level cache of one core, as Linux knows it."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii").strip()
        return int(text.rstrip("K")) << 10
    except (OSError, ValueError):
        return _DEFAULT_L3_BYTES


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {key}")
