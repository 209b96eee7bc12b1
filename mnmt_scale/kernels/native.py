"""The compiled module ``mnmt_scale._C``, if it was built, and how tensors are handed to it: as addresses."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

try:
    from .. import _C as _module

    problem: str | None = None
    """Why the compiled kernels cannot be used; None where they can."""
except ImportError as error:
    _module = None
    problem = f"mnmt_scale._C is not there ({error}); build it with: pip install -e ."

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Element types as ``csrc/include/mnmt/types.h`` numbers them."""


def module() -> ModuleType:
    """``mnmt_scale._C``; ask ``problem`` first."""
    assert _module is not None, problem
    return _module


def problem_on(device_type: str) -> str | None:
    """Why the compiled kernels cannot run on this kind of device; None where they can."""
    if problem is None and device_type == "cuda" and not module().cuda:
        return "mnmt_scale._C was built without CUDA (nvcc was not found)"
    if problem is None and device_type == "cuda" and torch.cuda.is_available():
        return _problem_of_gpu(torch.cuda.current_device())
    return problem


@cache
def _problem_of_gpu(device: int) -> str | None:
    with torch.cuda.device(device):
        said = module().cuda_problem()
    return f"its CUDA kernels cannot run on {torch.cuda.get_device_name(device)}: {said}" if said else None


def addresses(tensors: Iterable[Tensor]) -> list[int]:
    """Where each tensor's elements begin; the caller keeps the tensors alive during the call."""
    return [t.data_ptr() for t in tensors]


def threads() -> int:
    """Threads of a CPU kernel: torch's own setting."""
    return torch.get_num_threads()


def stream(device: torch.device) -> int:
    """Address of the current CUDA stream of ``device``."""
    return torch.cuda.current_stream(device).cuda_stream
