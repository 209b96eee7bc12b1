"""Memory that an observed step needs beyond a plain one, and the bound that it is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..model.transformer import Transformer
from .timing import peak_extra_bytes


def bound_bytes(model: Transformer, num_tasks: int, dtype: torch.dtype) -> int:
    """``K x (shared table + largest other layer)`` in the dtype of the gradients: the K gradients of a layer are gone before
    the next layer's are made, but for the rows of the table that the output layer keeps for the embedding
    (``kernels/ops/segmented_output.py``). Without accumulation of gradients; with it and ``gram_over = "step"``, K fp32
    gradients of all parameters come on top.
    """
    layers = [m for m in model.modules() if m is not model.shared]
    largest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in layers)
    return num_tasks * (model.shared.weight.numel() + largest) * dtype.itemsize


def peak_bytes(device: torch.device, call: Callable[[], Any]) -> int:
    """Highest sum of torch's allocations during a call, beyond what is live when it begins.

    Counted, not sampled: on a GPU by the caching allocator, on CPU from the profiler's record of every allocation (which
    does not see older memory being freed). Resident memory would not do: between two equal steps that hold 500 MiB of
    activations it varies by more than what is looked for. Memory that libraries take by themselves is not in it. The call
    is made once before, untracked.
    """
    call()
    if device.type == "cuda":
        peak, _ = peak_extra_bytes(device, call)
        assert peak is not None
        return peak
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events, "the profiler recorded no allocation"
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
