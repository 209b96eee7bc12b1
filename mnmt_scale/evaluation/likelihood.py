"""How probable a model finds the references: negative log-likelihood per predicted token, without label smoothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data.packing import FRAME, pack_batch
from ..data.tokenizer import Tokenizer
from ..model.attention import uses_buckets
from ..model.transformer import Transformer
from ..tasks import Task
from .decode import plan_batches


@torch.no_grad()
def negative_log_likelihood(
    model: Transformer,
    tokenizer: Tokenizer,
    task: Task,
    sources: Sequence[str],
    references: Sequence[str],
    *,
    max_tokens: int,
    batch_tokens: int,
) -> tuple[float, int]:
    """Sum of NLLs (nats) over the predicted tokens of the references, and their number; ``</s>`` counts, tags do not.

    Args:
        model: in eval mode.
        max_tokens: longest sentence on either side, tag and end included; longer ones are cut, as ``prepare`` cuts them.
        batch_tokens: tokens of the longer side in one batch.
    """
    room = max_tokens - FRAME
    encoded = [[ids[:room] for ids in tokenizer.encode(list(side))] for side in (sources, references)]
    weight = model.shared.weight
    bucketed = uses_buckets(model.config, weight.device, weight.dtype)
    nll, tokens = 0.0, 0
    for rows in plan_batches([max(len(s), len(t)) + FRAME for s, t in zip(*encoded, strict=True)], batch_tokens):
        batch = pack_batch(
            [encoded[0][i] for i in rows],
            [encoded[1][i] for i in rows],
            [0] * len(rows),
            [task],
            tokenizer,
            rows=rows,
            bucketed=bucketed,
        )
        losses = model(batch.to(weight.device), (1.0,))
        nll += float(losses.nlls[0])
        tokens += int(losses.tokens[0])
    return nll, tokens
