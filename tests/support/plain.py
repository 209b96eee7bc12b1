"""A plain single-process engine without DeepSpeed: the truth that every ZeRO stage is tested against.

Same calls as ``engine.zero.ZeroEngine``; it is given the micro-batches of all ranks one after another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mnmt_scale.engine.config import EngineConfig
from mnmt_scale.engine.ema import ema_decay
from mnmt_scale.engine.optimizer import make_optimizer
from mnmt_scale.engine.schedule import rate_factor
from mnmt_scale.engine.zero import StepOutcome
from mnmt_scale.flow import TaskBatch, TaskLosses


class PlainEngine:
    """fp32, one process, ``torch.nn.utils.clip_grad_norm_``, one torch optimizer over the whole parameters."""

    def __init__(self, model: nn.Module, config: EngineConfig, *, max_steps: int) -> None:
        self.module, self.config, self.max_steps = model, config, max_steps
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.optimizer = make_optimizer(config.optimizer, model.parameters(), self.device)
        self.steps = self.updates = 0
        self.averages = {n: p.detach().clone() for n, p in model.named_parameters()}

    def forward(self, batch: TaskBatch, scales: Tensor | tuple[float, ...]) -> TaskLosses:
        return self.module(batch, scales)

    def backward(self, losses: TaskLosses) -> None:
        losses.total.backward()

    def step(self) -> StepOutcome:
        self.steps += 1
        rate = self.config.optimizer.learning_rate * rate_factor(self.config.schedule, self.steps, self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        limit = self.config.clip_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit))
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            return StepOutcome(math.nan, rate, skipped=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = ema_decay(self.config.ema_decay, self.updates)
        self.updates += 1
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                self.averages[name].mul_(decay).add_(p, alpha=1 - decay)
        return StepOutcome(norm, rate)

    def weights(self, ema: bool = False) -> dict[str, Tensor]:
        if ema:
            return self.averages
        return {n: p.detach().clone() for n, p in self.module.named_parameters()}
