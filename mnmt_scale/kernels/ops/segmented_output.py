"""The output layer with its loss for a pass that measures the tasks, its weight tied to the embedding or not.

As ``linear_cross_entropy`` makes its gradients in the forward pass, so each task's gradient O_k [V, D] of the weight is
made there, and K of them exist until their inner products and their combination are taken, still in the forward pass: K V D
elements more than a plain layer needs, gone before the backward pass begins. The tape learns of it in the backward pass, so
that neither an evaluation nor the second forward pass of activation checkpointing counts.

Tied to the embedding, the gradient of task k is O_k + E_k, with E_k from the embedding's backward pass, long after O_k is
gone. E_k is zero but in the rows of the ids that the batch feeds to the embedding, and

    <O_i + E_i, O_j + E_j> = <O_i, O_j> + <O_i, E_j> + <E_i, O_j> + <E_i, E_j>

needs of O no more than these rows in its last three terms. They are kept, [K, ids, D], until the embedding's backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..chunks import check_facts, check_student, target_facts
from ..once import differentiable_once
from ..segments import Segments, on_device, take
from .linear_cross_entropy import linear_cross_entropy
from .segmented_wgrad import Use, check_ids, check_matrix
from .task_tape import TaskTape


def segmented_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    segments: Segments,
    tape: TaskTape,
    group: str,
    label_smoothing: float = 0.0,
    *,
    embedding_ids: Tensor | None = None,
    name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``linear_cross_entropy`` whose weight's gradients of each task go to ``tape``.

    Args:
        hidden: [T, D].  weight: [V, D], of the same dtype.
        targets: [T] int64 below V; ``IGNORE`` rows cost nothing and get no gradient.
        scale: [T] factor of each token's loss in ``total``, 1/N_k for a mean: without alpha, which the tape has.
        segments: which rows belong to which task; they cover T.
        group: in whose Gram the weight is counted (without the cross terms, which the embedding's group gets).
        label_smoothing: eps, spread over all V.
        embedding_ids: what ``segmented_embedding`` gets in this pass with the same ``weight``; None: not tied.
        name: the module's; ``reduce`` and ``diagonal`` of the tape see ``name + ".weight"``; None: ``group``. For a tied
            weight the one that the embedding is given too.

    Returns:
        total: scalar with a graph, ``sum_t scale_t loss_t``, unweighted; differentiable once.
        sums, nlls: [K] detached: sums of the smoothed and of the plain losses.
        tokens: [K] int64, rows that are not ignored.

    Raises:
        ValueError: shapes, dtypes, devices or ids that do not fit, segments that do not cover ``hidden``; in the backward
            pass, a weight that was used twice, and ids of the embedding that ``embedding_ids`` lack.
    """
    check_matrix("hidden", hidden, segments, tape)
    check_student(hidden, weight, targets, scale, segments.offsets, label_smoothing)
    if hidden.shape[0]:
        check_facts(target_facts(targets, scale)[1].tolist(), scale, weight.shape[0])
    if embedding_ids is not None:
        check_ids("embedding_ids", embedding_ids, weight)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        total, *counts = linear_cross_entropy(hidden, weight, targets, scale, segments.offsets, label_smoothing)
        return total, *(_per_task(c, segments, tape.num_tasks) for c in counts)
    use = Use(tape, segments, group, name or group, {"weight": weight})
    return _SegmentedOutput.apply(hidden, weight, targets, scale.detach(), label_smoothing, embedding_ids, use)


def _per_task(of_pieces: Tensor, segments: Segments, num_tasks: int) -> Tensor:
    tasks = on_device(segments.tasks, torch.int64, of_pieces.device)
    return of_pieces.new_zeros(num_tasks).index_add_(0, tasks, of_pieces)


class _SegmentedOutput(torch.autograd.Function):
    """(total, sums, nlls, tokens), the last three not differentiable."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, scale, eps, embedding_ids, use):
        tape, name = use.tape, use.parameter_name("weight")
        losses, d_hidden, gradients = _task_gradients(hidden, weight, targets, scale, eps, use)
        gram, (combined,) = tape.measure({name: gradients})
        ids, kept = None, []
        if embedding_ids is not None:
            ids = tape.ids_of(embedding_ids)
            kept = tape.kept_rows(name, gradients, ids)
        ctx.use = use
        ctx.save_for_backward(d_hidden, combined, gram, ids, *kept)
        ctx.mark_non_differentiable(*losses[1:])
        ctx.set_materialize_grads(False)
        return losses

    @staticmethod
    @differentiable_once
    def backward(ctx, d_total, *_):
        if d_total is None:
            return (None,) * 7
        (d_hidden, combined, gram, ids, *kept), use = ctx.saved_tensors, ctx.use
        if d_total.device.type != "cpu" or d_total.item() != 1.0:
            d_hidden, combined, *kept = (x * d_total.to(x.dtype) for x in (d_hidden, combined, *kept))
            gram = gram * d_total.double().square()
        if ctx.needs_input_grad[1]:
            use.claim("weight")
            use.tape.add(use.group, gram)
            if ids is not None:
                use.tape.tie(use.parameters["weight"], ids, kept)
        return d_hidden, combined, None, None, None, None, None


def _task_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, eps: float, use: Use
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor | list[Tensor]]:
    """Losses (total, sums, nlls, tokens), the gradient of hidden [T, D] and those of the weight: K of [V, D], which can be
    freed one by one, or [K, V, D] where the tape reduces them over ranks."""
    K, wide = use.tape.num_tasks, torch.float64 if hidden.dtype == torch.float64 else torch.float32
    d_hidden = torch.empty_like(hidden)
    stacked = None if use.tape.reduce is None else weight.new_zeros(K, *weight.shape)
    gradients: list[Tensor] = []
    total, sums, nlls = (torch.zeros(n, dtype=wide, device=hidden.device) for n in ((), K, K))
    tokens = torch.zeros(K, dtype=torch.int64, device=hidden.device)
    w = weight.detach().requires_grad_()
    for k, spans in enumerate(use.segments.spans(K)):
        if not spans:
            gradients.append(torch.zeros_like(weight) if stacked is None else stacked[k])
            continue
        h = take(hidden.detach(), spans).detach().requires_grad_()
        with torch.enable_grad():
            total_k, *counts = linear_cross_entropy(h, w, take(targets, spans), take(scale, spans), (0, h.shape[0]), eps)
        d_h, d_w = torch.autograd.grad(total_k, (h, w))
        gradients.append(d_w if stacked is None else stacked[k].copy_(d_w))
        total += total_k.detach()
        sums[k], nlls[k], tokens[k] = (c[0] for c in counts)
        for (a, b), part in zip(spans, d_h.split([b - a for a, b in spans]), strict=True):
            d_hidden[a:b] = part
        del total_k, d_w  # not alive while the next task's are made
    return (total, sums, nlls, tokens), d_hidden, gradients if stacked is None else stacked
