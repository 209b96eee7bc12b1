"""What this machine can do, measured in the run that quotes it: reading, copying, reading and writing back, multiplying.

Bandwidths count the bytes that must move: n for reading and for a transfer from pinned host memory, 2 n for a copy, 12 per
element for an fp32 ``addcmul_`` (its target is read and written). The rate of matrix products is the best of the products
of an output layer at the shapes of machine translation (narrow inner dimension) and, on GPU, of a large square; each has a
row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Container
from dataclasses import dataclass, field

import torch

from ..kernels import native
from .table import Row, row
from .timing import Clock

REPETITIONS = 9  # of a stream; products, which take seconds, five times
STREAM_BYTES = {"cpu": 512 << 20, "cuda": 4 << 30}
QUICK_STREAM_BYTES = 8 << 20
TRANSFER_BYTES = 512 << 20
PRODUCTS = {
    # [rows, inner] x [inner, columns]: logits, gradient of the hidden states, gradient of the weight
    "cpu": [(2048, 512, 32000), (2048, 32000, 512), (32000, 2048, 512)],
    "cuda": [(16384, 512, 65536), (16384, 65536, 512), (65536, 16384, 512), (16384, 1024, 65536), (8192, 8192, 8192)],
}
QUICK_PRODUCTS = [(64, 64, 512)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


Stream = tuple[Callable[[], object], int]
"""The call to time, and its bytes or FLOPs."""


@dataclass
class Peaks:
    """Rates by name (``read``, ``copy``, ``update``, ``transfer`` in bytes/s; ``product fp32``, ``product bf16`` in FLOP/s),
    the rows that say so, and why a rate is missing. ``streams`` (call, bytes) are those of memory: short enough to be
    measured again beside every case, since the bandwidth of a shared machine changes by a factor of two within minutes."""

    rates: dict[str, float] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def measure_peaks(device: torch.device, clock: Clock, wanted: Container[str], *, quick: bool = False) -> Peaks:
    """Measure the streams of ``device`` and the products that are ``wanted``; a failure becomes a row and an entry of
    ``missing``."""
    peaks = Peaks()
    n = (QUICK_STREAM_BYTES if quick else STREAM_BYTES[device.type]) // 4
    settings = {"op": "machine", "device": device.type, "threads": torch.get_num_threads()}
    streams = [("read", _read, n), ("copy", _copy, n), ("update", _update, n)]
    if "transfer" in wanted:
        streams.append(("transfer", _transfer, min(n, TRANSFER_BYTES // 4)))
    for name, start, n in streams:
        stream = _measure(peaks, name, f"{name}, {4 * n >> 20} MiB", start(n, device), clock, settings)
        if stream is not None and name in wanted:
            peaks.streams[name] = stream
    products = QUICK_PRODUCTS if quick else PRODUCTS[device.type]
    for dtype_name, dtype in DTYPES.items():
        for m, k, n in products if f"product {dtype_name}" in wanted else ():
            settings_here = settings | {"dtype": dtype_name}
            if device.type == "cuda" and dtype == torch.float32:
                settings_here["tf32"] = torch.backends.cuda.matmul.allow_tf32
            case = f"matrix product [{m}, {k}] [{k}, {n}], {dtype_name}"
            _measure(peaks, f"product {dtype_name}", case, _product(m, k, n, dtype, device), clock, settings_here)
    return peaks


def _measure(peaks: Peaks, name: str, case: str, start: Callable[[], Stream], clock: Clock, settings: dict) -> Stream | None:
    giga, unit = (1e12, "TFLOP/s") if name.startswith("product") else (1e9, "GB/s")
    metric = "rate" if name.startswith("product") else "bandwidth"
    try:
        call, work = start()
        call()
        rates = [work / clock.time(call)[0] for _ in range(5 if name.startswith("product") else REPETITIONS)]
    except Exception as problem:
        peaks.missing.setdefault(name, f"{name} was not measured: {problem}")
        peaks.rows.append(row("kernels", case, "machine", metric, None, unit, **settings, error=str(problem)))
        return None
    peaks.rates[name] = max(peaks.rates.get(name, 0.0), statistics.median(rates))
    peaks.rows.append(row("kernels", case, "machine", metric, [r / giga for r in rates], unit, **settings))
    return call, work


def _read(n: int, device: torch.device) -> Callable[[], Stream]:
    def start():
        data = torch.ones(n, device=device)
        if device.type == "cuda":
            return data.sum, 4 * n
        if native.problem is not None:
            raise RuntimeError(native.problem)
        module, threads = native.module(), native.threads()
        return lambda: module.read_stream(data.data_ptr(), n, threads), 4 * n

    return start


def _copy(n: int, device: torch.device) -> Callable[[], Stream]:
    def start():
        source, target = torch.ones(n, device=device), torch.zeros(n, device=device)
        return lambda: target.copy_(source), 8 * n

    return start


def _update(n: int, device: torch.device) -> Callable[[], Stream]:
    def start():
        source, target = torch.ones(n, device=device), torch.zeros(n, device=device)
        return lambda: target.addcmul_(source, source, value=1e-3), 12 * n

    return start


def _transfer(n: int, device: torch.device) -> Callable[[], Stream]:
    def start():
        source = torch.ones(n, pin_memory=device.type == "cuda", device="cpu")
        target = torch.zeros(n, device=device)
        return lambda: target.copy_(source, non_blocking=True), 4 * n

    return start


def _product(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Stream]:
    def start():
        a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
        out = torch.empty(m, n, device=device, dtype=dtype)
        return lambda: torch.mm(a, b, out=out), 2 * m * k * n

    return start
