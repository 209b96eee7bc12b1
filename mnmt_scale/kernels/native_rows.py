"""The row kernels over the vocabulary in C++ (``csrc/cpu/vocabulary_rows.cpp``): fp32, bf16 and fp16 rows on CPU.

Their meaning, in torch: ``reference/vocabulary_rows.py``. Arguments were checked by the ops that call; what is asserted
here is what the addresses rest on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native


def teacher_rows(
    logits: Tensor, mixture: Tensor, weights: Tensor, targets: Tensor, temperature: float, accumulate: bool
) -> Tensor:
    """Adds one teacher to the mixture of teachers.

    Args:
        logits: [n, V] fp32, bf16 or fp16; read only.
        mixture: [n, V] fp32; row t becomes (or, with ``accumulate``, gains) ``weights[t] softmax(logits[t] / temperature)``.
        weights: [n] fp32.  targets: [n] int64, all in [0, V).

    Returns:
        [n, 2] fp32: ``-log softmax(logits)[target]`` at temperature 1, and the entropy of ``softmax(logits / temperature)``.
    """
    n, V = logits.shape
    _check(logits, (n, V), *native.DTYPES)
    _check(mixture, (n, V), torch.float32)
    _check(weights, (n,), torch.float32)
    _check(targets, (n,), torch.int64)
    results = torch.empty(n, 2, dtype=torch.float32, device="cpu")
    native.module().teacher_rows(
        logits.data_ptr(), native.DTYPES[logits.dtype], n, V, mixture.data_ptr(), weights.data_ptr(), targets.data_ptr(),
        temperature, accumulate, results.data_ptr(), native.threads(),
    )  # fmt: skip
    return results


def student_rows(
    logits: Tensor,
    out: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    mixture: Tensor | None,
    mixture_weights: Tensor | None,
    label_smoothing: float,
    temperature: float,
) -> Tensor:
    """Losses of a student's rows and, in ``out``, their gradient.

    Args:
        logits: [n, V] fp32, bf16 or fp16.
        out: [n, V] fp32, bf16 or fp16, possibly ``logits`` itself: receives ``weights (p - (1 - label_smoothing)
            onehot(target)) + temperature (mixture_weights softmax(logits / temperature) - mixture)``; None: losses only.
        targets: [n] int64, all in [0, V).  weights: [n] fp32; None: all 1.
        mixture: [n, V] fp32 sum of weighted teachers, and mixture_weights: [n] fp32 sum of their weights; or both None.

    Returns:
        [n, 3] fp32: ``-log p[target]``; ``mean_v -log p[v]``; ``temperature^2 sum_v mixture[v] (-log softmax(logits /
        temperature)[v])``, 0 without a mixture.
    """
    n, V = logits.shape
    _check(logits, (n, V), *native.DTYPES)
    _check(targets, (n,), torch.int64)
    assert (mixture is None) == (mixture_weights is None)
    for wide, shape in ((weights, (n,)), (mixture, (n, V)), (mixture_weights, (n,))):
        if wide is not None:
            _check(wide, shape, torch.float32)
    if out is not None:
        _check(out, (n, V), *native.DTYPES)
        assert out.dtype == logits.dtype or out.data_ptr() != logits.data_ptr(), (out.dtype, logits.dtype)
    out_type = native.DTYPES[(logits if out is None else out).dtype]
    results = torch.empty(n, 3, dtype=torch.float32, device="cpu")
    native.module().student_rows(
        logits.data_ptr(), native.DTYPES[logits.dtype], n, V, _address(out), out_type, targets.data_ptr(),
        _address(weights), _address(mixture), _address(mixture_weights), label_smoothing, temperature,
        results.data_ptr(), native.threads(),
    )  # fmt: skip
    return results


def _check(tensor: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    assert tensor.device.type == "cpu", tensor.device
    assert tensor.is_contiguous(), tensor.stride()
    assert tensor.shape == shape, (tensor.shape, shape)
    assert tensor.dtype in dtypes, (tensor.dtype, dtypes)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
