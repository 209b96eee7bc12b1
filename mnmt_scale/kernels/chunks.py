"""What the losses over a vocabulary share: chunks of tokens, the memory of a chunk, the student's side of every chunk.

The scales of the tokens are known before the forward pass, so the gradients of hidden states and weight are computed in
the forward pass, chunk by chunk, while a chunk's probabilities exist. With ``z = hidden weight^T``, ``eps`` the label
smoothing and ``w0`` a token's weight of the labels, only

    dz = w0 (p - (1 - eps) onehot(y)) + tau (W softmax(z / tau) - mixture)

is made as a matrix. The rest of the gradient, ``- w0 eps / V`` in every entry, is of rank one and is applied to the small
results: ``w0 eps / V * sum_v weight[v]`` to each row of the hidden gradient, and ``eps / V * sum_t scale_t w0_t hidden_t``
to each row of the weight gradient, once.

``dz`` is scaled only after it went through a product, and in fp16 the scales (1 / tokens) are brought up to 1 first and
their factor applied in the backward pass together with the loss scale: else they would vanish.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..flow import IGNORE
from .arguments import FLOATS, check_dtype, check_like, check_shape
from .ops.vocabulary_rows import student_rows
from .segments import on_device

CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}
"""Size of a chunk's fp32 probabilities. CPU: measured (docs/kernels.md), they should stay in the caches. GPU: each chunk
adds to the fp32 weight gradient, which should cost little beside the products."""
MIN_CHUNK, MAX_CHUNK = 256, 8192


def chunk_rows(vocabulary_size: int, device_type: str = "cpu", dtype: torch.dtype = torch.float32) -> int:
    """Rows of a chunk: as many as make its fp32 probabilities ``CHUNK_BYTES`` large, a multiple of 64 within bounds. On CPU
    narrow types have twice the least rows: their products are quick, beside the pass over the fp32 weight gradient."""
    rows = CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"]) // (4 * vocabulary_size) // 64 * 64
    least = 2 * MIN_CHUNK if device_type == "cpu" and dtype.itemsize < 4 else MIN_CHUNK
    return max(least, min(MAX_CHUNK, rows))


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses and sums: fp32, fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def logits_type(tensor: Tensor) -> torch.dtype:
    """The dtype of logits that are a product of ``tensor``: wide where the device's product of narrow types can be."""
    return wide_type(tensor.dtype) if tensor.is_cuda else tensor.dtype


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a b``, in the dtype of ``a`` or, on a GPU, of ``logits_type``."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


class Workspace:
    """Rows over the vocabulary of whichever dtype, in one piece of memory that the parts of a chunk use in turn."""

    def __init__(self, rows: int, vocabulary_size: int, dtypes: Sequence[torch.dtype], device: torch.device) -> None:
        self.vocabulary_size = vocabulary_size
        size = rows * vocabulary_size * max(dtype.itemsize for dtype in dtypes)
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)

    def rows(self, count: int, dtype: torch.dtype) -> Tensor:
        """[count, V], of any content."""
        return self.memory[: count * self.vocabulary_size * dtype.itemsize].view(dtype).view(count, self.vocabulary_size)


class Student:
    """The student in every chunk: its logits, its losses and, where asked for, the gradients of its two factors.

    Args:
        hidden: [n, D], no row ignored.  weight: [V, D].  targets: [n], all in 0..V-1.
        scale: [n] factor of each token's loss, wide.
        label_weights: [n] w0, wide; None: all 1.
        gradients: (of hidden, of weight) wanted.
        workspace: takes the logits of a chunk, and its ``dz`` where that has their dtype.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        label_weights: Tensor | None,
        label_smoothing: float,
        temperature: float,
        gradients: tuple[bool, bool],
        workspace: Workspace,
    ) -> None:
        self.hidden, self.weight, self.targets, self.scale, self.label_weights = hidden, weight, targets, scale, label_weights
        self.label_smoothing, self.temperature, self.workspace = label_smoothing, temperature, workspace
        self.wants_hidden, self.wants_weight = gradients
        wide, V = scale.dtype, weight.shape[0]
        self.dz_memory = workspace
        if any(gradients) and logits_type(hidden) != hidden.dtype:
            rows = workspace.memory.numel() // (V * logits_type(hidden).itemsize)
            self.dz_memory = Workspace(rows, V, [hidden.dtype], hidden.device)
        self.d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if self.wants_hidden else None
        self.weight_sum = weight.sum(dim=0, dtype=wide) if self.wants_hidden and label_smoothing else None
        self.d_weight = torch.empty(weight.shape, dtype=wide, device=weight.device) if self.wants_weight else None
        self.narrow_product: Tensor | None = None

    def chunk(self, a: int, b: int, mixture: Tensor | None = None, mixture_weights: Tensor | None = None) -> Tensor:
        """Tokens a..b: their losses [b - a, 3], columns of ``student_rows``; chunks come in order, without gaps."""
        h, targets = self.hidden[a:b], self.targets[a:b]
        w0 = None if self.label_weights is None else self.label_weights[a:b]
        logits = self.workspace.rows(b - a, logits_type(h))
        product(h, self.weight.t(), logits)
        dz = self.dz_memory.rows(b - a, h.dtype) if self.wants_hidden or self.wants_weight else None
        losses = student_rows(logits, dz, targets, w0, mixture, mixture_weights, self.label_smoothing, self.temperature)
        scale = self.scale[a:b, None]
        if self.wants_hidden:
            d = self._times_weight(dz)
            if self.weight_sum is not None:
                d.addr_(torch.ones_like(scale[:, 0]) if w0 is None else w0, self.weight_sum, alpha=-self._uniform)
            torch.mul(d, scale, out=self.d_hidden[a:b])
        if self.wants_weight:
            self._add_to_weight(dz.t(), (h * scale).to(h.dtype), first=a == 0)
        return losses

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of hidden [n, D] and of weight [V, D], in their dtypes, after the last chunk; empty where not wanted."""
        d_hidden, d_weight = self.d_hidden, self.d_weight
        if d_hidden is None:
            d_hidden = self.hidden.new_empty(0)
        if d_weight is None:
            return d_hidden, self.weight.new_empty(0)
        if self.hidden.shape[0] == 0:
            d_weight.zero_()
        elif self.label_smoothing:
            scale = self.scale if self.label_weights is None else self.scale * self.label_weights
            d_weight.sub_(torch.mv(self.hidden.t().to(scale.dtype), scale) * self._uniform)
        return d_hidden, d_weight.to(self.weight.dtype)

    @property
    def _uniform(self) -> float:
        return self.label_smoothing / self.weight.shape[0]

    def _times_weight(self, dz: Tensor) -> Tensor:
        d = dz.new_empty(dz.shape[0], self.weight.shape[1], dtype=logits_type(dz))
        product(dz, self.weight, d)
        return d.to(self.scale.dtype)

    def _add_to_weight(self, dz_t: Tensor, h: Tensor, first: bool) -> None:
        """``d_weight (+)= dz^T h``, summed over the chunks in its wide dtype."""
        out = self.d_weight
        if logits_type(h) != out.dtype:  # a CPU's narrow product stays narrow
            if self.narrow_product is None:
                self.narrow_product = torch.empty(out.shape, dtype=h.dtype)
            product(dz_t, h, self.narrow_product)
            out.copy_(self.narrow_product) if first else out.add_(self.narrow_product)
        elif first:
            product(dz_t, h, out)
        elif h.dtype == out.dtype:
            torch.addmm(out, dz_t, h, out=out)
        else:
            torch.addmm(out, dz_t, h, out_dtype=out.dtype, out=out)


