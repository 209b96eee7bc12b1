"""Who takes part in ``mnmt bench train``: a trainer is a model with its optimizer, a candidate its passes over batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..flow import TaskBatch
from ..model.config import ModelConfig
from .kernel_rivals import compiled
from .timing import Clock, peak_extra_bytes, release
from .train_data import Padded

ADAM: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.98), "eps": 1e-9, "fused": True}
LABEL_SMOOTHING = 0.1


class Trainer(ABC):
    """One model in training on one device.

    Attributes:
        state_bytes: of weights, optimizer and what else stays between updates, as a GPU's allocator counts them; None before
            the first pass, and on CPU.
    """

    state_bytes: int | None = None

    @abstractmethod
    def ready(self, batch: Any) -> Any:
        """The batch as ``update`` takes it, on the device."""

    @abstractmethod
    def update(self, batch: Any) -> None:
        """One optimizer update."""

    def close(self) -> None:  # noqa: B027
        """Frees what it holds."""


class Candidate:
    """A trainer on its batches; several may share a trainer.

    Args:
        start: gives the trainer; called by ``begin``.

    Attributes:
        name: as it stands in the table.
        tokens: predicted target tokens of a pass.
        seconds: of each timed pass so far. first_seconds: of the first, which is not timed.
        peak_bytes: what stays, and the highest during an update on the largest batch; None on CPU, where resident memory
            would count libraries too.
        problem: why it no longer takes part.
        compiles: in its first pass.
    """

    def __init__(self, name: str, batches: Sequence[Any], tokens: int, start: Callable[[], Trainer] | None = None) -> None:
        self.name, self.tokens, self.start = name, tokens, start
        self.batches = list(batches)
        self.trainer: Trainer | None = None
        self.seconds: list[float] = []
        self.first_seconds = 0.0
        self.peak_bytes: int | None = None
        self.problem: str | None = None
        self.compiles = False

    def begin(self, clock: Clock) -> None:
        """The first pass, and on a GPU one update more to see its memory."""
        assert self.start is not None
        gpu = clock.device.type == "cuda"
        before = torch.cuda.memory_allocated(clock.device) if gpu else 0
        self.trainer = trainer = self.start()
        self.batches = [trainer.ready(batch) for batch in self.batches]
        self.first_seconds = self.one_pass(clock)
        if not gpu:
            return
        if trainer.state_bytes is None:
            trainer.state_bytes = torch.cuda.memory_allocated(clock.device) - before
        extra, _ = peak_extra_bytes(clock.device, lambda: trainer.update(max(self.batches, key=size_of)))
        self.peak_bytes = trainer.state_bytes + (extra or 0)

    def one_pass(self, clock: Clock) -> float:
        """Seconds of one pass over the batches."""
        return clock.time(self._update_on_all)[0]

    def _update_on_all(self) -> None:
        assert self.trainer is not None
        for batch in self.batches:
            self.trainer.update(batch)

    def speeds(self) -> list[float]:
        """Target tokens per second of each timed pass."""
        return [self.tokens / seconds for seconds in self.seconds]

    def drop(self, problem: str, clock: Clock) -> None:
        """Takes part no longer; its memory is free for the others."""
        self.problem, self.trainer, self.batches = problem, None, []
        release(clock.device)


def size_of(batch: TaskBatch | Padded) -> int:
    """Cells of both sides."""
    if isinstance(batch, TaskBatch):
        return batch.source_ids.numel() + batch.target_in.numel()
    return batch.inputs["input_ids"].numel() + batch.inputs["labels"].numel()


class _Ours(Trainer):
    """Our model takes sentences packed or in blocks, as ``mnmt train`` would hand them to it on this device."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        from ..model.attention import uses_buckets

        self.device, self.bucketed = device, uses_buckets(config, device, dtype)
        torch.manual_seed(1)

    def ready(self, batch: TaskBatch) -> TaskBatch:
        return (batch if self.bucketed else replace(batch, buckets=None)).to(self.device)


