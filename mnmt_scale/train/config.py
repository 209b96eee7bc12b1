"""The settings of one training: what a TOML file of ``configs/`` holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..data.config import BatchConfig, DataConfig, SamplingConfig
from ..engine.config import EngineConfig
from ..evaluation.config import EvaluationConfig
from ..methods.cats.probe_config import ProbeConfig
from ..methods.spec import NEED_GRADIENTS, MethodConfig
from ..model.config import ModelConfig
from ..settings import Section

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class TrainConfig(Section):
    """Length, logging and validation of a training."""

    max_steps: Positive = 100_000
    max_minutes: Annotated[float, Field(gt=0.0)] | None = None
    """Stop after this many minutes of wall-clock time (this process; a checkpoint is written)."""
    seed: NonNegative = 1
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    log_steps: Positive = 50
    validate_steps: Positive = 1000
    validate_sentences: Positive = 1000
    """Dev sentences per direction (the first ones)."""
    patience: NonNegative = 0
    """Validations without a better loss before training stops; 0 never stops early."""
    init_from: str | None = None
    """Begin with the weights of this run (or of an imported model) instead of random ones; its vocabulary must be the
    same."""
    init_weights: Literal["best", "last", "average", "average_best", "ema"] = "best"
    """Which weights of ``init_from``."""
    deterministic: bool = True
    """Use deterministic operations wherever torch has them (on GPU some are slower), and warn where it has none."""


class RunConfig(Section):
    """Everything about one training."""

    name: str = "run"
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    batch: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    engine: EngineConfig = EngineConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig = ProbeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self):
        if self.data.max_tokens > self.model.max_positions:
            raise ValueError(f"data.max_tokens {self.data.max_tokens} exceeds model.max_positions {self.model.max_positions}")
        if self.sampling.kind == "fixed" and not self.sampling.weights:
            raise ValueError("sampling.kind 'fixed' needs sampling.weights")
        self._check_task_gradients()
        return self

    def _check_task_gradients(self) -> None:
        how = self.engine.task_gradients
        if how.route == "off":
            remedy = "set engine.task_gradients.route to 'auto', not 'off'"
            if self.method.name in NEED_GRADIENTS:
                raise ValueError(f"method '{self.method.name}' needs the gradients of single tasks: {remedy}")
            if self.method.name == "affinity" and self.method.affinity.estimate_every:
                raise ValueError(f"method.affinity.estimate_every needs the gradients of single tasks: {remedy}")
            if self.probe.gradients_every or self.probe.curvature_every:
                raise ValueError(f"probes need the gradients of single tasks: {remedy}")
        current = self.method.name == "gramian" and self.method.gramian.weights == "current"
        if current and how.gram_over == "microbatch" and self.batch.accumulation > 1:
            raise ValueError("method.gramian.weights 'current' needs the Gram of the whole step: gram_over = 'step'")


Resume = Literal["auto", "required", "never"]
