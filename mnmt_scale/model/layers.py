"""Encoder and decoder layers over packed tokens, with the norms before (M2M100) or after (original Transformer) each block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.ops.dropout_add import dropout_add
from .attention import Attention, AttentionLayout
from .config import ModelConfig
from .segmented import LayerNorm, Linear, Rows

ACTIVATIONS = {"relu": F.relu_, "gelu": F.gelu, "silu": F.silu}


class Layer(nn.Module):
    """What both kinds of layer share: self-attention, feed-forward network, residual connections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout
        self.activation = ACTIVATIONS[config.activation]
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = layer_norm(config)
        self.fc1 = Linear(config.d_model, config.d_ffn)
        self.fc2 = Linear(config.d_ffn, config.d_model)
        self.final_layer_norm = layer_norm(config)

    def _before(self, norm: nn.Module, x: Tensor, rows: Rows | None) -> Tensor:
        return norm(x, rows) if self.pre_norm else x

    def _after(self, norm: nn.Module, residual: Tensor, x: Tensor, rows: Rows | None) -> Tensor:
        x = dropout_add(residual, x, self.dropout, self.training)
        return x if self.pre_norm else norm(x, rows)

    def _self_attention(self, x: Tensor, layout, rows: Rows | None) -> Tensor:
        y = self._before(self.self_attn_layer_norm, x, rows)
        return self._after(self.self_attn_layer_norm, x, self.self_attn(y, y, layout, rows, rows), rows)

    def _feed_forward(self, x: Tensor, rows: Rows | None) -> Tensor:
        y = self.activation(self.fc1(self._before(self.final_layer_norm, x, rows), rows))
        y = self.fc2(dropout_add(None, y, self.activation_dropout, self.training), rows)
        return self._after(self.final_layer_norm, x, y, rows)


class EncoderLayer(Layer):
    """Self-attention and feed-forward network."""

    def forward(self, x: Tensor, layout: AttentionLayout) -> Tensor:
        """x: [S, D] packed source states; returns the same shape."""
        rows = layout.sides.source
        return self._feed_forward(self._self_attention(x, layout.encoder_self, rows), rows)


class DecoderLayer(Layer):
    """Self-attention, attention to the encoder, feed-forward network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder_attn = Attention(config)
        self.encoder_attn_layer_norm = layer_norm(config)

    def forward(self, x: Tensor, memory: Tensor, layout: AttentionLayout) -> Tensor:
        """x: [U, D] packed target states; memory: [S, D] encoder output; returns x's shape."""
        rows = layout.sides.target
        x = self._self_attention(x, layout.decoder_self, rows)
        y = self._before(self.encoder_attn_layer_norm, x, rows)
        y = self.encoder_attn(y, memory, layout.cross, rows, layout.sides.source)
        x = self._after(self.encoder_attn_layer_norm, x, y, rows)
        return self._feed_forward(x, rows)


def layer_norm(config: ModelConfig) -> LayerNorm:
    """Layer norm over D, with weight and bias unless ``norm_affine`` is false."""
    return LayerNorm(config.d_model, elementwise_affine=config.norm_affine)
