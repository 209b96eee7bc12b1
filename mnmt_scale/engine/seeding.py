"""Seeds of the random generators, as a pure function of the position in training."""

from __future__ import annotations

import numpy as np
import torch


def seed_step(seed: int, step: int, micro: int, rank: int) -> None:
    """Seeds torch's generators (CPU and accelerator) for one micro-batch.

    Dropout then depends on (seed, step, micro, rank) alone, so a resumed run draws what an uninterrupted one draws and a
    checkpoint need not hold generator states.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, micro, rank)).generate_state(1, np.uint64)[0] >> 1))
