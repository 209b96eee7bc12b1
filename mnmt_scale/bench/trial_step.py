"""A few optimizer steps of a very small model through the real engine: ``python -m mnmt_scale.bench.trial_step``.

``mnmt doctor`` runs it as a process of its own, so that a library that kills the process is a line of the report.
"""

from __future__ import annotations

import json
import math
import time
from types import SimpleNamespace
from typing import Any

STEPS, SENTENCES, VOCABULARY = 3, 8, 97


def trial() -> dict[str, Any]:
    """Train on one batch ``STEPS`` times.

    Returns:
        losses: token mean before each step; device, dtype; seconds without imports; learns: the loss is finite and fell.
    """
    import torch

    from .. import dist
    from ..data.packing import pack_batch
    from ..engine.config import EngineConfig
    from ..engine.zero import ZeroEngine
    from ..model.attention import uses_buckets
    from ..model.config import ModelConfig
    from ..model.transformer import Transformer
    from ..tasks import TaskSet

    world = dist.join()
    torch.manual_seed(0)
    config = ModelConfig(preset="tiny", dropout=0.0)
    engine_config = EngineConfig.model_validate({"schedule": {"name": "constant", "warmup_steps": 0}})
    start = time.perf_counter()
    model = Transformer(config, VOCABULARY)
    engine = ZeroEngine(model, engine_config, world=world, max_steps=STEPS, accumulation=1)
    tokenizer = SimpleNamespace(eos=2, vocabulary_size=VOCABULARY, tag_id=lambda language: 4)
    lines = [[torch.randint(5, VOCABULARY, (4 + i,)).tolist() for i in range(SENTENCES)] for _ in range(2)]
    bucketed = uses_buckets(config, world.device, engine.dtype)
    batch = pack_batch(*lines, [0] * SENTENCES, list(TaskSet([("fr", "en")])), tokenizer, bucketed=bucketed)
    batch = batch.to(world.device)
    tokens = sum(batch.step_tokens)
    losses = []
    for _ in range(STEPS):
        out = engine.forward(batch, (1.0 / tokens,))
        engine.backward(out, last=True)
        engine.step()
        losses.append(float(out.sums.sum()) / tokens)
    seconds = time.perf_counter() - start
    dtype = str(engine.dtype).removeprefix("torch.")
    engine.close()
    dist.leave()
    learns = all(math.isfinite(x) for x in losses) and losses[-1] < losses[0]
    return {"losses": losses, "device": str(world.device), "dtype": dtype, "seconds": seconds, "learns": learns}


if __name__ == "__main__":
    print(json.dumps(trial()))
