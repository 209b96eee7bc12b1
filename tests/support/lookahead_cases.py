"""Affinity probing on a small store in memory: a learner, a loop of steps with lookaheads, and the truth by plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnmt_scale.data.sampler import is_single
from mnmt_scale.dist import World
from mnmt_scale.flow import Lookahead, LossChange
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.settings import validate
from mnmt_scale.tasks import TaskSet
from mnmt_scale.train.config import RunConfig
from mnmt_scale.train.learner import Learner
from mnmt_scale.train.lookahead import Held, hold, look_again

from .memory_store import MemoryStore, make_store

TASKS = TaskSet([("de", "en"), ("en", "de"), ("fr", "en"), ("ru", "en")])
"""Two directions of one pair; ru-en has so few sentences that a step holds all of them."""
SGD = {"name": "sgd", "learning_rate": 1e-3}


def small_store() -> MemoryStore:
    return make_store({"de-en": 60, "en-fr": 90, "en-ru": 5}, seed=3, dev=9, longest=12)


def settings_of(overrides: dict[str, Any]) -> RunConfig:
    """Tiny, fp32, single steps at every second one; ``overrides`` by dotted name."""
    table: dict[str, Any] = {
        "data": {"max_tokens": 14},
        "model": dict(encoder_layers=1, decoder_layers=1, d_model=16, d_ffn=32, heads=2, max_positions=32, dropout=0.0),
        "method": {"name": "affinity"},
        "batch": {"batch_tokens": 200},
        "train": {"label_smoothing": 0.0, "max_steps": 40, "seed": 5},
        "engine": {
            "dtype": "fp32",
            "schedule": {"name": "constant", "warmup_steps": 0},
            "optimizer": {"learning_rate": 5e-3},
            "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
        },
    }
    for name, value in overrides.items():
        here = table
        *sections, last = name.split(".")
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = value
    return validate(RunConfig, table, "test")


def learner_of(world: World, **overrides: Any) -> Learner:
    """A fresh learner over the small store."""
    return Learner.build(settings_of({k.replace("__", "."): v for k, v in overrides.items()}), small_store(), TASKS, world)


def step(
    learner: Learner, tokens: int = 60, affected: Sequence[int] = range(len(TASKS))
) -> tuple[Held | None, LossChange | None]:
    """One update, with a lookahead where it is of one task."""
    batches = learner.stream.next()
    held = None
    if is_single(learner.step, 2):
        held = hold(learner, Lookahead(tuple(affected), "train", tokens), batches)
    total = sum(batches[0].step_tokens)
    learner.update(batches, tuple(1.0 / total for _ in batches[0].tasks))
    return held, None if held is None else look_again(learner, held)


def changes(
    world: World, steps: int = 8, tokens: int = 60, affected: Sequence[int] = range(len(TASKS)), **overrides: Any
) -> list[tuple]:
    """What every lookahead of a few steps found: (trained, before, after, tokens, sentences of each pass here)."""
    learner = learner_of(world, **overrides)
    found = []
    for _ in range(steps):
        held, change = step(learner, tokens, affected)
        if change is not None:
            found.append((change.trained, change.before, change.after, change.tokens, [b.num_sentences for b in held.batches]))
    learner.close()
    return found


def plain_model(learner: Learner) -> Transformer:
    """The model with the learner's weights in fp64, in evaluation mode (one rank, ZeRO-1)."""
    source = learner.engine.module
    model = Transformer(learner.config.model, learner.store.tokenizer.vocabulary_size).double().eval()
    model.load_state_dict({n: p.detach().double() for n, p in copy.copy(source.state_dict()).items()})
    return model


def held_losses(model: Transformer, held: Held) -> list[Tensor]:
    """[A] fp64, each with a graph of its own: summed NLL of each affected task's held sentences."""
    sums = []
    for slot in range(len(held.affected)):
        total = torch.zeros((), dtype=torch.float64)
        for batch in held.batches:
            scales = [float(task == slot) for task in batch.sentence_task.tolist()]
            total = total + model(batch, scales).total
        sums.append(total)
    return sums


def flat_gradient(loss: Tensor, model: Transformer) -> Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in zip(gradients, model.parameters(), strict=True)
        ]
    )
