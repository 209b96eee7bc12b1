"""Who takes part in ``mnmt bench train``: each candidate makes passes over its batches, one update a batch."""

from __future__ import annotations

import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..flow import TaskBatch
from ..model.config import ModelConfig
from .train_data import Padded

ADAM: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.98), "eps": 1e-9, "fused": True}
LABEL_SMOOTHING = 0.1


class Candidate(ABC):
    """One model in training.

    Attributes:
        name: as it stands in the table.
        tokens, seconds: predicted target tokens of a pass, and the seconds of each pass so far.
    """

    def __init__(self, name: str, batches: Sequence[Any], tokens: int) -> None:
        self.name, self.batches, self.tokens = name, batches, tokens
        self.seconds: list[float] = []

    @abstractmethod
    def update(self, batch: Any) -> None:
        """One optimizer update."""

    def take_pass(self) -> float:
        """Seconds of one pass over the batches; recorded."""
        start = time.perf_counter()
        for batch in self.batches:
            self.update(batch)
        self.seconds.append(time.perf_counter() - start)
        return self.seconds[-1]

    def close(self) -> None:  # noqa: B027
        """Frees what it holds."""


class BareModel(Candidate):
    """Our model with torch's fused Adam, both in one dtype: no engine, no fp32 masters."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, batches: Sequence[TaskBatch], dtype: torch.dtype) -> None:
        super().__init__("mnmt_scale model + torch Adam", batches, sum(sum(b.step_tokens) for b in batches))
        torch.manual_seed(1)
        self.model = _model(config, vocabulary_size).to(dtype).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), **ADAM)

    def update(self, batch: TaskBatch) -> None:
        scale = 1.0 / sum(batch.step_tokens)
        self.model(batch, (scale,) * len(batch.tasks)).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Engine(Candidate):
    """Our model in the DeepSpeed engine (ZeRO-1, one rank) that ``mnmt train`` uses: gradient norm, fp32 masters."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, batches: Sequence[TaskBatch], dtype: torch.dtype) -> None:
        from .. import dist
        from ..engine.config import EngineConfig
        from ..engine.zero import ZeroEngine

        super().__init__("mnmt_scale engine", batches, sum(sum(b.step_tokens) for b in batches))
        torch.manual_seed(1)
        settings = EngineConfig(dtype="bf16" if dtype == torch.bfloat16 else "fp32")
        self.engine = ZeroEngine(
            _model(config, vocabulary_size), settings, world=dist.join("cpu"), max_steps=100_000, accumulation=1
        )
        self.engine.module.train()

    def update(self, batch: TaskBatch) -> None:
        scale = 1.0 / sum(batch.step_tokens)
        losses = self.engine.forward(batch, (scale,) * len(batch.tasks))
        self.engine.backward(losses, last=True)
        self.engine.step()

    def close(self) -> None:
        self.engine.close()


class HuggingFace(Candidate):
    """``M2M100ForConditionalGeneration`` of the same sizes with its own loss (no label smoothing, which costs it nothing).

    Args:
        autocast: fp32 weights under bf16 autocast, as its Trainer has it; else weights of ``dtype``.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        batches: Sequence[Padded],
        dtype: torch.dtype,
        *,
        padding: str,
        autocast: bool = False,
    ) -> None:
        from transformers import M2M100Config, M2M100ForConditionalGeneration

        kind = " autocast" if autocast else ""
        super().__init__(f"Hugging Face M2M100{kind}, {padding}", batches, sum(b.tokens for b in batches))
        torch.manual_seed(1)
        self.autocast = autocast
        settings = M2M100Config(
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
        self.model = M2M100ForConditionalGeneration(settings).to(torch.float32 if autocast else dtype).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), **ADAM)

    def update(self, batch: Padded) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.model(**batch.inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class JoeyNmt:
    """The worker process of JoeyNMT; ``candidate`` makes one contestant of each named list of batches.

    Raises:
        RuntimeError: the worker did not start, with what it wrote last.
    """

    def __init__(
        self,
        python: str,
        config: ModelConfig,
        vocabulary_size: int,
        named: dict[str, list],
        work: Path,
        *,
        bf16: bool,
        threads: int,
    ) -> None:
        setup = {
            **config.model_dump(include={"encoder_layers", "decoder_layers", "d_model", "d_ffn", "heads", "dropout"}),
            "vocabulary_size": vocabulary_size,
            "label_smoothing": LABEL_SMOOTHING,
            "threads": threads,
            "bf16": bf16,
            "batches": named,
        }
        path = work / f"joeynmt-{'bf16' if bf16 else 'fp32'}.json"
        path.write_text(json.dumps(setup), encoding="utf-8")
        self.log = path.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, str(Path(__file__).with_name("joeynmt_worker.py")), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the JoeyNMT worker ended: {' '.join(last)}")
        return json.loads(line)

    def candidate(self, name: str) -> _JoeyCandidate:
        return _JoeyCandidate(self, name)

    def pass_over(self, name: str) -> dict[str, Any]:
        """Tokens and seconds of one pass over the batches called ``name``."""
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


class _JoeyCandidate(Candidate):
    def __init__(self, worker: JoeyNmt, batches: str) -> None:
        super().__init__(f"JoeyNMT {worker.versions['joeynmt']}, {batches}", [], 0)
        self.worker, self.key = worker, batches

    def take_pass(self) -> float:
        answer = self.worker.pass_over(self.key)
        self.tokens = answer["tokens"]
        self.seconds.append(answer["seconds"])
        return self.seconds[-1]


def _model(config: ModelConfig, vocabulary_size: int):
    from ..model.transformer import Transformer

    return Transformer(config, vocabulary_size, label_smoothing=LABEL_SMOOTHING)
