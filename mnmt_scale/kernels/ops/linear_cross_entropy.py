"""Output projection and label-smoothed cross-entropy in one op that never holds the [T, V] matrix.

The scales of the tokens are known before the forward pass, so the gradients of hidden states and weight are computed in
the forward pass, chunk by chunk, while a chunk's probabilities exist; the backward pass hands them out. Nothing of the
weight is kept for it (under ZeRO-3 the weight exists only while the forward pass of its module runs).

Of ``dz = scale * (p - (1 - eps) onehot(y) - eps / V)`` only ``p - (1 - eps) onehot(y)`` is made as a matrix. The rest
is of rank one and is applied to the small results: ``eps / V * sum_v weight[v]`` to each row of the hidden gradient, and
``eps / V * sum_t scale_t hidden_t`` to each row of the weight gradient, once; likewise ``sum_v z_v`` of the smoothed
loss is ``hidden . sum_v weight[v]``.

Deviation from the reference: bf16 and fp16 logits are rounded to that type on CPU, whose matrix product has no wider
output; softmax and losses are fp32 either way, and the target's entry of ``dz`` is computed in fp32 before it is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...flow import IGNORE

CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}
"""Size of a chunk's fp32 probabilities. CPU: measured (docs/kernels.md), they should stay in the caches. GPU: each chunk
adds to the fp32 weight gradient, which should cost little beside the products."""
MIN_CHUNK, MAX_CHUNK = 256, 8192


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
    """
    assert hidden.shape[1] == weight.shape[1]
    assert segments[-1] == hidden.shape[0] == targets.shape[0] == scale.shape[0]
    chunk = chunk_tokens or chunk_rows(weight.shape[0], weight.device.type)
    with_gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    total, losses, kept = _LinearCrossEntropy.apply(
        hidden, weight, targets, scale.detach(), label_smoothing, chunk, with_gradients
    )
    sums, nlls, tokens = _per_task(losses, kept, segments)
    return total, sums, nlls, tokens


def chunk_rows(vocabulary_size: int, device_type: str = "cpu") -> int:
    """Rows of a chunk: as many as make its fp32 probabilities ``CHUNK_BYTES`` large, a multiple of 64 within bounds."""
    rows = CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"]) // (4 * vocabulary_size) // 64 * 64
    return max(MIN_CHUNK, min(MAX_CHUNK, rows))


def _per_task(losses: Tensor, kept: Tensor, segments: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.tensor(segments, device=losses.device).diff()
    counts = torch.cat((losses.double(), kept.double()[:, None]), dim=1)
    per_task = torch.segment_reduce(counts, "sum", lengths=lengths, axis=0, initial=0.0)
    return per_task[:, 0].to(losses.dtype), per_task[:, 1].to(losses.dtype), per_task[:, 2].long()


class _LinearCrossEntropy(torch.autograd.Function):
    """(total, [T, 2] smoothed and plain losses, [T] kept), the last two not differentiable."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, scale, eps, chunk, with_gradients):
        kept = targets != IGNORE
        rows = kept.nonzero()[:, 0]
        everything = rows.numel() == targets.numel()
        h, y, s = (hidden, targets, scale) if everything else (hidden[rows], targets[rows], scale[rows])
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        kept_losses, d_h, d_weight = _chunked(h, weight, y, s.to(wide), eps, chunk, with_gradients)
        losses = kept_losses
        if not everything:
            losses = kept_losses.new_zeros(targets.shape[0], 2).index_copy_(0, rows, kept_losses)
        total = (kept_losses[:, 0] * s).sum()
        if with_gradients:
            d_hidden = d_h if everything else torch.zeros_like(hidden).index_copy_(0, rows, d_h)
            ctx.save_for_backward(d_hidden, d_weight)
        ctx.mark_non_differentiable(losses, kept)
        ctx.set_materialize_grads(False)
        return total, losses, kept

    @staticmethod
    @once_differentiable
    def backward(ctx, d_total, *_):
        d_hidden, d_weight = ctx.saved_tensors
        if d_total is None:
            return (None,) * 7
        if d_total.device.type != "cpu" or d_total.item() != 1.0:
            d_hidden, d_weight = d_hidden * d_total.to(d_hidden.dtype), d_weight * d_total.to(d_weight.dtype)
        return d_hidden, d_weight, None, None, None, None, None


def _chunked(
    h: Tensor, weight: Tensor, y: Tensor, scale: Tensor, eps: float, chunk: int, with_gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses [T, 2] and, if asked for, the gradients of ``h`` and ``weight`` in their dtypes; no row is ignored here."""
    wide, (T, D), V = scale.dtype, h.shape, weight.shape[0]
    weight_sum = weight.sum(dim=0, dtype=wide) if eps else None
    losses = torch.empty(T, 2, dtype=wide, device=h.device)
    d_h = torch.empty_like(h) if with_gradients else None
    d_weight = torch.zeros(V, D, dtype=wide, device=h.device) if with_gradients else None
    for a in range(0, T, chunk):
        b = min(a + chunk, T)
        logits = _product(h[a:b], weight.t(), wide)
        p, lse = _softmax(logits, wide)
        target_logit = logits.gather(1, y[a:b, None])[:, 0].to(wide)
        del logits
        nll = lse - target_logit
        losses[a:b, 1] = nll
        if eps:
            mean_logit = torch.mv(h[a:b].to(wide), weight_sum) / V
            losses[a:b, 0] = (1 - eps) * nll + eps * (lse - mean_logit)
        else:
            losses[a:b, 0] = nll
        if with_gradients:
            p.scatter_(1, y[a:b, None], (torch.exp(-nll) - (1 - eps))[:, None])
            dz, s = p.to(h.dtype), scale[a:b, None]
            d = dz @ weight
            if eps:
                d = d.to(wide).sub_(weight_sum, alpha=eps / V)
            torch.mul(d, s, out=d_h[a:b])
            _add_product(d_weight, dz.t(), (h[a:b] * s).to(h.dtype))
    if with_gradients:
        if eps:
            d_weight.sub_(torch.mv(h.t().to(wide), scale) * (eps / V))
        d_weight = d_weight.to(weight.dtype)
    return losses, d_h, d_weight


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """``a b``; kept wide where the device's product of narrow types can be."""
    if a.device.type == "cuda" and a.dtype != wide:
        return torch.mm(a, b, out_dtype=wide)
    return a @ b


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += a b`` with a wide ``out``."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out.add_(_product(a, b, out.dtype))


def _softmax(logits: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Probabilities [C, V] and log-sum-exp [C] of each row; the largest probability is never below 1/V, so its
    logarithm is safe whatever the logits."""
    p = torch.softmax(logits, dim=1, dtype=wide)
    return p, logits.amax(dim=1).to(wide) - p.amax(dim=1).log()
