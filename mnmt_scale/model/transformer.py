"""The encoder-decoder Transformer: packed tokens in, losses per task out.

With the default settings it is an M2M100 (``transformers.M2M100ForConditionalGeneration``) weight for weight; the names
of the weights are Hugging Face's without the leading ``model.``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..flow import TaskBatch, TaskLosses
from ..kernels.ops.dropout_add import dropout_add
from ..kernels.ops.task_tape import TaskTape
from ..losses.task_loss import task_losses
from .attention import AttentionLayout, attention_layout, places
from .config import ModelConfig
from .layers import DecoderLayer, EncoderLayer, layer_norm
from .segmented import Embedding, Rows, Sides, measured_layers, measured_task_losses, name_layers


class Transformer(nn.Module):
    """Encoder-decoder Transformer with tied embeddings.

    Args:
        config: sizes and variants.
        vocabulary_size: V.
        pad_id: id of the padding token; packed batches hold none, but position tables start at row ``pad_id + 1``.
        label_smoothing: eps of the training loss; 0 in evaluation mode.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, *, pad_id: int = 1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.config, self.pad_id, self.label_smoothing = config, pad_id, label_smoothing
        self.shared = Embedding(vocabulary_size, config.d_model)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        table = sinusoids(pad_id + 1 + config.max_positions, config.d_model)
        self.register_buffer("positions", table, persistent=False)
        name_layers(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """fairseq's initialisation: embeddings N(0, 1/D), matrices Xavier uniform, those of query, key and value with
        gain 1/sqrt(2), biases 0. (fairseq leaves fc1, fc2 and some biases at torch's default; here they follow the rule.)"""
        for name, parameter in self.named_parameters():
            if name == "shared.weight":
                nn.init.normal_(parameter, std=self.config.d_model**-0.5)
            elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                nn.init.xavier_uniform_(parameter, gain=2**-0.5)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def measured_parameters(self) -> set[str]:
        """Names of the parameters whose gradients a tape gets: those of the measured layers, used once each (and the shared
        table twice, as embedding and as output)."""
        return {
            f"{place}.{name}" for place, layer in measured_layers(self) for name, _ in layer.named_parameters(recurse=False)
        }

    def forward(self, batch: TaskBatch, scales: Tensor | Sequence[float], tape: TaskTape | None = None) -> TaskLosses:
        """Losses of a micro-batch; ``total`` is ``sum_k scales[k] * (sum of task k's token losses)``.

        With ``tape`` the backward pass hands it the gradients of each term of ``total``, and the parameters get their
        combination: ``sum_k tape.alpha[k] * scales[k] * grad(sum of task k's token losses)``.
        A micro-batch without sentences gives zeros whose graph reaches every parameter.
        """
        smoothing = self.label_smoothing if self.training else 0.0
        if tape is None:
            return task_losses(self.hidden(batch), self.shared.weight, batch, scales, smoothing)
        hidden = self.hidden(batch, tape)
        return measured_task_losses(hidden, self.shared, self.shared.weight, batch, scales, tape, smoothing)

    def hidden(self, batch: TaskBatch, tape: TaskTape | None = None) -> Tensor:
        """[U, D] decoder output of the packed target tokens: times ``shared.weight`` transposed these are the logits."""
        assert max(batch.max_source, batch.max_target) <= self.config.max_positions, "sentence longer than max_positions"
        S, U = batch.source_ids.shape[0], batch.target_in.shape[0]
        positions = torch.cat((places(batch.source_offsets, S)[1], places(batch.target_offsets, U)[1]))
        sides = Sides.of(batch, tape)
        embedded = self.embed(torch.cat((batch.source_ids, batch.target_in)), positions, sides.both)
        source, target = embedded.split((S, U))
        layout = attention_layout(batch, self.config.heads, packed=self.config.attention == "packed", sides=sides)
        return self.decoder(target, self.encoder(source, layout), layout)

    def embed(self, ids: Tensor, positions: Tensor, rows: Rows | None = None) -> Tensor:
        """Scaled embeddings plus sinusoids, with dropout.

        Args:
            ids: token ids of any shape.  positions: of the same shape, from 0 at the first token of a sentence.
            rows: of packed ids.
        """
        x = self.shared(ids, rows)
        table = self.positions[positions + (self.pad_id + 1)].to(x.dtype)
        x = torch.add(table, x, alpha=math.sqrt(self.config.d_model))
        return dropout_add(None, x, self.config.dropout, self.training)


class Encoder(nn.Module):
    """Stack of encoder layers; pre-norm ends in a norm of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recompute = config.activation_checkpointing
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = layer_norm(config) if config.norm == "pre" else None

    def forward(self, x: Tensor, layout: AttentionLayout) -> Tensor:
        """[S, D] embedded source tokens -> [S, D] encoder output."""
        for layer in self.layers:
            x = run_layer(layer, x, layout, recompute=self.recompute and self.training)
        return x if self.layer_norm is None else self.layer_norm(x, layout.sides.source)


class Decoder(nn.Module):
    """Stack of decoder layers; pre-norm ends in a norm of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recompute = config.activation_checkpointing
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = layer_norm(config) if config.norm == "pre" else None

    def forward(self, x: Tensor, memory: Tensor, layout: AttentionLayout) -> Tensor:
        """[U, D] embedded target tokens, [S, D] encoder output -> [U, D] hidden states."""
        for layer in self.layers:
            x = run_layer(layer, x, memory, layout, recompute=self.recompute and self.training)
        return x if self.layer_norm is None else self.layer_norm(x, layout.sides.target)


def run_layer(layer: nn.Module, *inputs, recompute: bool) -> Tensor:
    """The layer's output; with ``recompute`` its activations are made again in the backward pass."""
    return checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)


def sinusoids(rows: int, width: int) -> Tensor:
    """[rows, width] position table of fairseq and M2M100: ``[sin | cos]`` of ``row * 10000^(-i / (width/2 - 1))``."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(rows).float()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)