def per_task(columns: Tensor, rows: Tensor | None, tokens: int, segments: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Sums [K, c] of ``columns`` [n, c] over each task's tokens, added up in fp64, and the number [K] of its rows.

    Args:
        rows: [n] which of the ``tokens`` each row of ``columns`` belongs to; None: they are all of them, in order.
    """
    counted = torch.cat((columns.double(), columns.new_ones(columns.shape[0], 1, dtype=torch.float64)), dim=1)
    if rows is not None:
        counted = counted.new_zeros(tokens, counted.shape[1]).index_copy_(0, rows, counted)
    width = counted.shape[1]
    lengths = on_device([b - a for a, b in pairwise(segments)], torch.int64, columns.device)
    # the columns as one: of a matrix torch's CUDA kernel gives all rows of a task to one thread a column. The lengths were
    # checked on the host (``check_student``); torch would wait for the device to do so again.
    sums = torch.segment_reduce(counted.t().reshape(-1), "sum", lengths=lengths.repeat(width), unsafe=True, initial=0.0)
    sums = sums.view(width, -1)
    return sums[:-1].t().to(columns.dtype), sums[-1].long()


def check_student(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    segments: Sequence[int],
    label_smoothing: float,
    chunk_tokens: int | None = None,
) -> None:
    """What can be said without looking at a value. Values of ``hidden`` and ``weight`` are not looked at: where they are
    not finite, neither are the losses.

    Raises:
        ValueError: names the argument and both values.
    """
    check_dtype("hidden", hidden, (*FLOATS, torch.float64))
    check_shape("hidden", hidden, (None, None), "an op on packed tokens")
    T = hidden.shape[0]
    check_shape("weight", weight, (None, hidden.shape[1]), "the width of hidden")
    check_like("weight", weight, "hidden", hidden)
    if weight.shape[0] == 0:
        raise ValueError("weight has V = 0 rows, but needs at least 1")
    check_shape("targets", targets, (T,), "hidden")
    check_dtype("targets", targets, (torch.int64,))
    check_like("targets", targets, "hidden", hidden, dtype=False)
    check_shape("scale", scale, (T,), "hidden")
    check_like("scale", scale, "hidden", hidden, dtype=False)
    if not scale.is_floating_point():
        raise ValueError(f"scale is {scale.dtype}, but must be a floating-point type")
    if len(segments) < 2:
        raise ValueError(f"segments must bound at least 1 task, but is {tuple(segments)}")
    if segments[0] != 0 or segments[-1] != T:
        raise ValueError(f"segments must go from 0 to the {T} tokens of hidden, but is {tuple(segments)}")
    if any(a > b for a, b in pairwise(segments)):
        raise ValueError(f"segments must not decrease, but is {tuple(segments)}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, but must lie in [0, 1)")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}, but must be 1 or more")


def target_facts(targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Which of T > 0 tokens are kept, [T] bool; and the numbers that ``check_facts`` wants on the host, [4] int64, so that
    counting the tokens and checking their values costs one synchronisation: kept, least, greatest, scale is finite."""
    kept = targets != IGNORE
    least, greatest = torch.aminmax(torch.where(kept, targets, 0))
    return kept, torch.stack((kept.sum(), least, greatest, scale.isfinite().all().long()))


def check_facts(facts: Sequence[int], scale: Tensor, vocabulary_size: int) -> int:
    """Number of kept tokens.

    Raises:
        ValueError: a target or scale that is out of its range.
    """
    kept, least, greatest, finite = facts
    if least < 0 or greatest >= vocabulary_size:
        bad = least if least < 0 else greatest
        raise ValueError(f"targets holds {bad}, but weight has V = {vocabulary_size} rows (and IGNORE is {IGNORE})")
    if not finite:
        bad = scale[~scale.isfinite()][0].item()
        raise ValueError(f"scale holds {bad}, but must be finite")
    return kept
