"""Output projection and label-smoothed cross-entropy in one op that never holds the [T, V] matrix.

The gradients are computed in the forward pass (``kernels.chunks`` says how); the backward pass hands them out. Nothing of
the weight is kept for it (under ZeRO-3 the weight exists only while the forward pass of its module runs).

Deviation from the reference: bf16 and fp16 logits are rounded to that type on CPU, whose matrix product has no wider
output (fp16 logits beyond 65504 overflow there); softmax and losses are fp32 either way, and the target's entry of ``dz``
is computed in fp32 before it is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ready_gradients
from ..chunks import Student, Workspace, check_facts, check_student, chunk_rows, logits_type, per_task, target_facts, wide_type
from ..reference import linear_cross_entropy as reference


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    segments: Sequence[int],
    label_smoothing: float = 0.0,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Label-smoothed negative log-likelihood of ``targets`` under ``softmax(hidden weight^T)``.

    Args:
        hidden: [T, D].  weight: [V, D], of the same dtype.
        targets: [T] int64; ``IGNORE`` rows cost nothing and get no gradient.
        scale: [T] factor of each token's loss in ``total``; no gradient flows into it.
        segments: [K+1] offsets: tokens ``segments[k]:segments[k+1]`` belong to task k.
        label_smoothing: eps, spread over all V as in ``torch.nn.functional.cross_entropy``.
        chunk_tokens: rows of logits that exist at once; None: ``chunk_rows``.

    Returns:
        total: scalar (fp32; fp64 for fp64 input) with a graph, ``sum_t scale_t loss_t``; differentiable once.
        sums, nlls: [K] of the same dtype, detached: sums of the smoothed and of the plain losses.
        tokens: [K] int64, rows that are not ignored.

    Raises:
        ValueError: shapes, dtypes, devices or segments that do not fit, a target that is neither in 0..V-1 nor ``IGNORE``,
            a scale that is not finite, a label smoothing outside [0, 1).
    """
    check_student(hidden, weight, targets, scale, segments, label_smoothing, chunk_tokens)
    if ready_gradients.unfused():
        if targets.shape[0]:
            check_facts(target_facts(targets, scale)[1].tolist(), scale, weight.shape[0])
        return reference.linear_cross_entropy(hidden, weight, targets, scale, segments, label_smoothing)
    chunk = chunk_tokens or chunk_rows(weight.shape[0], weight.device.type, weight.dtype)
    total, sums, tokens, *_ = _op(
        hidden, weight, targets, scale.detach(), segments, label_smoothing, chunk, *ready_gradients.wanted(hidden, weight)
    )
    return total, sums[0], sums[1], tokens


@torch.library.custom_op("mnmt::linear_cross_entropy", mutates_args=())
def _op(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    segments: Sequence[int],
    label_smoothing: float,
    chunk_tokens: int,
    hidden_gradient: bool,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(total, [2, K] smoothed and plain losses, [K] tokens, d_hidden, d_weight, factor of both), a gradient empty where not
    wanted."""
    T, V, wide = hidden.shape[0], weight.shape[0], wide_type(hidden.dtype)
    rows = kept_rows(targets, scale, V)
    h, y, s = (hidden, targets, scale) if rows is None else (hidden[rows], targets[rows], scale[rows])
    y, s, n = y.contiguous(), s.to(wide), y.shape[0]
    workspace = Workspace(min(chunk_tokens, n), V, [logits_type(hidden)], hidden.device)
    gradient_scale, factor = ready_gradients.in_range(s, hidden.dtype)
    student = Student(h, weight, y, gradient_scale, None, label_smoothing, 1.0, (hidden_gradient, weight_gradient), workspace)
    losses = torch.empty(n, 2, dtype=wide, device=hidden.device)
    for a in range(0, n, chunk_tokens):
        b = min(a + chunk_tokens, n)
        nll, uniform, _ = student.chunk(a, b).unbind(dim=1)
        losses[a:b, 0] = torch.lerp(nll, uniform, label_smoothing)
        losses[a:b, 1] = nll
    d_hidden, d_weight = student.gradients()
    if hidden_gradient and rows is not None:
        d_hidden = torch.zeros_like(hidden).index_copy_(0, rows, d_hidden)
    sums, tokens = per_task(losses, rows, T, segments)
    return torch.dot(losses[:, 0], s), sums.t().contiguous(), tokens, d_hidden, d_weight, factor


@_op.register_fake
def _(hidden, weight, targets, scale, segments, label_smoothing, chunk_tokens, hidden_gradient, weight_gradient):
    K, wide = len(segments) - 1, wide_type(hidden.dtype)
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty(2, K, dtype=wide),
        hidden.new_empty(K, dtype=torch.int64),
        hidden.new_empty(hidden.shape if hidden_gradient else 0),
        weight.new_empty(weight.shape if weight_gradient else 0),
        hidden.new_empty((), dtype=wide),
    )


_op.register_autograd(ready_gradients.hand_out, setup_context=lambda ctx, inputs, output: ready_gradients.save(ctx, output))


def kept_rows(targets: Tensor, scale: Tensor, vocabulary_size: int) -> Tensor | None:
    """[n] rows that are not ignored, ascending; None where that is all of them. Checks the values on the way."""
    if targets.shape[0] == 0:
        return None
    kept, facts = target_facts(targets, scale)
    count = check_facts(facts.tolist(), scale, vocabulary_size)
    return None if count == targets.shape[0] else kept.nonzero_static(size=count)[:, 0]
