"""The CUDA kernels of ``mnmt_scale._C``: tables, workspaces and launches for tensors that the ops have checked.

Everything lies on one CUDA device and is contiguous; launches go to that device's current stream and nothing waits for
them. The C++ side allocates nothing: tables and workspaces are tensors of torch's caching allocator, whose memory is
reused in stream order. A launch that fails is a ``RuntimeError`` with the message of the CUDA runtime.

Results depend on values, lengths and addresses modulo 16 only: the same bits on every run, on any number of
multiprocessors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .native import DTYPES, addresses, module, stream

BINS = 2048
"""Of a radix histogram: digits of 11 bits (the last level's 10 fill the first half)."""


def task_gram(
    fragments: list[Tensor],
    tasks: int,
    diagonal: list[Tensor],
    coefficients: list[float],
    combination: list[Tensor],
) -> Tensor:
    """Gram matrix of ``tasks`` gradients, and their combination in the same launch where ``tasks <= 8``.

    Args:
        fragments: tasks * F tensors, task-major, fp32, bf16 or fp16; every task is cut alike.
        diagonal: F fp32 tensors of weights, or empty.
        coefficients: one per task, or empty.
        combination: F tensors like one task's fragments, written: sum_k coefficients[k] g_k; or empty.

    Returns:
        [tasks, tasks] fp64 on the device.
    """
    assert fragments
    assert len(fragments) % tasks == 0, (tasks, len(fragments))
    count, device, dtype = len(fragments) // tasks, fragments[0].device, DTYPES[fragments[0].dtype]
    assert len(diagonal) in (0, count), (count, len(diagonal))
    assert len(combination) in (0, count), (count, len(combination))
    assert not combination or len(coefficients) == tasks, (tasks, len(coefficients))
    native, weighted, combined = module(), bool(diagonal), bool(combination)
    lengths = [fragment.numel() for fragment in fragments[:count]]

    def plan(address: int) -> int:
        outputs = addresses(combination)
        given = coefficients if combined else []
        return native.cuda_gram_plan(dtype, tasks, addresses(fragments), lengths, addresses(diagonal), outputs, given, address)

    with torch.cuda.device(device):
        table, chunks = _table(native.cuda_gram_table_size(tasks, count, weighted, combined), plan, device)
        workspace = torch.empty(native.cuda_gram_workspace_size(tasks, chunks), dtype=torch.float64, device=device)
        gram = torch.empty(tasks, tasks, dtype=torch.float64, device=device)
        pointers = table.data_ptr(), chunks, workspace.data_ptr(), gram.data_ptr(), stream(device)
        native.cuda_task_gram(dtype, tasks, count, weighted, combined, *pointers)
    return gram


def fisher_accumulate(fisher: list[Tensor], gradients: list[Tensor], scale: float) -> None:
    """In place F += scale * g^2; ``fisher`` fp32, ``gradients`` of one of the three dtypes, cut alike."""
    if not fisher:
        return
    assert len(fisher) == len(gradients), (len(fisher), len(gradients))
    native, device, dtype = module(), fisher[0].device, DTYPES[gradients[0].dtype]
    lengths = [fragment.numel() for fragment in fisher]

    def plan(address: int) -> int:
        return native.cuda_fisher_plan(dtype, addresses(fisher), addresses(gradients), lengths, address)

    with torch.cuda.device(device):
        table, chunks = _table(native.cuda_fisher_table_size(len(fisher)), plan, device)
        native.cuda_fisher_accumulate(dtype, len(fisher), table.data_ptr(), chunks, scale, stream(device))


def radix_histogram(values: Tensor, prefix: Tensor, level: int, histogram: Tensor) -> None:
    """Adds the counts of one digit of the ordered keys under a prefix (``mnmt/cuda.h``).

    Args:
        values: [P, n] fp32.
        prefix: [P] int64, unused on level 0.
        level: 0, 1 or 2.
        histogram: [P, 2048] int64, added to.
    """
    rows, n = values.shape
    assert level in (0, 1, 2), level
    assert prefix.shape == (rows,), (values.shape, prefix.shape)
    assert histogram.shape == (rows, BINS), (values.shape, histogram.shape)
    with torch.cuda.device(values.device):
        module().cuda_radix_histogram(
            values.data_ptr(), rows, n, prefix.data_ptr(), level, histogram.data_ptr(), stream(values.device)
        )


def pack_masks(values: Tensor, thresholds: Tensor, masks: Tensor) -> None:
    """Writes bit i of word w of ``masks`` [P, ceil(n / 64)] int64 as values[64 w + i] >= thresholds; 0 beyond n."""
    rows, n = values.shape
    assert thresholds.shape == (rows,), (values.shape, thresholds.shape)
    assert masks.shape == (rows, (n + 63) // 64), (values.shape, masks.shape)
    with torch.cuda.device(values.device):
        module().cuda_pack_masks(values.data_ptr(), rows, n, thresholds.data_ptr(), masks.data_ptr(), stream(values.device))


def mask_overlap(masks: Tensor, counts: Tensor) -> None:
    """Adds popcount(m_i & m_j) of all pairs of rows of ``masks`` [P, W] int64 to ``counts`` [P, P] int64."""
    rows, words = masks.shape
    assert counts.shape == (rows, rows), (masks.shape, counts.shape)
    with torch.cuda.device(masks.device):
        module().cuda_mask_overlap(masks.data_ptr(), rows, words, counts.data_ptr(), stream(masks.device))


def pair_sums(values: Tensor, mse: Tensor, kl: Tensor, eps: float, largest: float) -> None:
    """Adds, for rows i (target) and j (auxiliary) of ``values`` [P, n] fp32, sum (F_i - F_j)^2 to ``mse`` [P, P] fp64 and
    sum F_j (log(F_j + eps) - log(F_i + eps)) to ``kl`` [P, P] fp64.

    Args:
        largest: of the values.
    """
    rows, n = values.shape
    assert mse.shape == (rows, rows), (values.shape, mse.shape)
    assert kl.shape == (rows, rows), (values.shape, kl.shape)
    native, device = module(), values.device
    with torch.cuda.device(device):
        workspace = torch.empty(native.cuda_pair_sums_workspace_size(rows, n), dtype=torch.float64, device=device)
        _, exponent = math.frexp(largest)
        scale = 2.0 ** max(-126, min(126, 1 - exponent))
        pointers = workspace.data_ptr(), mse.data_ptr(), kl.data_ptr(), stream(device)
        native.cuda_pair_sums(values.data_ptr(), rows, n, eps, scale, *pointers)


def _table(size: int, plan: Callable[[int], int], device: torch.device) -> tuple[Tensor, int]:
    """The table that ``plan`` fills at an address in pinned memory, on the device after one copy; and what it returned.

    torch keeps the pinned block until the copy is done, so the buffer may be dropped at once.
    """
    if torch.cuda.is_current_stream_capturing():  # a replay would copy from memory that was given back
        raise RuntimeError("ops on lists of fragments cannot be captured in a CUDA graph")
    host = torch.empty(size, dtype=torch.int64, device="cpu", pin_memory=True)
    chunks = plan(host.data_ptr())
    return host.to(device, non_blocking=True), chunks
