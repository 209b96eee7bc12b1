"""Multi-head attention over packed sentences: the projections see one [tokens, D] matrix, and only the attention itself
knows where sentences begin.

Two ways to keep sentences apart. *Bucketed*: queries, keys and values are gathered into a few padded blocks of
sentences of similar length (``flow.Buckets``), each block is one batched attention, and the result is gathered back.
*Packed*: torch's variable-length kernel on the packed rows (GPU, bf16 or fp16); elsewhere one attention over all tokens
with a block-diagonal mask, quadratic in the micro-batch, which is what tests hold the others against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flow import TaskBatch
from ..kernels.blocks import Block, BlockLayout, make_side
from ..kernels.ops.block_attention import block_attention
from .config import ModelConfig
from .segmented import UNMEASURED, Linear, Rows, Sides

NARROW = (torch.bfloat16, torch.float16)


def uses_buckets(config: ModelConfig, device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether batches for this model should come with ``buckets``."""
    if config.attention != "auto":
        return config.attention == "bucketed"
    varlen = has_varlen(torch.device(device), dtype, config.d_model // config.heads)
    return not varlen or config.attention_dropout > 0


def has_varlen(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether torch's variable-length kernel (flash attention) takes heads like these."""
    return device.type == "cuda" and dtype in NARROW and head_width % 8 == 0 and head_width <= 256


@dataclass(frozen=True, slots=True)
class Packed:
    """The same on packed rows: [B+1] int32 offsets of queries and keys, and the longest sentence of each."""

    query_offsets: Tensor
    key_offsets: Tensor
    max_query: int
    max_key: int
    heads: int
    causal: bool


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """The three attentions of an encoder-decoder on one micro-batch, and whose the packed rows are."""

    encoder_self: BlockLayout | Packed
    decoder_self: BlockLayout | Packed
    cross: BlockLayout | Packed
    sides: Sides = UNMEASURED


def attention_layout(batch: TaskBatch, heads: int, *, packed: bool = False, sides: Sides = UNMEASURED) -> AttentionLayout:
    """Layout of a micro-batch: in its buckets, or packed where it has none or ``packed`` is asked for."""
    if packed or batch.buckets is None:
        s, u = batch.source_offsets, batch.target_offsets
        longest_s, longest_u = batch.max_source, batch.max_target
        return AttentionLayout(
            Packed(s, s, longest_s, longest_s, heads, False),
            Packed(u, u, longest_u, longest_u, heads, True),
            Packed(u, s, longest_u, longest_s, heads, False),
            sides,
        )
    buckets = batch.buckets
    source = make_side(buckets.source_index, buckets.source_inverse, [(b, s) for b, s, _ in buckets.shapes], heads)
    target = make_side(buckets.target_index, buckets.target_inverse, [(b, u) for b, _, u in buckets.shapes], heads)
    encoder, decoder, cross = [], [], []
    s_at = u_at = 0
    for (b, s, u), lengths in zip(buckets.shapes, buckets.source_lengths, strict=True):
        mask = _mask(lengths, s, heads)
        encoder.append(Block(b, s_at, s, s_at, s, mask))
        decoder.append(Block(b, u_at, u, u_at, u, None))
        cross.append(Block(b, u_at, u, s_at, s, mask))
        s_at, u_at = s_at + b * heads * s, u_at + b * heads * u
    return AttentionLayout(
        BlockLayout(source, source, tuple(encoder), False, heads),
        BlockLayout(target, target, tuple(decoder), True, heads),
        BlockLayout(target, source, tuple(cross), False, heads),
        sides,
    )


def _mask(lengths: Tensor | None, longest: int, heads: int) -> Tensor | None:
    """[b * heads, 1, longest] fp32, -inf at positions beyond a sentence's length."""
    if lengths is None:
        return None
    beyond = torch.arange(longest, device=lengths.device) >= lengths.repeat_interleave(heads)[:, None]
    return torch.zeros(beyond.shape, device=lengths.device).masked_fill_(beyond, float("-inf"))[:, None, :]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout | Packed, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of packed rows.

    Args:
        q: [query tokens, D].  k, v: [key tokens, D]; heads side by side in D.
        dropout: on the attention probabilities; blocks only.
    """
    if q.shape[0] == 0:  # no sentences: keep k and v in the graph, so that their projections get (zero) gradients
        return q + 0 * (k.sum() + v.sum())
    if isinstance(layout, BlockLayout):
        return block_attention(q, k, v, layout, dropout)
    assert not dropout, "packed attention has no dropout"
    if has_varlen(q.device, q.dtype, q.shape[1] // layout.heads):
        return _attend_varlen(q, k, v, layout)
    return _attend_masked(q, k, v, layout)


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, layout: Packed) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    y = varlen_attn(
        q.view(q.shape[0], layout.heads, -1),
        k.view(k.shape[0], layout.heads, -1),
        v.view(v.shape[0], layout.heads, -1),
        layout.query_offsets,
        layout.key_offsets,
        layout.max_query,
        layout.max_key,
        window_size=(-1, 0) if layout.causal else (-1, -1),
    )
    return y.reshape(q.shape)


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, layout: Packed) -> Tensor:
    query_sentence, query_position = places(layout.query_offsets, q.shape[0])
    key_sentence, key_position = places(layout.key_offsets, k.shape[0])
    allowed = query_sentence[:, None] == key_sentence
    if layout.causal:
        allowed &= query_position[:, None] >= key_position
    q, k, v = (x.view(1, x.shape[0], layout.heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2)[0]


def places(offsets: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Of each packed token: the number of its sentence and its position in it, [tokens] each."""
    sentences = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    lengths = offsets.diff()
    sentence = sentences.repeat_interleave(lengths, output_size=tokens)
    start = offsets[:-1].repeat_interleave(lengths, output_size=tokens)
    return sentence, torch.arange(tokens, device=offsets.device) - start


class Attention(nn.Module):
    """Multi-head attention with biased projections, named as in fairseq and Hugging Face."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.d_model
        self.dropout = config.attention_dropout
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (Linear(D, D) for _ in range(4))

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        layout: BlockLayout | Packed,
        rows: Rows | None = None,
        memory_rows: Rows | None = None,
    ) -> Tensor:
        """x: [query tokens, D]; memory: [key tokens, D], ``x`` itself for self-attention; rows, memory_rows: of these;
        returns x's shape."""
        q, k, v = self.q_proj(x, rows), self.k_proj(memory, memory_rows), self.v_proj(memory, memory_rows)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, layout, dropout), rows)
