"""Gram matrix of per-task gradients, and their combination, in one pass over memory.

A row of K gradients is read once, tile by tile; all K (K + 1) / 2 products are formed while the tile is in cache, and
with known coefficients so is the combination. Sums are fp32 within a tile and fp64 across tiles, in an order that
depends on sizes, K, dtype and instruction set only: two runs, on any number of threads, give the same bits.

Gradients that are not finite make the entries of the Gram matrix NaN or infinite without an error: the caller decides.
Where the processor multiplies bf16 itself (AVX-512 BF16), subnormal elements and partial sums below 1.2e-38 count as
zero. There is no derivative: the results are detached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backend, native
from ..arguments import FLOATS, check_finite, check_fragments, check_same_cut, check_shape
from ..eager import eager
from ..reference import task_gram as reference

Fragments = Tensor | Sequence[Tensor]


def task_gram(gradients: Tensor | Sequence[Fragments], *, diagonal: Fragments | None = None) -> Tensor:
    """``G[i, j] = sum_p w_p g_ip g_jp``.

    Args:
        gradients: [K, d] with contiguous rows; or K tensors; or K lists of contiguous fragments of any shapes, all cut
            alike. fp32, bf16 or fp16 throughout (fp64 runs on the reference).
        diagonal: fp32 weights w, cut like one task's gradient; None: all 1.

    Returns:
        [K, K] fp64, symmetric, on the gradients' device.

    Raises:
        ValueError: devices, dtypes or cuts differ, a fragment is not contiguous, K = 0, ``diagonal`` is not finite (seen
            only where the result is not).
    """
    tasks = _checked(gradients)
    weights = _checked_diagonal(diagonal, tasks[0])
    if not tasks[0]:
        return torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    with torch.no_grad():
        return _task_gram([f for task in tasks for f in task], len(tasks), weights)


def task_gram_combine(
    gradients: Tensor | Sequence[Fragments],
    coefficients: Tensor | Sequence[float],
    *,
    diagonal: Fragments | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """``task_gram`` and ``sum_k coefficients[k] g_k`` from the same pass.

    Args:
        gradients, diagonal: as for ``task_gram``; the combination is not weighted by ``diagonal``.
        coefficients: [K].

    Returns:
        [K, K] fp64, and the fragments of the combination in the dtype and shapes of the first task's, summed in fp32.

    Raises:
        ValueError: as ``task_gram``; not K coefficients, or one that is not finite in fp32.
    """
    tasks = _checked(gradients)
    weights = _checked_diagonal(diagonal, tasks[0])
    values = _checked_coefficients(coefficients, len(tasks))
    if not tasks[0]:
        return torch.zeros(len(tasks), len(tasks), dtype=torch.float64), []
    with torch.no_grad():
        return _task_gram_combine([f for task in tasks for f in task], len(tasks), weights, values)


def combine_made(
    tasks: Sequence[Sequence[Tensor]], coefficients: Sequence[float], weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """``task_gram_combine`` of fragments that the caller made, contiguous, cut alike and of one dtype: no time is spent on
    checks.

    Args:
        tasks: K lists of one fragment or more.
        coefficients: K, finite in fp32.
        weights: of one task's fragments, fp32; empty: all 1.
    """
    fragments = [f for task in tasks for f in task]
    if not eager(fragments[0]):
        return _task_gram_combine(fragments, len(tasks), weights, coefficients)
    with torch.no_grad():
        combination = [torch.empty_like(f) for f in tasks[0]]
        return _run(fragments, len(tasks), weights, coefficients, combination), combination


def check_list(name: str, fragments: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> None:
    """``check_fragments``, which is slow for thousands of them, where a glance finds something wrong."""
    if not fragments:
        return
    dtype, device = fragments[0].dtype, fragments[0].device
    if dtype not in dtypes or not all(f.dtype == dtype and f.device == device and f.is_contiguous() for f in fragments):
        check_fragments(name, fragments, dtypes)


def _checked(gradients: Tensor | Sequence[Fragments]) -> list[list[Tensor]]:
    """[K][F] fragments."""
    if isinstance(gradients, Tensor):
        check_shape("gradients", gradients, (None, None), "a tensor of K gradients")
        gradients = list(gradients.unbind())
    tasks = [[task] if isinstance(task, Tensor) else list(task) for task in gradients]
    if not tasks:
        raise ValueError("gradients holds 0 tasks, but must hold at least 1")
    sizes = [f.numel() for f in tasks[0]]
    for k, task in enumerate(tasks):
        check_list(f"gradients[{k}]", task, (*FLOATS, torch.float64))
        if [f.numel() for f in task] != sizes:
            check_same_cut(f"gradients[{k}]", task, "gradients[0]", tasks[0])
        if task:
            check_fragments("gradients", (tasks[0][0], task[0]), (*FLOATS, torch.float64))
    return tasks


def _checked_diagonal(diagonal: Fragments | None, task: list[Tensor]) -> list[Tensor]:
    if diagonal is None:
        return []
    weights = [diagonal] if isinstance(diagonal, Tensor) else list(diagonal)
    wide = bool(task) and task[0].dtype == torch.float64
    check_list("diagonal", weights, (torch.float32, torch.float64) if wide else (torch.float32,))
    check_same_cut("diagonal", weights, "gradients[0]", task)
    return weights


def _checked_coefficients(coefficients: Tensor | Sequence[float], tasks: int) -> list[float]:
    values = torch.as_tensor(coefficients, dtype=torch.float32).detach()
    check_shape("coefficients", values, (tasks,), f"a combination of {tasks} gradients")
    check_finite("coefficients", values)
    return values.tolist()


@torch.library.custom_op("mnmt::task_gram", mutates_args=())
def _task_gram(gradients: Sequence[Tensor], tasks: int, diagonal: Sequence[Tensor]) -> Tensor:
    return _run(gradients, tasks, diagonal, [], [])


@_task_gram.register_fake
def _(gradients: Sequence[Tensor], tasks: int, diagonal: Sequence[Tensor]) -> Tensor:
    return gradients[0].new_empty(tasks, tasks, dtype=torch.float64)


@torch.library.custom_op("mnmt::task_gram_combine", mutates_args=())
def _task_gram_combine(
    gradients: Sequence[Tensor], tasks: int, diagonal: Sequence[Tensor], coefficients: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    combination = [torch.empty_like(f) for f in gradients[: len(gradients) // tasks]]
    return _run(gradients, tasks, diagonal, coefficients, combination), combination


@_task_gram_combine.register_fake
def _(gradients: Sequence[Tensor], tasks: int, diagonal: Sequence[Tensor], coefficients: Sequence[float]):
    gram = gradients[0].new_empty(tasks, tasks, dtype=torch.float64)
    return gram, [torch.empty_like(f) for f in gradients[: len(gradients) // tasks]]


def _run(
    gradients: Sequence[Tensor],
    tasks: int,
    diagonal: Sequence[Tensor],
    coefficients: Sequence[float],
    combination: list[Tensor],
) -> Tensor:
    """[K, K]; writes ``combination`` unless it is empty."""
    device, dtype = gradients[0].device, gradients[0].dtype
    count = len(gradients) // tasks
    kind = backend.implementation("task_gram", device.type, dtype)
    if kind == "reference":
        nested = [gradients[k * count : (k + 1) * count] for k in range(tasks)]
        gram = reference.task_gram(nested, diagonal)
        if combination:
            for out, total in zip(combination, reference.combine(nested, coefficients), strict=True):
                out.copy_(total)
    elif device.type == "cuda":
        from .. import native_cuda

        gram = native_cuda.task_gram(list(gradients), tasks, list(diagonal), list(coefficients), combination)
    else:
        gram = torch.empty(tasks, tasks, dtype=torch.float64, device="cpu")
        native.module().task_gram(
            gradients=native.addresses(gradients),
            sizes=[f.numel() for f in gradients[:count]],
            tasks=tasks,
            dtype=native.DTYPES[dtype],
            diagonal=native.addresses(diagonal),
            coefficients=list(coefficients),
            combination=native.addresses(combination),
            gram=gram.data_ptr(),
            threads=native.threads(),
        )
    if diagonal and not math.isfinite(gram.sum().item()):
        for i, weights in enumerate(diagonal):
            check_finite(f"diagonal[{i}]", weights)
    return gram
