"""Rewards of MultiDDS-S: the truth by plain autograd, and cases for a ``RankPool``."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mnmt_scale.data.config import BatchConfig
from mnmt_scale.data.packing import only
from mnmt_scale.dist import World
from mnmt_scale.engine.config import TaskGradientsConfig
from mnmt_scale.engine.task_grads import TaskGradients
from mnmt_scale.engine.zero import ZeroEngine
from mnmt_scale.flow import TaskBatch
from mnmt_scale.methods.spec import MethodConfig
from mnmt_scale.model.groups import parameter_group
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.tasks import TaskSet
from mnmt_scale.train.alignment import measure_alignment

from .engine_cases import MAX_STEPS, engine_config
from .memory_store import MemoryStore, make_store
from .tiny_training import tiny_config

DIRECTIONS = TaskSet([("de", "en"), ("en", "de"), ("fr", "en"), ("ru", "en")])
VOCABULARY = 64


def small_store() -> MemoryStore:
    """Three pairs of different size; fr-en's dev text is gone."""
    store = make_store({"de-en": 60, "en-fr": 7, "en-ru": 25}, seed=3, dev=9, longest=12)
    del store.content["dev"]["en-fr"]
    return store


def tiny_model(dropout: float = 0.0) -> nn.Module:
    """The tiny model with weights that are always the same."""
    torch.manual_seed(11)
    return Transformer(tiny_config(dropout=dropout), VOCABULARY, label_smoothing=0.1)


class PlainGradients:
    """``gradient`` and ``inner`` of ``TaskGradients`` over whole gradients in one process."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def gradient(self, batches: Sequence[TaskBatch], scales: tuple[float, ...]) -> dict[str, Tensor]:
        total = sum(self.model(batch, scales).total for batch in batches)
        named = dict(self.model.named_parameters())
        return {n: g.flatten() for n, g in zip(named, torch.autograd.grad(total, list(named.values())), strict=True)}

    def inner(self, gradients: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        table: dict[str, Tensor] = {}
        for name in gradients[0]:
            rows = torch.stack([g[name] for g in gradients]).double()
            group = name.split(".")[0]
            table[group] = table.get(group, 0.0) + rows @ rows.T
        return table


def cosines(model: nn.Module, train: Sequence[Any], dev: Sequence[Any]) -> list[float]:
    """The definition, without a detour: one autograd gradient per task and split, T x T cosines in fp64, their mean."""
    plain = PlainGradients(model)

    def flat(batches: Sequence[TaskBatch]) -> Tensor:
        return torch.cat(list(plain.gradient(batches, (1.0,)).values())).double()

    train_gradients, dev_gradients = [flat(b) for b in train], [flat(b) for b in dev if b]
    cosine = torch.nn.functional.cosine_similarity
    return [float(torch.stack([cosine(d, g, dim=0) for d in dev_gradients]).mean()) for g in train_gradients]


def stand_in(world: World, engine: Any, step: int = 7, tokens: int = 120, batch_tokens: int = 400, store: Any = None) -> Any:
    """What ``measure_alignment`` reads of a learner."""
    config = SimpleNamespace(
        method=MethodConfig.model_validate({"multidds": {"batch_tokens": tokens}}),
        batch=BatchConfig(batch_tokens=batch_tokens),
        train=SimpleNamespace(seed=5),
        data=SimpleNamespace(max_tokens=14),
        model=tiny_config(),
    )
    store = store or small_store()
    return SimpleNamespace(config=config, tasks=DIRECTIONS, store=store, world=world, engine=engine, step=step)


def measured(world: World, stage: int, batch_tokens: int = 400) -> list[float]:
    """The rewards by the engine, on however many ranks."""
    config = engine_config(zero_stage=stage)
    engine = ZeroEngine(tiny_model(), config, world=world, max_steps=MAX_STEPS, accumulation=1)
    gradients = TaskGradients(engine, TaskGradientsConfig(), seed=5, only=only, group_of=parameter_group)
    before = engine.weights()
    rewards = measure_alignment(stand_in(world, engine, batch_tokens=batch_tokens), gradients)
    after = engine.weights()
    assert all(torch.equal(before[n], after[n]) for n in before), "measuring moves no weight"
    engine.close()
    return list(rewards)
