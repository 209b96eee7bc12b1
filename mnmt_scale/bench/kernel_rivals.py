"""Other people's code for the same results, imported only where a case is measured; what is missing says so."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernel_case import Unavailable

TORCH_COMPILE, TORCHJD, LIGER = "torch.compile", "TorchJD", "Liger-Kernel"


def compiled(function: Callable[..., Any], device: torch.device, *, dynamic: bool = False) -> Callable[..., Any]:
    """``torch.compile`` of what a user writes, compiled anew (no cache of an earlier run), so that its time can be told."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise Unavailable("torch.compile needs a C++ compiler on CPU, none was found")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise Unavailable("torch.compile needs triton on GPU, it is not installed")
    torch.compiler.reset()
    torch.compiler.config.force_disable_caches = True
    warnings.filterwarnings("ignore", message=".*force_disable_caches")
    return torch.compile(function, dynamic=dynamic)


def torchjd_gramian() -> Callable[[Tensor], Tensor]:
    """TorchJD's Gramian of a Jacobian [K, ...], as its aggregation of gradients computes it."""
    _needs("torchjd", "torchjd")
    from torchjd._linalg import compute_gramian

    return compute_gramian


def torchjd_engine(module: torch.nn.Module) -> Any:
    """TorchJD's autogram engine over a module, for losses that are no batch (one per task)."""
    _needs("torchjd", "torchjd")
    from torchjd.autogram import Engine

    return Engine(module, batch_dim=None)


def torch_linear_cross_entropy(label_smoothing: float) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """torch's own op, in chunks: mean loss of (hidden, weight, targets, label smoothing)."""
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if function is None or not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy in chunks (2.13 has)")
    if label_smoothing:
        raise Unavailable("its chunks know no label smoothing; without chunks it is the eager version")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda hidden, weight, targets, eps: function(hidden, weight, targets, options=options)


def liger_cross_entropy(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """Liger's Triton kernels: mean loss of (hidden, weight, targets, label smoothing); fp32 sums of the weight gradient."""
    _needs("liger_kernel", "liger-kernel")
    _needs_gpu(device, "Liger-Kernel's Triton kernels")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, eps: float) -> Tensor:
        return LigerFusedLinearCrossEntropyLoss(label_smoothing=eps, accum_dtype=torch.float32)(weight, hidden, targets)

    return loss


def liger_jsd(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Liger's Triton kernels, distillation alone: mean KL(teacher, student) of (hidden, weight, teacher's hidden, weight)."""
    _needs("liger_kernel", "liger-kernel")
    _needs_gpu(device, "Liger-Kernel's Triton kernels")
    from liger_kernel.transformers import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=0.0, accum_dtype=torch.float32)
    return lambda hidden, weight, t_hidden, t_weight: loss(hidden, weight, t_hidden, t_weight, None)


def liger_chunked(device: torch.device, hard: float, soft: float) -> Callable[..., Tensor]:
    """Liger's chunked distillation (compiled torch): hard * NLL + soft * KL(teacher, student), means over tokens, of
    (hidden, weight, teacher's hidden, weight, targets)."""
    _needs("liger_kernel", "liger-kernel")
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=hard, weight_soft_loss=soft, beta=0.0, compiled=True)
    compiled(lambda: None, device)  # the same conditions: a compiler, no cache
    return loss


def numpy_of(tensors: Sequence[Tensor]) -> list[Any]:
    """The same memory as numpy arrays."""
    if any(t.device.type != "cpu" for t in tensors):
        raise Unavailable("numpy runs on CPU only")
    return [t.numpy() for t in tensors]


def _needs(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Unavailable(f"{package} is not installed (pip install 'mnmt_scale[bench]')")


def _needs_gpu(device: torch.device, what: str) -> None:
    if device.type != "cuda":
        raise Unavailable(f"{what} need a GPU")
