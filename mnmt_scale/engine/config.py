"""Settings of the engine: ZeRO, precision, optimizer, schedule, checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..settings import Section

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimizerConfig(Section):
    """A torch optimizer handed to DeepSpeed, so that nothing is compiled at start."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0.0, lt=10.0)] = 5e-4
    """Peak rate, reached after ``warmup_steps``."""
    beta1: Beta = 0.9
    beta2: Beta = 0.98
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-9
    weight_decay: NonNegativeFloat = 0.0
    momentum: Beta = 0.0
    """``sgd`` only."""


class ScheduleConfig(Section):
    """Learning rate by optimizer step."""

    name: Literal["inverse_sqrt", "linear", "cosine", "constant"] = "inverse_sqrt"
    """After the warm-up: falls with 1/sqrt(step), linearly or as a cosine to ``final_ratio`` at ``train.max_steps``, or
    not at all."""
    warmup_steps: NonNegative = 4000
    """Linear rise from ``learning_rate / warmup_steps``."""
    final_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every_steps: Positive = 1000
    keep_last: Positive = 5
    keep_best: Positive = 1
    """Best by validation loss, kept beside the last ones."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """``continue`` trains on with the previous checkpoint, three times at most in a row."""


class TaskGradientsConfig(Section):
    """How the gradients of single tasks are measured, for methods and probes that need them."""

    route: Literal["auto", "segmented", "per_task", "off"] = "auto"
    """``segmented``: every task's weight gradients from one ordinary backward pass; ``per_task``: a forward and backward
    pass for each task, which works with any model; ``auto``: segmented where every parameter is covered; ``off``: never,
    and methods that need them are refused."""
    gram_over: Literal["step", "microbatch"] = "step"
    """With accumulation: the Gram of the whole step (K fp32 gradients are kept, sharded over the ranks) or of its first
    micro-batch."""
    preconditioner: Literal["none", "adam"] = "none"
    """``adam``: inner products weighted by 1 / (sqrt(v) + eps) with Adam's second moment v, corrected for its start; all 1
    before the first update."""
    max_bad: NonNegative = 10
    """Observations in a row that may be left out because a task's gradient is not finite (E505 after that)."""


class EngineConfig(Section):
    """Sharding, precision, optimizer, and what to do when numbers or disks fail."""

    zero_stage: Literal[1, 2, 3] = 1
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bf16 where the device computes it natively (an accelerator), else fp32."""
    clip_norm: NonNegativeFloat = 0.0
    """Largest global gradient norm of the token mean; 0 turns clipping off."""
    ema_decay: Beta = 0.0
    """Exponential moving average of the weights, saved beside them and used for validation; 0 turns it off."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite on any rank: stop, or leave the update out ``max_skips`` times in a row."""
    max_skips: NonNegative = 10
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    task_gradients: TaskGradientsConfig = TaskGradientsConfig()
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Merged into the generated DeepSpeed configuration: offload, bucket sizes, communication. Keys that this system
    sets itself (batch sizes, clipping, dtypes, stage) are refused."""

    @model_validator(mode="after")
    def _sgd_only(self):
        if self.optimizer.momentum and self.optimizer.name != "sgd":
            raise ValueError("optimizer.momentum is for sgd")
        return self
