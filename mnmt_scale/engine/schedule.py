"""Learning rate as a pure function of the step, so that its whole state is the step number."""

from __future__ import annotations

import math

from .config import ScheduleConfig


def rate_factor(config: ScheduleConfig, step: int, max_steps: int) -> float:
    """Factor of the peak learning rate at update number ``step`` (1 is the first).

    Warm-up: ``step / warmup_steps``, reaching 1 at ``warmup_steps``. After it, with w = max(warmup_steps, 1):
    ``inverse_sqrt`` sqrt(w / step) (Vaswani et al. 2017, eq. 3, as fairseq scales it); ``linear`` and ``cosine`` fall to
    ``final_ratio`` at ``max_steps`` and stay there; ``constant`` 1.
    """
    assert step >= 1, step
    warmup = config.warmup_steps
    if step < warmup:
        return step / warmup
    if config.name == "constant":
        return 1.0
    if config.name == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / step)
    done = min(1.0, (step - warmup) / max(max_steps - warmup, 1))
    shape = 1.0 - done if config.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return config.final_ratio + (1.0 - config.final_ratio) * shape
