"""Floating-point operations of a training step by formula, for "percent of the matrix-product rate"."""

from __future__ import annotations

from ..flow import IGNORE, TaskBatch
from .config import ModelConfig


def training_flops(config: ModelConfig, vocabulary_size: int, batch: TaskBatch) -> int:
    """FLOPs of the matrix products that a forward and backward pass over ``batch`` needs: 2 per multiply-add, forward
    once, backward twice; padding, recomputation, softmax, norms and the optimizer count nothing.

    Attention counts q * k multiply-adds of both products for a sentence of q queries and k keys, and half of the square
    (with the diagonal) where it is causal; the output layer counts predicted tokens only.
    """
    D, F, V = config.d_model, config.d_ffn, vocabulary_size
    S, U = batch.source_ids.shape[0], batch.target_in.shape[0]
    predicted = int((batch.target_out != IGNORE).sum())
    s, u = batch.source_offsets.diff().double(), batch.target_offsets.diff().double()
    encoder = S * (4 * D * D + 2 * D * F) + 2 * D * float((s * s).sum())
    decoder = U * (6 * D * D + 2 * D * F) + S * 2 * D * D
    decoder += 2 * D * float((u * (u + 1) / 2 + u * s).sum())
    output = predicted * V * D
    return int(6 * (config.encoder_layers * encoder + config.decoder_layers * decoder + output))
