"""Attention of packed sentences in padded blocks, forward and backward without a copy beyond the gathers.

torch's fused CPU attention is made for long sequences: on sentences of a few dozen tokens its bf16 backward pass costs
six times the plain matrix products, and as an autograd node per block it forces a concatenation of the blocks in both
directions. Here the blocks are batched matrix products that write into one matrix of cells, the probabilities (small
for sentences) are kept for the backward pass, and softmax is fp32. Where that would keep too much, or probabilities are
dropped out, or the device has better, the reference runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import forced_kind
from ..blocks import Block, BlockLayout
from ..once import differentiable_once
from ..reference import block_attention as reference

MAX_POSITIONS = 256
"""Longest block whose probabilities are kept for the backward pass."""


def block_attention(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of packed rows.

    Args:
        q: [query tokens, D].  k, v: [key tokens, D]; heads side by side in D.
        layout: the blocks; every query token is in one.
        dropout: on the attention probabilities.

    Returns:
        [query tokens, D], differentiable once where the fast version runs (CPU, no dropout, blocks up to
        ``MAX_POSITIONS`` positions).
    """
    longest = max(max(b.queries, b.keys) for b in layout.blocks)
    if q.device.type != "cpu" or dropout or longest > MAX_POSITIONS or forced_kind() == "reference":
        return reference.block_attention(q, k, v, layout, dropout)
    return _BlockAttention.apply(q, k, v, layout)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout) -> Tensor:
        q, k, v = layout.query.to_cells(q), layout.key.to_cells(k), layout.key.to_cells(v)
        out = torch.empty_like(q)
        kept = []
        for block in layout.blocks:
            q_, k_, v_ = _queries(q, block, layout), _keys(k, block, layout), _keys(v, block, layout)
            p = _probabilities(q_, k_, block, layout.causal)
            torch.bmm(p, v_, out=_queries(out, block, layout))
            kept.append(p)
        ctx.layout = layout
        ctx.save_for_backward(q, k, v, *kept)
        return layout.query.to_tokens(out)

    @staticmethod
    @differentiable_once
    def backward(ctx, d_out: Tensor):
        layout: BlockLayout = ctx.layout
        q, k, v, *kept = ctx.saved_tensors
        d_out = layout.query.to_cells(d_out, zero_padding=True)
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        factor = q.shape[1] ** -0.5
        for block, p in zip(layout.blocks, kept, strict=True):
            d_o = _queries(d_out, block, layout)
            torch.bmm(p.transpose(1, 2), d_o, out=_keys(d_v, block, layout))
            d_p = torch.bmm(d_o, _keys(v, block, layout).transpose(1, 2))
            d_s = torch._softmax_backward_data(d_p, p, -1, p.dtype)
            d_s.mul_(factor)
            torch.bmm(d_s, _keys(k, block, layout), out=_queries(d_q, block, layout))
            torch.bmm(d_s.transpose(1, 2), _queries(q, block, layout), out=_keys(d_k, block, layout))
        return layout.query.to_tokens(d_q), layout.key.to_tokens(d_k), layout.key.to_tokens(d_v), None


def _probabilities(q: Tensor, k: Tensor, block: Block, causal: bool) -> Tensor:
    """[sentences * heads, queries, keys] in the dtype of ``q``; scores and softmax in fp32 from rounded products."""
    scores = torch.bmm(q, k.transpose(1, 2))
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    scores.mul_(q.shape[2] ** -0.5)
    if causal:
        scores += _causal_mask(block.queries, scores.dtype)
    elif block.mask is not None:
        scores += block.mask
    return torch.softmax(scores, dim=-1).to(q.dtype)


def _causal_mask(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)


def _queries(cells: Tensor, block: Block, layout: BlockLayout) -> Tensor:
    return _matrices(cells, block.query_start, block.sentences * layout.heads, block.queries)


def _keys(cells: Tensor, block: Block, layout: BlockLayout) -> Tensor:
    return _matrices(cells, block.key_start, block.sentences * layout.heads, block.keys)


def _matrices(cells: Tensor, start: int, count: int, rows: int) -> Tensor:
    return cells[start : start + count * rows].view(count, rows, -1)
