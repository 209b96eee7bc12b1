"""Row kernels over the vocabulary in Triton: what ``linear_cross_entropy`` and ``linear_distillation`` do with logits.

One program per row, in two passes over it. The first finds the maximum and the sums, each lane of a tile for itself
(online softmax), so that no thread waits for another before the end of the row. The second computes every exponential
again, which is cheaper than to keep it, and writes. All arithmetic is fp32; a lane's terms are added one after the other
and the lanes as a tree, in an order that shape and dtype fix: two runs agree bitwise.

Bytes per element of [n, V], with b of the logits and o of ``out`` (4: mixture):

============  ======  ========================================  ===================================
kernel        pass 1  pass 2                                    device memory, if pass 2 hits caches
============  ======  ========================================  ===================================
student_rows  read b  read b, write o; with a mixture read 4    b + o (+ 4); losses only: b (+ 4)
teacher_rows  read b  read b, write 4; accumulating read 4      b + 4 (+ 4)
============  ======  ========================================  ===================================

The second pass runs through the row backwards: where a row does not fit the caches, what was read last is still there.
Without ``out`` and mixture there is no second pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_REGISTERS = 64
"""Of a thread: 1024 threads then share a multiprocessor."""
BYTES_PER_THREAD = 256
"""Of a row of logits. The rows in flight are then 256 KiB a multiprocessor, 34 MB on the 132 of an H100 or H200, whose
second-level cache holds 50 MB. Rows beyond 256 KiB (V = 65,536 in fp32) have more bytes a thread, and the second pass
reads a part of them from device memory."""
MIN_WARPS, MAX_WARPS = 4, 32
ELEMENTS_PER_TILE = 16
"""Of a thread in the first pass, in loads of 16 bytes that are under way together: 64 KiB a multiprocessor in fp32, 32 KiB
in bf16. More would not leave enough registers."""

LOWEST = tl.constexpr(-3.4e38)
"""The maximum of nothing. Unlike -inf it can be subtracted from -inf."""
LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def tiling(V: int, itemsize: int) -> tuple[int, int, int]:
    """(loads a thread makes for a tile, lanes of a tile, warps of a program) for rows of V logits of ``itemsize`` bytes: a
    rule, not a search, so that no new shape holds up a training with trials."""
    warps = triton.next_power_of_2(triton.cdiv(V * itemsize, 32 * BYTES_PER_THREAD))
    warps = max(MIN_WARPS, min(MAX_WARPS, warps))
    vector = 16 // itemsize
    return ELEMENTS_PER_TILE // vector, 32 * warps * vector, warps


@triton.jit
def _exp2(x):
    """2^x, 0 below 2^-126. ``tl.exp2`` keeps those, at the price of three more instructions an element."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _statistics(z_row, V, anchor, coldness, TEMPERED: tl.constexpr, LOADS: tl.constexpr, LANES: tl.constexpr):
    """top = max z, sum exp(z - top), sum exp(coldness (z - top)) and sum (z - anchor) over the row at ``z_row``."""
    # A column of this tile belongs to one thread: maxima and sums over the first axis need no exchange between threads.
    tile = tl.arange(0, LOADS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    rate = coldness * LOG2E
    top = tl.full([LANES], LOWEST, tl.float32)
    mass = tl.zeros([LANES], tl.float32)
    tempered_mass = tl.zeros([LANES], tl.float32)
    total = tl.zeros([LANES], tl.float32)
    for start in range(0, V, LOADS * LANES):
        column = start + tile
        inside = column < V
        z = tl.load(z_row + column, mask=inside, other=float("-inf"), eviction_policy="evict_last").to(tl.float32)
        new_top = tl.maximum(top, tl.max(z, 0))
        fall, below = top - new_top, z - new_top[None, :]
        mass = mass * _exp2(fall * LOG2E) + tl.sum(_exp2(below * LOG2E), 0)
        if TEMPERED:
            tempered_mass = tempered_mass * _exp2(fall * rate) + tl.sum(_exp2(below * rate), 0)
        total += tl.sum(tl.where(inside, z - anchor, 0.0), 0)
        top = new_top
    row_top = tl.max(top, 0)
    fall = top - row_top
    row_mass = tl.sum(mass * _exp2(fall * LOG2E), 0)
    row_tempered_mass = row_mass
    if TEMPERED:
        row_tempered_mass = tl.sum(tempered_mass * _exp2(fall * rate), 0)
    return row_top, row_mass, row_tempered_mass, tl.sum(total, 0)


@triton.jit
def _student(
    logits,
    out,
    targets,
    weights,
    mixture,
    mixture_weights,
    losses,
    V,
    label_smoothing,
    temperature,
    TEMPERED: tl.constexpr,
    LOADS: tl.constexpr,
    LANES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # n V may exceed 2^31
    z_row = logits + row * V
    target = tl.load(targets + row).to(tl.int32)
    target_logit = tl.load(z_row + target).to(tl.float32)
    # Logits are summed around one of them: an offset that all share then costs the mean no accuracy.
    anchor = tl.where(target_logit > LOWEST, target_logit, 0.0)
    coldness = 1.0 / temperature
    top, mass, tempered_mass, total = _statistics(z_row, V, anchor, coldness, TEMPERED, LOADS, LANES)
    tl.store(losses + 3 * row, tl.log(mass) + (top - target_logit))
    tl.store(losses + 3 * row + 1, tl.log(mass) + (top - anchor) - total / V)

    weight = 1.0
    if weights is not None:
        weight = tl.load(weights + row)
    hit = weight * (1.0 - label_smoothing)
    share = weight / mass
    tempered_share = 0.0
    if mixture is not None:
        tempered_share = temperature * tl.load(mixture_weights + row) / tempered_mass
        if not TEMPERED:
            share += tempered_share  # one softmax serves both
    log_tempered_mass = tl.log(tempered_mass)
    distillation = tl.zeros([LANES], tl.float32)
    if (out is not None) or (mixture is not None):
        last = (tl.cdiv(V, LANES) - 1) * LANES
        for start in range(0, V, LANES):
            column = last - start + tl.arange(0, LANES)
            inside = column < V
            z = tl.load(z_row + column, mask=inside, other=float("-inf"), eviction_policy="evict_first").to(tl.float32)
            below = z - top
            if mixture is not None:
                q = tl.load(mixture + row * V + column, mask=inside, other=0.0, eviction_policy="evict_first")
                surprise = log_tempered_mass - below * coldness
                distillation += tl.where(q != 0.0, q * surprise, 0.0)  # 0 also where the logit is -inf
            if out is not None:
                d = share * _exp2(below * LOG2E) - tl.where(column == target, hit, 0.0)
                if mixture is not None:
                    d -= temperature * q
                    if TEMPERED:
                        d += tempered_share * _exp2(below * (coldness * LOG2E))
                tl.store(out + row * V + column, d.to(out.dtype.element_ty), mask=inside)
    tl.store(losses + 3 * row + 2, temperature * temperature * tl.sum(distillation, 0))


@triton.jit
def _teacher(
    logits,
    mixture,
    weights,
    targets,
    results,
    V,
    temperature,
    ACCUMULATE: tl.constexpr,
    TEMPERED: tl.constexpr,
    LOADS: tl.constexpr,
    LANES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # n V may exceed 2^31
    z_row = logits + row * V
    target_logit = tl.load(z_row + tl.load(targets + row)).to(tl.float32)
    coldness = 1.0 / temperature
    top, mass, tempered_mass, _ = _statistics(z_row, V, 0.0, coldness, TEMPERED, LOADS, LANES)

    share = tl.load(weights + row) / tempered_mass
    heat = tl.zeros([LANES], tl.float32)
    last = (tl.cdiv(V, LANES) - 1) * LANES
    for start in range(0, V, LANES):
        column = last - start + tl.arange(0, LANES)
        inside = column < V
        z = tl.load(z_row + column, mask=inside, other=float("-inf"), eviction_policy="evict_first").to(tl.float32)
        below = (z - top) * coldness
        e = _exp2(below * LOG2E)
        heat += tl.where(e > 0.0, e * below, 0.0)
        q = share * e
        if ACCUMULATE:
            q += tl.load(mixture + row * V + column, mask=inside, other=0.0)
        tl.store(mixture + row * V + column, q, mask=inside)
    tl.store(results + 2 * row, tl.log(mass) + (top - target_logit))
    tl.store(results + 2 * row + 1, tl.log(tempered_mass) - tl.sum(heat, 0) / tempered_mass)


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
    """Losses of the student's rows and, where ``out`` is given, their gradient by the logits.

    Args:
        logits: [n, V] contiguous; fp32, bf16 or fp16.
        out: [n, V] contiguous, of any of these dtypes, written; may be ``logits`` itself. None: losses only. With p the
            softmax of the logits z, w0 the weights, W the mixture weights, tau the temperature and eps the smoothing:
            ``w0 (p - (1 - eps) onehot(y)) + tau (W softmax(z / tau) - mixture)``. Not with the ``-w0 eps / V`` of every
            entry, which is of rank one and left to the caller.
        targets: [n] int64, all valid.
        weights: [n] fp32; None: all 1.
        mixture: [n, V] fp32, sum of the teachers' weighted probabilities; None: no distillation.
        mixture_weights: [n] fp32, sum of the teachers' weights; None where the mixture is.

    Returns:
        [n, 3] fp32: ``-log p_y``; mean over v of ``-log p_v``; ``tau^2 sum_v mixture_v (-log softmax(z / tau)_v)``.
    """
    n, V = logits.shape
    assert (mixture is None) == (mixture_weights is None)
    assert all(x is None or (x.shape == (n, V) and x.is_contiguous()) for x in (logits, out, mixture))
    assert all(x is None or (x.shape == (n,) and x.is_contiguous()) for x in (targets, weights, mixture_weights))
    assert all(x is None or x.dtype == torch.float32 for x in (weights, mixture, mixture_weights))
    losses = logits.new_empty(n, 3, dtype=torch.float32)
    if n:
        loads, lanes, warps = tiling(V, logits.element_size())
        tempered = mixture is not None and temperature != 1.0
        with torch.cuda.device_of(logits):
            _student[(n,)](
                logits, out, targets, weights, mixture, mixture_weights, losses, V, float(label_smoothing), float(temperature),
                TEMPERED=tempered, LOADS=loads, LANES=lanes, num_warps=warps, maxnreg=MAX_REGISTERS,
            )  # fmt: skip
    return losses


def teacher_rows(
    logits: Tensor, mixture: Tensor, weights: Tensor, targets: Tensor, temperature: float, accumulate: bool
) -> Tensor:
    """Begins the mixture of teachers with one of them, or adds one.

    Args:
        logits: [n, V] contiguous; fp32, bf16 or fp16.
        mixture: [n, V] contiguous fp32: row t becomes, or if ``accumulate`` grows by, ``weights[t] softmax(logits[t] /
            temperature)``.
        weights: [n] fp32.
        targets: [n] int64, all valid.

    Returns:
        [n, 2] fp32: negative log-likelihood of the target at temperature 1; entropy of ``softmax(logits / temperature)``.
    """
    n, V = logits.shape
    assert all(x.shape == (n, V) and x.is_contiguous() for x in (logits, mixture))
    assert all(x.shape == (n,) and x.is_contiguous() for x in (weights, targets))
    assert weights.dtype == mixture.dtype == torch.float32
    results = logits.new_empty(n, 2, dtype=torch.float32)
    if n:
        loads, lanes, warps = tiling(V, logits.element_size())
        with torch.cuda.device_of(logits):
            _teacher[(n,)](
                logits, mixture, weights, targets, results, V, float(temperature), ACCUMULATE=accumulate,
                TEMPERED=temperature != 1.0, LOADS=loads, LANES=lanes, num_warps=warps, maxnreg=MAX_REGISTERS,
            )  # fmt: skip
    return results
