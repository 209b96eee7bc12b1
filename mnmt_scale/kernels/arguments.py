"""Checks that the ops share: a wrong argument is a ``ValueError`` that names it and both values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_like(name: str, tensor: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    """``tensor`` lies on the device of ``other`` and, unless told otherwise, has its dtype."""
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, but {other_name} is on {other.device}")
    if dtype and tensor.dtype != other.dtype:
        raise ValueError(f"{name} is {tensor.dtype}, but {other_name} is {other.dtype}")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int | None], why: str) -> None:
    """``tensor`` has this shape (None: any length); ``why`` says where the shape comes from."""
    if len(tensor.shape) != len(shape) or any(b is not None and a != b for a, b in zip(tensor.shape, shape, strict=True)):
        wanted = "[" + ", ".join("*" if n is None else str(n) for n in shape) + "]"
        raise ValueError(f"{name} has shape {list(tensor.shape)}, but {why} needs {wanted}")


def check_dtype(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """``tensor`` has one of ``dtypes``."""
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}, but must be one of {', '.join(str(d) for d in dtypes)}")


def check_contiguous(name: str, tensor: Tensor) -> None:
    """``tensor`` is one run of memory: the compiled kernels know its address and length only."""
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous: shape {list(tensor.shape)}, strides {list(tensor.stride())}")


def check_finite(name: str, tensor: Tensor) -> None:
    """For small tensors: on a GPU this waits for the device."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = tensor[~finite].flatten()[0].item()
        raise ValueError(f"{name} must be finite, but holds {bad} ({int((~finite).sum())} of {tensor.numel()} values are not)")


def check_fragments(name: str, fragments: Sequence[Tensor], dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """Contiguous, of one dtype and on one device."""
    for i, fragment in enumerate(fragments):
        check_dtype(f"{name}[{i}]", fragment, dtypes)
        check_like(f"{name}[{i}]", fragment, f"{name}[0]", fragments[0])
        check_contiguous(f"{name}[{i}]", fragment)


def check_same_cut(name: str, fragments: Sequence[Tensor], other_name: str, others: Sequence[Tensor]) -> None:
    """Two lists of fragments cut the same parameters alike and lie on one device."""
    if len(fragments) != len(others):
        raise ValueError(f"{name} has {len(fragments)} fragments, but {other_name} has {len(others)}")
    for i, (a, b) in enumerate(zip(fragments, others, strict=True)):
        if a.numel() != b.numel():
            raise ValueError(f"{name}[{i}] has {a.numel()} elements, but {other_name}[{i}] has {b.numel()}")
        if a.device != b.device:
            raise ValueError(f"{name}[{i}] is on {a.device}, but {other_name}[{i}] is on {b.device}")
