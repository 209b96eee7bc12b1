"""Values to select from and to compare, each implementation in turn, and runs over threads and over ranks."""

from __future__ import annotations

import threading

import pytest
import torch

from mnmt_scale.kernels import backend, native
from mnmt_scale.kernels.ops import top_threshold as threshold_ops

SIZES = [1, 7, 63, 64, 65, 65537]
KINDS = ["uniform", "normal", "lognormal", "zeros", "constant", "denormal"]


def values(n, kind="lognormal", rows=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (n,) if rows is None else (rows, n)
    x = torch.randn(shape, generator=g)
    if kind == "uniform":
        x = torch.rand(shape, generator=g)
    if kind == "lognormal":
        x = torch.exp(3 * x - 20)
    if kind == "zeros":  # of either sign
        x = torch.where(torch.rand(shape, generator=g) < 0.7, torch.where(x < 0, -0.0, 0.0), x.square())
    if kind == "constant":
        x = torch.where(torch.rand(shape, generator=g) < 0.9, 0.25, x)
    if kind == "denormal":
        x = x * 1e-41
    return x


@pytest.fixture(params=["reference", *native.module().available_isas()])
def every_kind(request):
    """Runs the test on the reference and on each instruction set."""
    if request.param == "reference":
        with backend.forced("reference"):
            yield
        return
    before = native.module().isa()
    native.module().set_isa(request.param)
    yield
    native.module().set_isa(before)


@pytest.fixture
def small_brackets(monkeypatch):
    """One reading even for short rows."""
    monkeypatch.setattr(threshold_ops, "MIN_BRACKETED", 1024)
    monkeypatch.setattr(threshold_ops, "MIN_SAMPLE", 1024)
    monkeypatch.setattr(threshold_ops, "BETWEEN_SHARE", 4)


def over_threads(run, threads=(1, 2, 3)):
    before = torch.get_num_threads()
    try:
        results = []
        for n in threads:
            torch.set_num_threads(n)
            results.append(run())
        return results
    finally:
        torch.set_num_threads(before)


def over_ranks(run, parts):
    """``run(part, reduce)`` for each part in a thread of its own, as ranks would."""
    barrier, slots, results = threading.Barrier(len(parts), timeout=20), [None] * len(parts), [None] * len(parts)

    def rank(i):
        def reduce(tensor):
            slots[i] = tensor.clone()
            barrier.wait()
            total = sum(slots[1:], slots[0])
            barrier.wait()
            tensor.copy_(total)

        try:
            results[i] = run(parts[i], reduce)
        except Exception as error:
            results[i] = error
            barrier.abort()

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(len(parts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
