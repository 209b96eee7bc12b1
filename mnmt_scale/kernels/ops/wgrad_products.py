"""Per-task weight gradients of one layer, as [K, ...] buffers: each task's sum over its own rows.

A matrix product per task into its slice of the buffer, together as many operations as the plain weight gradient (and as
fast, measured: docs/kernels.md); on GPU in bf16 one grouped product for all tasks. For norms torch's own reduction over
the rows of each task; for embeddings torch's own scatter, into K tables of the rows that the batch needs.

Not one product with a [K, N] matrix of ones for the sums: a task whose gradients are infinite would make all others NaN.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend
from ..eager import eager
from ..reference import segmented_wgrad as reference
from ..segments import Segments, take

_norm_backward = torch.ops.aten.native_layer_norm_backward


def linear_wgrad(
    x: Tensor, dy: Tensor, segments: Segments, tasks: int, *, weight: bool = True, bias: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients [K, out, in] of a linear layer's weight and [K, out] of its bias, those that are asked for.

    Args:
        x: [N, in] input.  dy: [N, out] gradient of the output, of the same dtype; segments: of their rows.
        tasks: K.
    """
    if eager(dy):
        d_weight = _linear_products(x, dy, segments, tasks) if weight else None
        return d_weight, _column_sums(dy, segments, tasks) if bias else None
    where = _flat(segments, tasks)
    return linear_products(x, dy, *where) if weight else None, column_sums(dy, *where) if bias else None


