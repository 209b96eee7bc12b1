"""The matrix-product rate that a model can hope for: the products of its own layers, forward and backward, nothing else."""

from __future__ import annotations

import time
from collections import Counter

import torch

from ..flow import IGNORE, TaskBatch
from ..model.config import ModelConfig


def linear_shapes(config: ModelConfig, vocabulary_size: int, batch: TaskBatch) -> Counter[tuple[int, int, int]]:
    """(rows, inputs, outputs) of every linear layer on this batch, with how often it occurs."""
    D, F, V = config.d_model, config.d_ffn, vocabulary_size
    S, U = batch.source_ids.shape[0], batch.target_in.shape[0]
    predicted = int((batch.target_out != IGNORE).sum())
    shapes: Counter[tuple[int, int, int]] = Counter()
    for rows, layers, square in ((S, config.encoder_layers, 4), (U, config.decoder_layers, 6)):
        shapes[rows, D, D] += square * layers
        shapes[rows, D, F] += layers
        shapes[rows, F, D] += layers
    shapes[S, D, D] += 2 * config.decoder_layers
    shapes[predicted, D, V] += 1
    return shapes


class GemmRate:
    """Products of a batch's shapes in one dtype, on operands that lie ready.

    Attributes:
        flops: of one ``run``.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, batch: TaskBatch, dtype: torch.dtype) -> None:
        self.shapes = linear_shapes(config, vocabulary_size, batch)
        self.flops = sum(6 * n * i * o * count for (n, i, o), count in self.shapes.items())
        self.operands = {
            (n, i, o): tuple(torch.randn(a, b).to(dtype) for a, b in ((n, i), (o, i), (n, o))) for n, i, o in self.shapes
        }

    def run(self) -> float:
        """Seconds for all products: each layer's output, and the gradients of its input and weight."""
        total = 0.0
        for shape, count in self.shapes.items():
            x, weight, d_y = self.operands[shape]
            start = time.perf_counter()
            for _ in range(count):
                torch.mm(x, weight.t())
                torch.mm(d_y, weight)
                torch.mm(d_y.t(), x)
            total += time.perf_counter() - start
        return total
