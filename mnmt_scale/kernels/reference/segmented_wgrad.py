"""What the per-task weight gradients mean: a loop over the tasks, each on its own rows alone.

With ``dy`` the gradient that reaches a layer's output, and R_k the rows of task k:

    linear     dW_k = dy[R_k]^T x[R_k]                          db_k = sum_{t in R_k} dy_t
    norm       dw_k = sum_{t in R_k} dy_t * xhat_t              db_k as above
    embedding  dE_k[v] = sum_{t in R_k, ids_t = v} dy_t

Sums are fp32 for the narrow types (fp64 for fp64) and are rounded once to the type of ``dy``. A task without rows has a
gradient of zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import Segments, take


def linear_wgrad(x: Tensor, dy: Tensor, segments: Segments, num_tasks: int) -> Tensor:
    """[K, out, in] weight gradients from x [N, in] and dy [N, out]."""
    parts = [take(_wide(dy), spans).t() @ take(_wide(x), spans) for spans in segments.spans(num_tasks)]
    return torch.stack(parts).to(dy.dtype)


def sum_wgrad(dy: Tensor, segments: Segments, num_tasks: int) -> Tensor:
    """[K, out] bias gradients from dy [N, out]."""
    return torch.stack([take(_wide(dy), spans).sum(dim=0) for spans in segments.spans(num_tasks)]).to(dy.dtype)


def norm_wgrad(x: Tensor, dy: Tensor, mean: Tensor, rstd: Tensor, segments: Segments, num_tasks: int) -> tuple[Tensor, Tensor]:
    """[K, D] gradients of weight and bias from x, dy [N, D] and the rows' mean and 1/deviation [N, 1]."""
    product = _wide(dy) * ((_wide(x) - mean) * rstd)
    return sum_wgrad(product, segments, num_tasks).to(dy.dtype), sum_wgrad(dy, segments, num_tasks)


def embedding_wgrad(index: Tensor, dy: Tensor, rows: int, segments: Segments, num_tasks: int) -> Tensor:
    """[K, rows, D]: row ``index[t]`` of task k gets ``dy[t]`` for each of its tokens t; index [N], dy [N, D]."""
    out = torch.zeros(num_tasks, rows, dy.shape[1], dtype=_wide(dy).dtype, device=dy.device)
    for k, spans in enumerate(segments.spans(num_tasks)):
        out[k].index_add_(0, take(index, spans), take(_wide(dy), spans))
    return out.to(dy.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