def norm_wgrad(
    x: Tensor, dy: Tensor, mean: Tensor, rstd: Tensor, segments: Segments, tasks: int, *, weight: bool = True, bias: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients [K, D] of a layer norm's weight and bias, those that are asked for.

    Args:
        x: [N, D] input.  dy: [N, D] gradient of the output.  mean, rstd: [N, 1] of the rows of x.
    """
    where = _flat(segments, tasks)
    if not weight:
        return None, column_sums(dy, *where) if bias else None
    sums = _norm_sums(x, dy, mean, rstd, segments, tasks) if eager(dy) else norm_sums(x, dy, mean, rstd, *where)
    return sums[0], sums[1] if bias else None


def embedding_wgrad(
    ids: Tensor, dy: Tensor, segments: Segments, tasks: int, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients [K, n, D] of n rows of a table, the others being zero, and which rows these are [n].

    Args:
        ids: [N] row of each token.  dy: [N, D] gradient of the output.
        rows: [n] sorted, without repetition, all of ``ids`` among them; None: just those of ``ids``.

    Raises:
        ValueError: an id is not among ``rows``.
    """
    if rows is None:
        rows = torch.unique(ids)
    index = torch.searchsorted(rows, ids)
    if not torch.equal(F.pad(rows, (0, 1), value=-1)[index], ids):
        missing = ids[~torch.isin(ids, rows)][0].item()
        raise ValueError(f"ids hold {missing}, but rows (a tied output layer's embedding_ids) only {rows.tolist()[:20]}")
    return rows, scatter(index, dy, rows.shape[0], *_flat(segments, tasks))


def _flat(segments: Segments, tasks: int) -> tuple[list[int], list[int], int]:
    return list(segments.offsets), list(segments.tasks), tasks


def _reference() -> bool:
    """Whether the reference is forced. The rest is torch's own products, for every device: nothing to choose from."""
    return backend.forced_kind() == "reference"


def _sum_type(x: Tensor) -> torch.dtype:
    """What to give torch's backward kernels so that they sum in fp32. On GPU they do; on CPU they sum bf16 and fp16 in the
    type itself: 2048 rows of a norm were 4 % off (and no faster), and no token counted more than 256 times."""
    return torch.float32 if x.device.type == "cpu" and x.dtype != torch.float64 else x.dtype


@torch.library.custom_op("mnmt::segmented_wgrad_linear", mutates_args=())
def linear_products(x: Tensor, dy: Tensor, offsets: list[int], tasks: list[int], num_tasks: int) -> Tensor:
    """[K, out, in] ``dy_k^T x_k``."""
    return _linear_products(x, dy, Segments(offsets, tasks), num_tasks)


def _linear_products(x: Tensor, dy: Tensor, segments: Segments, num_tasks: int) -> Tensor:
    if _reference():
        return reference.linear_wgrad(x, dy, segments, num_tasks)
    if _can_group(x, dy, segments, num_tasks):
        return grouped_products(x, dy, segments)
    out = x.new_empty(num_tasks, dy.shape[1], x.shape[1])
    for k, spans in enumerate(segments.spans(num_tasks)):
        if spans:
            torch.mm(take(dy, spans).t(), take(x, spans), out=out[k])
        else:
            out[k].zero_()
    return out


def grouped_products(x: Tensor, dy: Tensor, segments: Segments) -> Tensor:
    """The same in one launch, for one piece a task."""
    return F.grouped_mm(dy.t(), x, offs=ends_on(segments.offsets, x.device))


@lru_cache(maxsize=16)
def ends_on(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """[P] int32 ends of the pieces. Kept, since a copy from the host waits for the device: all layers of a pass, which have
    three sets of rows (source, target, both), would wait one after the other."""
    return torch.tensor(offsets[1:], dtype=torch.int32, device=device)


def _can_group(x: Tensor, dy: Tensor, segments: Segments, num_tasks: int) -> bool:
    """bf16 from sm_80 on, rows of whole 16 bytes, one filled piece a task, in order."""
    return (
        x.device.type == "cuda"
        and x.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and x.is_contiguous()
        and dy.is_contiguous()
        and all(n % 16 == 0 for n in (2 * x.shape[1], 2 * dy.shape[1], x.data_ptr(), dy.data_ptr()))
        and segments.tasks == tuple(range(num_tasks))
        and all(segments.spans(num_tasks))
    )


@torch.library.custom_op("mnmt::segmented_wgrad_sum", mutates_args=())
def column_sums(dy: Tensor, offsets: list[int], tasks: list[int], num_tasks: int) -> Tensor:
    """[K, out] sums of the rows of each task."""
    return _column_sums(dy, Segments(offsets, tasks), num_tasks)


def _column_sums(dy: Tensor, segments: Segments, num_tasks: int) -> Tensor:
    if _reference():
        return reference.sum_wgrad(dy, segments, num_tasks)
    out = dy.new_empty(num_tasks, dy.shape[1])
    for k, spans in enumerate(segments.spans(num_tasks)):
        torch.sum(take(dy, spans), dim=0, out=out[k])
    return out


@torch.library.custom_op("mnmt::segmented_wgrad_norm", mutates_args=())
def norm_sums(
    x: Tensor, dy: Tensor, mean: Tensor, rstd: Tensor, offsets: list[int], tasks: list[int], num_tasks: int
) -> tuple[Tensor, Tensor]:
    """[K, D] sums of ``dy * xhat`` and of ``dy``."""
    return _norm_sums(x, dy, mean, rstd, Segments(offsets, tasks), num_tasks)


def _norm_sums(x: Tensor, dy: Tensor, mean: Tensor, rstd: Tensor, segments: Segments, num_tasks: int) -> tuple[Tensor, Tensor]:
    if _reference():
        return reference.norm_wgrad(x, dy, mean, rstd, segments, num_tasks)
    D, wide = x.shape[1], _sum_type(x)
    d_weight, d_bias = x.new_zeros(num_tasks, D), x.new_zeros(num_tasks, D)
    one = torch.ones(D, dtype=wide, device=x.device)  # the weight's value plays no part in its gradient
    for k, spans in enumerate(segments.spans(num_tasks)):
        if spans:
            dy_k, x_k, mean_k, rstd_k = (take(t, spans) for t in (dy, x, mean, rstd))
            if wide != x.dtype:
                dy_k, x_k, mean_k, rstd_k = dy_k.to(wide), x_k.to(wide), mean_k.to(wide), rstd_k.to(wide)
            _, d_weight[k], d_bias[k] = _norm_backward(dy_k, x_k, [D], mean_k, rstd_k, one, one, [False, True, True])
    return d_weight, d_bias


@torch.library.custom_op("mnmt::segmented_wgrad_embedding", mutates_args=())
def scatter(index: Tensor, dy: Tensor, rows: int, offsets: list[int], tasks: list[int], num_tasks: int) -> Tensor:
    """[K, rows, D]: row ``index[t]`` of the task of token t gets ``dy[t]``."""
    segments = Segments(offsets, tasks)
    if _reference():
        return reference.embedding_wgrad(index, dy, rows, segments, num_tasks)
    place = segments.task_of_rows(index.device) * rows + index
    out = torch.ops.aten.embedding_dense_backward(dy.to(_sum_type(dy)), place, num_tasks * rows, -1, False)
    return out.to(dy.dtype).view(num_tasks, rows, dy.shape[1])


@linear_products.register_fake
def _(x, dy, offsets, tasks, num_tasks):
    return x.new_empty(num_tasks, dy.shape[1], x.shape[1])


@column_sums.register_fake
def _(dy, offsets, tasks, num_tasks):
    return dy.new_empty(num_tasks, dy.shape[1])


@norm_sums.register_fake
def _(x, dy, mean, rstd, offsets, tasks, num_tasks):
    return x.new_empty(num_tasks, x.shape[1]), x.new_empty(num_tasks, x.shape[1])


@scatter.register_fake
def _(index, dy, rows, offsets, tasks, num_tasks):
    return dy.new_empty(num_tasks, rows, dy.shape[1])
