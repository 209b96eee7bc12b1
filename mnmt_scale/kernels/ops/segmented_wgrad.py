"""Linear, norm and embedding layers whose one backward pass gives the weight gradient of every task, and their Gram.

Forward and the gradient of the input are the plain layer's. The K weight gradients (``wgrad_products``) exist together, in
one [K, ...] buffer, until the tape has taken their inner products and their combination (``task_tape``), and are freed
before the next layer's: K times the largest layer, never K times the model. The tied output layer is in
``segmented_output``.

Of all parameters reached by a tape's backward pass each must be reached through these functions, once: what goes backward
is the unweighted sum of the task losses, so a plain layer would get the gradient for alpha = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import check_dtype, check_like, check_shape
from ..once import differentiable_once
from ..segments import Segments
from .task_tape import TaskTape
from .wgrad_products import embedding_wgrad, linear_wgrad, norm_wgrad

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
IDS = (torch.int64, torch.int32)


def segmented_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, tape: TaskTape, group: str, name: str | None = None
) -> Tensor:
    """``x weight^T + bias``; the gradients of the weights, task by task, go to ``tape``.

    Args:
        x: [N, in].  weight: [out, in].  bias: [out] or None; all of one dtype.
        segments: which rows of ``x`` belong to which task; they cover N.
        group: in whose Gram they are counted, beside the total.
        name: the module's; ``reduce`` and ``diagonal`` of the tape see ``name + ".weight"``; None: ``group``.

    Returns:
        [N, out], differentiable once. The backward pass gives the weights ``sum_k alpha_k grad L_k``, and ``x`` the
        gradient of the unweighted sum.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, segments that do not cover ``x``; in the backward pass,
            a parameter that was used twice.
    """
    check_matrix("x", x, segments, tape)
    check_shape("weight", weight, [None, x.shape[1]], f"x of shape {list(x.shape)}")
    check_like("weight", weight, "x", x)
    check_vector("bias", bias, x, weight.shape[0])
    return _Linear.apply(x, weight, bias, Use(tape, segments, group, name or group, {"weight": weight, "bias": bias}))


def segmented_layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    segments: Segments,
    tape: TaskTape,
    group: str,
    name: str | None = None,
) -> Tensor:
    """Layer norm over the last dimension of x [N, D]; weight, bias: [D] or None. Otherwise as ``segmented_linear``."""
    check_matrix("x", x, segments, tape)
    check_vector("weight", weight, x, x.shape[1])
    check_vector("bias", bias, x, x.shape[1])
    return _LayerNorm.apply(x, weight, bias, eps, Use(tape, segments, group, name or group, {"weight": weight, "bias": bias}))


def segmented_embedding(
    ids: Tensor, weight: Tensor, segments: Segments, tape: TaskTape, group: str, name: str | None = None
) -> Tensor:
    """Rows ``ids`` [N] of weight [V, D]. Otherwise as ``segmented_linear``.

    Where ``segmented_linear_cross_entropy`` got the same ``weight`` and these ids as its ``embedding_ids``, the inner
    products between the two uses are added here, whose backward pass is the later.
    """
    check_ids("ids", ids, weight)
    check_dtype("weight", weight, FLOATS)
    segments.check(ids.shape[0], tape.num_tasks)
    return _Embedding.apply(ids, weight, Use(tape, segments, group, name or group, {"weight": weight}))


@dataclass(frozen=True)
class Use:
    """One call of a layer: where its gradients go. The parameters are the caller's own objects, which tell one from
    another even where autograd saves copies (activation checkpointing) or memory moves (ZeRO-3)."""

    tape: TaskTape
    segments: Segments
    group: str
    name: str
    parameters: dict[str, Tensor | None] = field(repr=False)

    def parameter_name(self, kind: str) -> str:
        """``kind``: "weight" or "bias"."""
        return f"{self.name}.{kind}"

    def claim(self, kind: str) -> None:
        """Notes that the parameter's gradient is about to be measured."""
        self.tape.claim(self.parameters[kind], self.parameter_name(kind))

    def combine(self, **gradients: Tensor | None) -> list[Tensor | None]:
        """Per-task gradients [K, ...] to the tape; their combinations, None for None."""
        given = {kind: g for kind, g in gradients.items() if g is not None}
        for kind in given:
            self.claim(kind)
        named = {self.parameter_name(kind): g for kind, g in given.items()}
        combined = dict(zip(given, self.tape.combine(self.group, named), strict=True)) if named else {}
        return [combined.get(kind) for kind in gradients]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, use):
        ctx.use = use
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        (x, weight), use, dy = ctx.saved_tensors, ctx.use, dy.contiguous()
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        d_weight, d_bias = linear_wgrad(x, dy, use.segments, use.tape.num_tasks, weight=for_weight, bias=for_bias)
        combined = use.combine(weight=d_weight, bias=d_bias)
        return dy @ weight if for_x else None, *combined, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, use):
        y, mean, rstd = torch.native_layer_norm(x, x.shape[1:], weight, bias, eps)
        ctx.use = use
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        (x, weight, mean, rstd), use, dy = ctx.saved_tensors, ctx.use, dy.contiguous()
        for_x, for_weight, for_bias, _, _ = ctx.needs_input_grad
        asked = {"weight": for_weight, "bias": for_bias}
        d_weight, d_bias = norm_wgrad(x, dy, mean, rstd, use.segments, use.tape.num_tasks, **asked)
        combined = use.combine(weight=d_weight, bias=d_bias)
        d_x = None
        if for_x:
            backward = torch.ops.aten.native_layer_norm_backward
            d_x = backward(dy, x, x.shape[1:], mean, rstd, weight, None, [True, False, False])[0]
        return d_x, *combined, None, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids, weight, use):
        ctx.use, ctx.shape = use, weight.shape
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight)

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        (ids,), use, tape = ctx.saved_tensors, ctx.use, ctx.use.tape
        rows, output_part = tape.untie(use.parameters["weight"])
        if rows is None:
            use.claim("weight")
            rows = tape.ids_of(ids)
        _, stacked = embedding_wgrad(ids, dy.contiguous(), use.segments, tape.num_tasks, rows)
        gram, (combined,) = tape.measure({use.parameter_name("weight"): stacked}, rows, beside=output_part)
        tape.add(use.group, gram)
        return None, dy.new_zeros(ctx.shape).index_copy_(0, rows, combined), None


def check_matrix(name: str, x: Tensor, segments: Segments, tape: TaskTape) -> None:
    """``x`` is [N, *], and the segments cover it."""
    check_shape(name, x, [None, None], "a packed matrix of tokens")
    check_dtype(name, x, FLOATS)
    segments.check(x.shape[0], tape.num_tasks)


def check_vector(name: str, vector: Tensor | None, x: Tensor, width: int) -> None:
    """None, or [width] beside ``x`` in its dtype."""
    if vector is not None:
        check_like(name, vector, "x", x)
        check_shape(name, vector, [width], "the layer's width")


def check_ids(name: str, ids: Tensor, weight: Tensor) -> None:
    """[N] integers below V. On a GPU this waits for the device, as finding out which ids are present does later."""
    check_shape("weight", weight, [None, None], "a table of rows")
    check_shape(name, ids, [None], "a packed sequence of tokens")
    check_dtype(name, ids, IDS)
    check_like(name, ids, "weight", weight, dtype=False)
    if ids.numel():
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= weight.shape[0]:
            raise ValueError(f"{name} holds {low if low < 0 else high}, but weight has {weight.shape[0]} rows (from 0)")
