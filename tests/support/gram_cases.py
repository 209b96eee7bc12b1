"""Cases around the gradients of single tasks that a ``RankPool`` runs; what they are held against is in
``gram_truth``."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnmt_scale.data.packing import only
from mnmt_scale.dist import World, gather_objects
from mnmt_scale.engine import gradient_cut
from mnmt_scale.engine.config import TaskGradientsConfig
from mnmt_scale.engine.gradient_cut import GradientCut
from mnmt_scale.engine.state import collect
from mnmt_scale.engine.step_tape import StepTape, TaskSums
from mnmt_scale.engine.task_grads import TaskGradients
from mnmt_scale.engine.zero import ZeroEngine, seed_step
from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import TaskBatch, TaskGram
from mnmt_scale.model.groups import parameter_group
from mnmt_scale.settings import validate

from .engine_cases import MAX_STEPS, engine_config
from .gram_models import model_of
from .gram_truth import scales_of, shared_out
from .tiny_training import token_mean

SEED = 3


def build(world: World, settings: dict[str, Any], how: dict[str, Any], accumulation: int = 1, **model: Any):
    """Engine and its ``TaskGradients``."""
    config = engine_config(**settings)
    engine = ZeroEngine(model_of(**model), config, world=world, max_steps=MAX_STEPS, accumulation=accumulation)
    return engine, task_gradients(engine, how)


def task_gradients(engine: ZeroEngine, how: dict[str, Any]) -> TaskGradients:
    """A ``TaskGradients`` with these settings."""
    config = validate(TaskGradientsConfig, how, "test")
    return TaskGradients(engine, config, seed=SEED, only=only, group_of=parameter_group)


def ordinary(engine: ZeroEngine, mine: Sequence[TaskBatch], scales: Sequence[float], watch: Any = None) -> None:
    """The forward and backward passes of a step, watched or not."""
    for micro, batch in enumerate(mine):
        seed_step(SEED, batch.step, batch.micro, engine.world.rank)
        if watch is None:
            losses = engine.forward(batch, tuple(scales))
        else:
            losses = engine.forward(batch, watch.scales, watch.tape(micro))
        engine.backward(losses, last=micro == len(mine) - 1)


def plain(gram: TaskGram) -> dict[str, Any]:
    """A record as plain data."""
    return {
        "tasks": gram.tasks,
        "groups": gram.groups,
        "gram": gram.gram,
        "losses": gram.losses,
        "tokens": gram.tokens,
        "route": gram.route,
        "over": gram.over,
        "bad": gram.bad,
    }


def observed(
    world: World,
    settings: dict[str, Any],
    hows: Sequence[dict[str, Any]],
    *,
    splits: Sequence[str] = ("even",),
    accumulation: int = 1,
    steps_before: int = 0,
    alpha: Sequence[float] = (1.0, 0.0, 2.5),
    **model: Any,
) -> dict[str, Any]:
    """Some plain steps; then the Gram of a step, without an update, of each of ``hows`` and ``splits``; then the last split's
    step, watched by the last of ``hows`` if it can. Weights before and after its update."""
    engine, first = build(world, settings, hows[0], accumulation, **model)
    for step in range(steps_before):
        mine = shared_out(step, world.size, accumulation, "even")[world.rank]
        ordinary(engine, mine, token_mean(mine[0]))
        engine.step()
    out: dict[str, Any] = {"before": engine.weights(), "measured": [], "watched": [], "facts": []}
    for how in hows:
        gradients = first if how is hows[0] else task_gradients(engine, how)
        out["facts"].append((gradients.route, gradients.reason, gradients.describe(3)))
        for split in splits:
            mine = shared_out(steps_before, world.size, accumulation, split)[world.rank]
            out["measured"].append({"how": how, "split": split, **plain(gradients.measure(mine))})
    if gradients.route == "segmented":
        watch = gradients.watch(mine, scales_of(alpha, mine[0]))
        ordinary(engine, mine, scales_of(alpha, mine[0]), watch)
        out["watched"].append({"how": how, "split": split, **plain(watch.finish())})
        outcome = engine.step()
        out["norm"], out["weights"] = outcome.grad_norm, engine.weights()
    engine.close()
    return out


def disturbed(world: World, settings: dict[str, Any], measure: bool, **model: Any) -> dict[str, Tensor]:
    """Three steps, with or without everything that measures between them; all state of this rank."""
    engine, segmented = build(world, settings, {}, 2, dropout=0.1, **model)
    by_task = task_gradients(engine, {"route": "per_task"})
    for step in range(3):
        mine = shared_out(step, world.size, 2, "even")[world.rank]
        if measure and step != 1:
            segmented.measure(mine)
            by_task.measure(mine)
            by_task.gradient(mine[:1], (1.0, 0.0, 0.5), eval=step == 2)
        ordinary(engine, mine, token_mean(mine[0]))
        engine.step()
    state = {k: t.clone() for k, t in collect(engine).shard.items()}
    engine.close()
    return state


def poisoned(world: World, settings: dict[str, Any], kind: str) -> dict[str, Any]:
    """A step whose task 1 is not finite on the last rank, measured by both routes and watched, then a good one."""
    engine, segmented = build(world, settings, {}, kind="Poisoned")
    by_task = task_gradients(engine, {"route": "per_task"})
    mine = shared_out(0, world.size, 1, "even")[world.rank]
    before = engine.weights()
    engine.module.spoil = (1, kind) if world.rank == world.size - 1 else None
    grams = [segmented.measure(mine), by_task.measure(mine)]
    watch = segmented.watch(mine, token_mean(mine[0]))
    ordinary(engine, mine, token_mean(mine[0]), watch)
    grams.append(watch.finish())
    skipped = [engine.step(tolerate=True).skipped]
    same = all(torch.equal(before[n], w) for n, w in engine.weights().items())
    engine.module.spoil = None
    watch = segmented.watch(mine, token_mean(mine[0]))
    ordinary(engine, mine, token_mean(mine[0]), watch)
    grams.append(watch.finish())
    skipped.append(engine.step().skipped)
    engine.close()
    return {"bad": [g.bad for g in grams], "losses": [g.losses for g in grams], "skipped": skipped, "same": same}


def tolerated(world: World, settings: dict[str, Any]) -> str:
    """Ten bad updates, all tolerated, then one that is not; how many were counted, and the error that ends it."""
    engine, _ = build(world, settings, {}, kind="Poisoned")
    engine.module.spoil = (1, "loss")
    mine = shared_out(0, world.size, 1, "even")[world.rank]
    for _ in range(10):
        ordinary(engine, mine, token_mean(mine[0]))
        engine.step(tolerate=True)
    ordinary(engine, mine, token_mean(mine[0]))
    try:
        engine.step()
    except MnmtError as error:
        return f"{engine.skips_in_row} {error}"
    finally:
        engine.close()
    return "no error"


def refusal(world: World, settings: dict[str, Any], how: dict[str, Any], **model: Any) -> tuple[str, str]:
    """Code and text of the error of these settings."""
    engine, _ = build(world, settings, {"route": "per_task"}, **model)
    try:
        task_gradients(engine, how)
    except MnmtError as error:
        return error.code, str(error)
    finally:
        engine.close()
    return "", ""


def single_gradients(world: World, settings: dict[str, Any], split: str) -> dict[str, Any]:
    """``gradient`` in both modes over two micro-batches, whole on rank 0, and ``inner`` of three."""
    engine, gradients = build(world, settings, {}, dropout=0.1)
    mine = shared_out(0, world.size, 2, split)[world.rank]
    weights = [(0.5, 0.0, 0.25), (0.0, 0.125, 0.0)]
    pieces = [gradients.gradient(mine, scales, eval=True) for scales in weights]
    again = gradients.gradient(mine, weights[0])
    training = engine.module.training
    repeated = gradients.gradient(mine, weights[0])
    parts = gather_objects(
        [{n: (gradients.cut.span(engine.shards.shapes[n].numel()), x) for n, x in g.items()} for g in pieces]
    )
    whole = [{n: torch.cat([part[i][n][1] for part in parts]) for n in pieces[i]} for i in range(2)]
    spans = {n: [part[0][n][0] for part in parts] for n in pieces[0]}
    out = {
        "whole": whole,
        "spans": spans,
        "inner": gradients.inner(pieces),
        "training": training,
        "repeated": all(torch.equal(again[n], repeated[n]) for n in again),
        "dropout": any(not torch.equal(again[n], pieces[0][n]) for n in again if again[n].numel()),
    }
    engine.close()
    return out


def weighted(world: World, settings: dict[str, Any], steps: int, accumulation: int = 1) -> dict[str, Any]:
    """Grams in the metric of Adam, before the first update and after ``steps`` of them, by both routes and watched."""
    engine, segmented = build(world, settings, {"preconditioner": "adam"}, accumulation)
    by_task = task_gradients(engine, {"preconditioner": "adam", "route": "per_task"})
    mine = shared_out(0, world.size, accumulation, "even")[world.rank]
    out: dict[str, Any] = {"fresh": plain(segmented.measure(mine)), "fresh by task": plain(by_task.measure(mine))}
    for step in range(steps):
        mine = shared_out(step, world.size, accumulation, "even")[world.rank]
        ordinary(engine, mine, token_mean(mine[0]))
        engine.step()
    out["before"] = engine.weights()
    mine = shared_out(steps, world.size, accumulation, "even")[world.rank]
    out["segmented"], out["per_task"] = plain(segmented.measure(mine)), plain(by_task.measure(mine))
    watch = segmented.watch(mine, token_mean(mine[0]))
    ordinary(engine, mine, token_mean(mine[0]), watch)
    out["watched"] = plain(watch.finish())
    engine.close()
    return out


def cut_sums(world: World, chunk: int) -> dict[str, Any]:
    """Whether sums in the cut, with buckets of ``chunk`` elements, are what they should be, and the cut itself."""
    cut, kept = GradientCut(world), gradient_cut._CHUNK
    gradient_cut._CHUNK = chunk
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 2, 7, 30]
    every = [torch.randn(2, n, generator=generator) for n in sizes]
    local = [x * (world.rank + 1) for x in every]
    total = [x * sum(range(1, world.size + 1)) for x in every]
    spans = [cut.span(n) for n in sizes]
    right = [x[:, a:b] for x, (a, b) in zip(total, spans, strict=True)]
    borders = [*[0, 0, 11, 30][: world.size], 30]
    a, b = borders[world.rank : world.rank + 2]
    lists = list(cut.all_sums(sizes, [None if i == 1 else x[0] for i, x in enumerate(local)]))
    wanted = [x[0] * (i != 1) for i, x in enumerate(right)]
    narrow = [cut.sums(x.bfloat16()) for x in local]
    sums = [cut.sums(x) for x in local]
    ragged = cut.sums(local[3], borders)
    gradient_cut._CHUNK = kept
    return {
        "sums": all(torch.allclose(x, y) for x, y in zip(sums, right, strict=True)),
        "ragged": torch.allclose(ragged, total[3][:, a:b]),
        "buckets": all(torch.allclose(x, y) for x, y in zip(lists, wanted, strict=True)),
        "narrow": all(torch.allclose(x, y, rtol=0.02, atol=0.05) for x, y in zip(narrow, right, strict=True)),
        "dtype": {str(x.dtype) for x in narrow},
        "spans": spans,
    }


def tapes_alive(world: World, settings: dict[str, Any], accumulation: int) -> list[tuple[int, int]]:
    """Tapes and sums of gradients that live after each of four observations, two of them watched steps."""
    engine, measuring = build(world, settings, {}, accumulation)
    found = []
    for step in range(4):
        mine = shared_out(step, world.size, accumulation, "even")[world.rank]
        if step % 2:
            measuring.measure(mine)
        else:
            watch = measuring.watch(mine, token_mean(mine[0]))
            ordinary(engine, mine, token_mean(mine[0]), watch)
            watch.finish()
            engine.step()
            del watch
        gc.collect()
        kinds = [type(x).__name__ for x in gc.get_objects() if type(x) in (StepTape, TaskSums)]
        found.append((kinds.count("StepTape"), kinds.count("TaskSums")))
    engine.close()
    return found
