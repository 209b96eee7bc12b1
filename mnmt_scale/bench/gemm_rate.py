"""The matrix-product rate that a model can hope for: the products of its own layers, forward and backward, nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from ..flow import IGNORE, TaskBatch
from ..model.config import ModelConfig
from .timing import Clock, in_one_line

Shape = tuple[int, int, int]


def linear_shapes(config: ModelConfig, vocabulary_size: int, batch: TaskBatch) -> Counter[Shape]:
    """(rows, inputs, outputs) of every linear layer on this batch, with how often it occurs."""
    D, F, V = config.d_model, config.d_ffn, vocabulary_size
    S, U = batch.source_ids.shape[0], batch.target_in.shape[0]
    predicted = int((batch.target_out != IGNORE).sum())
    shapes: Counter[Shape] = Counter()
    for rows, layers, square in ((S, config.encoder_layers, 4), (U, config.decoder_layers, 6)):
        shapes[rows, D, D] += square * layers
        shapes[rows, D, F] += layers
        shapes[rows, F, D] += layers
    shapes[S, D, D] += 2 * config.decoder_layers
    shapes[predicted, D, V] += 1
    return shapes


class GemmRate:
    """Products of the batches' shapes in one dtype, on operands that lie ready on the clock's device: all of them are views
    of one block as large as the largest (logits of V = 128k are 8 GB).

    Attributes:
        flops: of one ``run``.
    """

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, batches: Sequence[TaskBatch], dtype: torch.dtype, clock: Clock
    ) -> None:
        self.clock = clock
        self.shapes: Counter[Shape] = Counter()
        for batch in batches:
            self.shapes += linear_shapes(config, vocabulary_size, batch)
        self.flops = sum(6 * n * i * o * count for (n, i, o), count in self.shapes.items())
        largest = max(max(n * i, o * i, n * o) for n, i, o in self.shapes)
        self.numbers = torch.randn(largest, dtype=dtype, device=clock.device)

    def run(self) -> float:
        """Seconds for all products: each layer's output, and the gradients of its input and weight."""
        return self.clock.time(self._products)[0]

    def _products(self) -> None:
        for (n, i, o), count in self.shapes.items():
            x, weight, d_y = (self.numbers[: a * b].view(a, b) for a, b in ((n, i), (o, i), (n, o)))
            for _ in range(count):
                torch.mm(x, weight.t())
                torch.mm(d_y, weight)
                torch.mm(d_y.t(), x)


class ProductRounds:
    """``GemmRate`` in rounds: ``rates`` has FLOP/s of each; after a failure it is empty, and ``problem`` says why."""

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, batches: Sequence[TaskBatch], dtype: torch.dtype, clock: Clock
    ) -> None:
        self.rates: list[float] = []
        self.problem = ""
        self._made: GemmRate | None = None

        def make() -> None:
            self._made = GemmRate(config, vocabulary_size, batches, dtype, clock)
            self._made.run()

        self._attempt(make)

    def take_turn(self) -> None:
        """One round."""
        self._attempt(self._run)

    def _run(self) -> None:
        if self._made is not None:
            self.rates.append(self._made.flops / self._made.run())

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as problem:
            self.problem, self._made, self.rates = in_one_line(problem), None, []
