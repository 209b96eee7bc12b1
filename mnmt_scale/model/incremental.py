"""Inference with a key-value cache: encode a padded source batch once, then decode one token a step.

Shape legend of this file: B sentences, G beam (hypotheses per sentence), S longest source, P prompt tokens,
H heads, h = D / H, C cached positions.

Two things keep a step cheap. The source keys and values are computed once per *sentence* and the G hypotheses of a
sentence query them together. And the self-attention cache is never reordered: every hypothesis appends its key and
value to the cache of its sentence, and a mask says which cached entries are ancestors of which hypothesis. Choosing
beams then moves a few rows of that mask instead of the whole cache, while the G queries of a sentence read the same
number of keys as G separate caches would hold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .layers import ACTIVATIONS


class Decoder:
    """Inference view of a ``Transformer``: shares its weights, except that projections read together are stored fused.

    The model's own dtype (fp32 or bf16) and device are used; dropout never applies. Weights changed after construction
    are not seen.

    Args:
        model: a ``Transformer`` (or any module with the same submodules and a ``config``).
    """

    def __init__(self, model) -> None:
        self.config = config = model.config
        self.embedding: Tensor = model.shared.weight.detach()
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        self.scale = math.sqrt(config.d_model)
        self.first_position = model.pad_id + 1
        self.positions: Tensor = model.positions.to(self.dtype)
        self.activation = ACTIVATIONS[config.activation]
        self.pre_norm = config.norm == "pre"
        self.encoder = [_Layer(layer, cross=False) for layer in model.encoder.layers]
        self.decoder = [_Layer(layer, cross=True) for layer in model.decoder.layers]
        self.encoder_norm = _norm(model.encoder.layer_norm) if self.pre_norm else None
        self.decoder_norm = _norm(model.decoder.layer_norm) if self.pre_norm else None

    @property
    def vocabulary_size(self) -> int:
        return self.embedding.shape[0]

    @property
    def max_positions(self) -> int:
        return self.positions.shape[0] - self.first_position

    def heads(self, x: Tensor) -> Tensor:
        """[B, n, D] -> [B, H, n, h]."""
        return x.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)

    def embed(self, ids: Tensor, start: int) -> Tensor:
        """Scaled embeddings of ``ids`` [B, n] at positions start .. start + n - 1: [B, n, D]."""
        first = self.first_position + start
        positions = self.positions[first : first + ids.shape[1]]
        return torch.add(positions, F.embedding(ids, self.embedding), alpha=self.scale)

    def encode(self, source_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder output of a padded batch.

        Args:
            source_ids: [B, S] ``__src__ w1 .. wn </s>``, padded at the end with any id.
            lengths: [B] tokens of each sentence.

        Returns:
            Hidden states [B, S, D] and the mask [B, 1, 1, S], 0 at tokens and -inf behind them; None where nothing is padded.
        """
        attend = None
        if int(lengths.min()) < source_ids.shape[1]:
            beyond = torch.arange(_aligned(source_ids.shape[1]), device=self.device) >= lengths.to(self.device)[:, None]
            mask = torch.zeros(beyond.shape, dtype=self.dtype, device=self.device).masked_fill_(beyond, -math.inf)
            attend = mask[:, None, None][..., : source_ids.shape[1]]
        x = self.embed(source_ids.to(self.device), 0)
        for layer in self.encoder:
            y = self.before(x, layer.self_norm)
            q, k, v = (self.heads(part) for part in F.linear(y, *layer.qkv).chunk(3, dim=-1))
            x = self.after(x, F.linear(_attend(q, k, v, attend), *layer.self_out), layer.self_norm)
            x = self.feed_forward(x, layer)
        return (x if self.encoder_norm is None else self.normed(x, self.encoder_norm)), attend

    def feed_forward(self, x: Tensor, layer: _Layer) -> Tensor:
        """The inner block with its residual connection: [.., D] -> [.., D]."""
        y = self.activation(F.linear(self.before(x, layer.ffn_norm), *layer.fc1))
        return self.after(x, F.linear(y, *layer.fc2), layer.ffn_norm)

    def normed(self, x: Tensor, norm: Norm) -> Tensor:
        weight, bias, epsilon = norm
        return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    def before(self, x: Tensor, norm: Norm) -> Tensor:
        """What a block reads: the normed stream under pre-norm."""
        return self.normed(x, norm) if self.pre_norm else x

    def after(self, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """The stream behind a block that gave ``y``: normed under post-norm."""
        return x + y if self.pre_norm else self.normed(x + y, norm)


class DecodingState:
    """The caches of one batch while it is decoded.

    Args:
        decoder: the inference view of the model.
        source_ids: [B, S] padded source.
        lengths: [B] source tokens.
        beam: G hypotheses per sentence.
    """

    def __init__(self, decoder: Decoder, source_ids: Tensor, lengths: Tensor, beam: int) -> None:
        self.decoder, self.beam = decoder, beam
        self.size = source_ids.shape[0]
        hidden, self.source_mask = decoder.encode(source_ids, lengths)
        self.source_kv: list[tuple[Tensor, Tensor]] = []
        for layer in decoder.decoder:
            k, v = F.linear(hidden, *layer.cross_kv).chunk(2, dim=-1)
            self.source_kv.append((decoder.heads(k).contiguous(), decoder.heads(v).contiguous()))
        self.cache: list[Tensor] = []  # of each layer [2, B, H, capacity, h]: keys and values
        # [B, G, capacity] of the cache, in the model's dtype: 0 or -inf, added to the scores
        self.ancestors: Tensor | None = None
        self.own = hidden.new_full((beam, beam), -math.inf).fill_diagonal_(0.0)
        self.used = self.prompt = self.generated = 0

    def begin(self, prompt: Tensor) -> Tensor:
        """Reads the prompt [B, P], the same for all hypotheses of a sentence, and returns the next logits [B, V]."""
        self.prompt = prompt.shape[1]
        causal = torch.ones(self.prompt, self.prompt, dtype=torch.bool, device=self.decoder.device).tril()
        x = self._layers(self.decoder.embed(prompt.to(self.decoder.device), 0), causal)
        if self.beam > 1:
            self.ancestors = x.new_zeros(self.size, self.beam, self.cache[0].shape[3])
        return F.linear(x[:, -1], self.decoder.embedding)

    def step(self, tokens: Tensor, parents: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """One token further.

        Args:
            tokens: [B, G] the token that each hypothesis ends with now.
            parents: [B, G] which hypothesis (0..G-1) of the step before it continues; None: each its own (and at the
                first step, the prompt). Ignored at the first step and for G = 1.
            out: [B*G, V] where to write the logits.

        Returns:
            Logits of the next token [B*G, V], row b*G + g, in the model's dtype.
        """
        mask = None
        self._reserve(self.used + self.beam)
        if self.ancestors is not None:
            if parents is not None and self.generated:
                index = parents[:, :, None].expand(-1, -1, self.ancestors.shape[2])
                self.ancestors = self.ancestors.gather(1, index)
            self.ancestors[:, :, self.used : self.used + self.beam] = self.own
            mask = self.ancestors[:, None, :, : self.used + self.beam]
        positions = self.prompt + self.generated
        self.generated += 1
        x = self._layers(self.decoder.embed(tokens.reshape(-1, 1), positions).view(self.size, self.beam, -1), mask)
        return _project(x.flatten(0, 1), self.decoder.embedding, out)

    def keep(self, rows: Tensor) -> None:
        """Leaves only the sentences ``rows`` (indices into the present batch) in the batch."""
        self.size = rows.shape[0]
        self.source_kv = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.source_kv]
        if self.source_mask is not None:
            self.source_mask = self.source_mask.index_select(0, rows)
        self.cache = [_kept(cache, rows, self.used) for cache in self.cache]
        if self.ancestors is not None:
            self.ancestors = self.ancestors.index_select(0, rows)

    def _layers(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """All decoder layers over new positions ``x`` [B, n, D]; their keys and values are appended."""
        decoder, start, end = self.decoder, self.used, self.used + x.shape[1]
        self._reserve(end)
        for number, layer in enumerate(decoder.decoder):
            y = decoder.before(x, layer.self_norm)
            qkv = F.linear(y, *layer.qkv).unflatten(-1, (3, decoder.config.heads, -1)).permute(2, 0, 3, 1, 4)
            cache = self.cache[number]
            cache[:, :, :, start:end] = qkv[1:]
            keys, values = cache[:, :, :, :end].unbind()
            y = _attend(qkv[0], keys, values, mask)
            x = decoder.after(x, F.linear(y, *layer.self_out), layer.self_norm)
            q = decoder.heads(F.linear(decoder.before(x, layer.cross_norm), *layer.cross_q))
            y = _attend(q, *self.source_kv[number], self.source_mask)
            x = decoder.after(x, F.linear(y, *layer.cross_out), layer.cross_norm)
            x = decoder.feed_forward(x, layer)
        self.used = end
        return x if decoder.decoder_norm is None else decoder.normed(x, decoder.decoder_norm)

    def _reserve(self, positions: int) -> None:
        """Makes room for ``positions`` cached positions, doubling so that copies stay few."""
        have = self.cache[0].shape[3] if self.cache else 0
        if positions <= have:
            return
        config, capacity = self.decoder.config, _aligned(max(positions, 2 * have, self.prompt + 16 * self.beam))
        shape = (2, self.size, config.heads, capacity, config.d_model // config.heads)
        weight = self.decoder.embedding
        grown = [weight.new_empty(shape) for _ in self.decoder.decoder]
        for before, after in zip(self.cache, grown, strict=False):
            after[:, :, :, : self.used] = before[:, :, :, : self.used]
        self.cache = grown
        if self.ancestors is not None:
            self.ancestors = F.pad(self.ancestors, (0, capacity - have))


Norm = tuple[Tensor | None, Tensor | None, float]
Affine = tuple[Tensor, Tensor]


class _Layer:
    """Weights of one layer, ready for ``F.linear(x, *pair)``."""

    def __init__(self, layer, *, cross: bool) -> None:
        attention = layer.self_attn
        self.qkv = _fused(attention.q_proj, attention.k_proj, attention.v_proj)
        self.self_out, self.self_norm = _affine(attention.out_proj), _norm(layer.self_attn_layer_norm)
        self.fc1, self.fc2, self.ffn_norm = _affine(layer.fc1), _affine(layer.fc2), _norm(layer.final_layer_norm)
        if cross:
            attention = layer.encoder_attn
            self.cross_q, self.cross_kv = _affine(attention.q_proj), _fused(attention.k_proj, attention.v_proj)
            self.cross_out, self.cross_norm = _affine(attention.out_proj), _norm(layer.encoder_attn_layer_norm)


def _affine(linear) -> Affine:
    return linear.weight.detach(), linear.bias.detach()


def _fused(*linears) -> Affine:
    return torch.cat([m.weight.detach() for m in linears]), torch.cat([m.bias.detach() for m in linears])


def _norm(norm) -> Norm:
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return (None if weight is None else weight.detach()), (None if bias is None else bias.detach()), norm.eps


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[B, H, n, h] queries over [B, H, C, h] keys -> [B, n, D]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _project(x: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    return F.linear(x, weight) if out is None else torch.mm(x, weight.T, out=out)


def _aligned(columns: int) -> int:
    """Columns of a mask's rows in memory: where they do not begin at multiples of 8, torch copies the mask in every layer."""
    return -(-columns // 8) * 8


def _kept(cache: Tensor, rows: Tensor, used: int) -> Tensor:
    """Chosen sentences of a cache; only what is used is copied, the capacity stays."""
    kept = cache.new_empty((2, rows.shape[0], *cache.shape[2:]))
    kept[:, :, :, :used] = cache[:, :, :, :used].index_select(1, rows)
    return kept
