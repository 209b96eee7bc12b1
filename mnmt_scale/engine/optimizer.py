"""Torch optimizers that DeepSpeed is handed, so that it compiles none of its own at start."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of the settings over one group of parameters.

    Adam and AdamW run as one fused kernel on devices where torch has it (CPU and CUDA). Weight decay counts for all
    weights alike, as in fairseq: with ``adam`` as an L2 term in the gradient, with ``adamw`` decoupled from it.
    """
    parameters = list(parameters)
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
