"""Gradients of single tasks in one plain process: one backward pass a task over the sentences of all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnmt_scale.flow import TaskBatch
from mnmt_scale.model.groups import parameter_group

from .gram_models import model_of
from .tiny_training import planned, sentences, share_out


def shared_out(step: int, ranks: int, accumulation: int, split: str) -> list[list[TaskBatch]]:
    """``planned`` with two more splits: ``absent``, where the last rank alone holds task 0 (and one rank alone holds all);
    ``missing``, a step without a sentence of task 1."""
    if split not in ("absent", "missing"):
        return planned(step, ranks, accumulation, split)
    rows = sentences(step, (4, 5, 3) if split == "absent" else (4, 0, 5))
    cells: list[list[int]] = [[] for _ in range(ranks * accumulation)]
    for i, (slot, _, _) in enumerate(rows):
        first = len(cells) - accumulation if split == "absent" and slot == 0 else 0
        cells[first + i % (len(cells) - first)].append(i)
    batches = share_out(rows, cells, step)
    return [batches[r * accumulation : (r + 1) * accumulation] for r in range(ranks)]


def scales_of(alpha: Sequence[float], batch: TaskBatch) -> tuple[float, ...]:
    """alpha_k / N_k."""
    return tuple(a / n if n else 0.0 for a, n in zip(alpha, batch.step_tokens, strict=True))


def truth(
    step: int,
    ranks: int,
    accumulation: int,
    split: str,
    *,
    micro: int | None = None,
    weights: dict[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    **model: Any,
) -> dict[str, Any]:
    """name -> [K, n] gradients of the L_k of a step (of the ranks' micro-batch ``micro`` alone), losses and token counts."""
    net = model_of(**model).to(dtype)
    if weights is not None:
        net.load_state_dict(weights)
    shares = shared_out(step, ranks, accumulation, split)
    batches = list(itertools.chain(*shares)) if micro is None else [mine[micro] for mine in shares]
    tokens = torch.tensor([b.target_segments for b in batches]).diff(dim=1).sum(dim=0)
    tokens -= torch.stack([torch.bincount(b.sentence_task, minlength=3) for b in batches]).sum(dim=0)
    named = dict(net.named_parameters())
    gradients = {n: torch.zeros(3, p.numel(), dtype=torch.float64) for n, p in named.items()}
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        for k in range(3):
            scales = [1.0 / float(tokens[k]) if j == k and tokens[k] else 0.0 for j in range(3)]
            total = net(batch, scales).total
            for name, g in zip(named, torch.autograd.grad(total, list(named.values())), strict=True):
                gradients[name][k] += g.flatten()
        sums += net(batch, [0.0] * 3).sums
    return {"gradients": gradients, "losses": (sums / tokens.clamp(min=1)).tolist(), "tokens": tuple(tokens.tolist())}


def grams(gradients: dict[str, Tensor], diagonal: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Group -> [K, K]."""
    out: dict[str, Tensor] = {}
    for name, g in gradients.items():
        weighted = g if diagonal is None else g * diagonal[name].double().flatten()
        group = parameter_group(name)
        out[group] = out.get(group, 0) + weighted @ g.t()
    return out
