"""What ``block_attention`` means: gather into padded blocks, torch's attention on each, gather back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import BlockLayout, Side


def block_attention(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of packed rows; arguments as in ``kernels.ops.block_attention``, and

    Args:
        dropout: on the attention probabilities.
    """
    H, width = layout.heads, q.shape[1] // layout.heads
    q, k, v = _ToCells.apply(q, layout.query), _ToCells.apply(k, layout.key), _ToCells.apply(v, layout.key)
    queries = [H * b.sentences * b.queries for b in layout.blocks]
    keys = [H * b.sentences * b.keys for b in layout.blocks]
    out = []
    for block, q_, k_, v_ in zip(layout.blocks, q.split(queries), k.split(keys), v.split(keys), strict=True):
        mask = None if block.mask is None else block.mask.view(block.sentences, H, 1, block.keys).to(q.dtype)
        y = F.scaled_dot_product_attention(
            q_.view(block.sentences, H, block.queries, width),
            k_.view(block.sentences, H, block.keys, width),
            v_.view(block.sentences, H, block.keys, width),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=layout.causal,
        )
        out.append(y.reshape(-1, width))
    return _ToTokens.apply(torch.cat(out), layout.query)


class _ToCells(torch.autograd.Function):
    """[T, D] -> [cells, D/heads]; padding cells repeat some row and are never read, so the way back is a gather too."""

    @staticmethod
    def forward(ctx, x: Tensor, side: Side) -> Tensor:
        ctx.side = side
        return side.to_cells(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.side.to_tokens(grad), None


class _ToTokens(torch.autograd.Function):
    """[cells, D/heads] -> [T, D]; the gradient of a padding cell is zero."""

    @staticmethod
    def forward(ctx, x: Tensor, side: Side) -> Tensor:
        ctx.side = side
        return side.to_tokens(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.side.to_cells(grad, zero_padding=True), None