class BareModel(_Ours):
    """Our model with torch's fused Adam, both in one dtype: no engine, no fp32 masters."""

    name = "mnmt_scale model + torch Adam"

    def __init__(self, config: ModelConfig, vocabulary_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(config, dtype, device)
        self.model = _model(config, vocabulary_size, device).to(dtype).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), **ADAM)

    def update(self, batch: TaskBatch) -> None:
        self.optimizer.zero_grad(set_to_none=True)  # also those of an update that ran out of memory
        scale = 1.0 / sum(batch.step_tokens)
        self.model(batch, (scale,) * len(batch.tasks)).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Engine(_Ours):
    """Our model in the DeepSpeed engine (ZeRO-1, one rank) that ``mnmt train`` uses: gradient norm, fp32 masters."""

    name = "mnmt_scale engine"

    def __init__(self, config: ModelConfig, vocabulary_size: int, dtype: torch.dtype, device: torch.device) -> None:
        from .. import dist
        from ..engine.config import EngineConfig
        from ..engine.zero import ZeroEngine

        super().__init__(config, dtype, device)
        settings = EngineConfig(dtype="bf16" if dtype == torch.bfloat16 else "fp32")
        model = _model(config, vocabulary_size, device)
        self.engine = ZeroEngine(model, settings, world=dist.join(device.type), max_steps=100_000, accumulation=1)
        self.engine.module.train()

    def update(self, batch: TaskBatch) -> None:
        scale = 1.0 / sum(batch.step_tokens)
        losses = self.engine.forward(batch, (scale,) * len(batch.tasks))
        self.engine.backward(losses, last=True)
        self.engine.step()

    def close(self) -> None:
        self.engine.close()


class HuggingFace(Trainer):
    """``M2M100ForConditionalGeneration`` of the same sizes with its own loss (no label smoothing, which costs it nothing).

    Args:
        autocast: fp32 weights under bf16 autocast, as its Trainer has it; else weights of ``dtype``.
        compiling: forward pass and loss under ``torch.compile``: ``static`` for batches of one shape, ``dynamic`` for batches
            of many, which would be compiled one by one else. As its users get it: M2M100 asks a random number before each
            layer whether to leave it out, so each layer becomes a graph of its own (transformers 5.17).
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        autocast: bool = False,
        compiling: str = "",
    ) -> None:
        from transformers import M2M100ForConditionalGeneration

        torch.manual_seed(1)
        self.autocast, self.device, self.compiling = autocast, device, compiling
        with device:
            model = M2M100ForConditionalGeneration(hugging_face_config(config, vocabulary_size))
        self.model = model.to(torch.float32 if autocast else dtype).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), **ADAM)
        self.loss = compiled(self._loss, device, dynamic=compiling == "dynamic") if compiling else self._loss
        if compiling:  # the backward pass with the forward one: in the thread and the time of the first call
            torch._functorch.config.force_non_lazy_backward_lowering = True
            # as many sentences as tokens in the first batch is chance: else the next one would be compiled again
            torch.fx.experimental._config.use_duck_shape = False
            torch._dynamo.config.recompile_limit = 64  # a large model's layers must not end in eager mode

    def ready(self, batch: Padded) -> Padded:
        inputs = {name: x.to(self.device) for name, x in batch.inputs.items()}
        if self.compiling != "dynamic" and bool(batch.inputs["attention_mask"].all()):
            del inputs["attention_mask"]  # hides nothing, and without it attention takes its fastest kernel
        return Padded(inputs, batch.tokens)

    def update(self, batch: Padded) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss(batch.inputs)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        if self.compiling:  # what is compiled may hold the model
            torch.compiler.reset()

    def _loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**inputs).loss


def hugging_face_config(config: ModelConfig, vocabulary_size: int) -> Any:
    """``M2M100Config`` of the same model."""
    from transformers import M2M100Config

    return M2M100Config(
        vocab_size=vocabulary_size,
        d_model=config.d_model,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_ffn_dim=config.d_ffn,
        decoder_ffn_dim=config.d_ffn,
        encoder_attention_heads=config.heads,
        decoder_attention_heads=config.heads,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        activation_function=config.activation,
        max_position_embeddings=config.max_positions,
        scale_embedding=True,
        use_cache=False,
        attn_implementation="sdpa",
    )


def _model(config: ModelConfig, vocabulary_size: int, device: torch.device):
    from ..model.transformer import Transformer

    with device:
        return Transformer(config, vocabulary_size, label_smoothing=LABEL_SMOOTHING)
