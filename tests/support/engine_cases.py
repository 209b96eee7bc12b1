"""Cases that a ``RankPool`` runs: module-level functions of (world, ...), results as plain data."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from mnmt_scale import dist
from mnmt_scale.dist import World
from mnmt_scale.engine import checkpoint
from mnmt_scale.engine.config import EngineConfig
from mnmt_scale.engine.state import collect
from mnmt_scale.engine.zero import ZeroEngine, seed_step
from mnmt_scale.errors import MnmtError
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.settings import validate

from .tiny_training import VOCABULARY, planned, tiny_config, token_mean

MAX_STEPS = 40


def engine_config(**changes: Any) -> EngineConfig:
    """fp32 Adam with a short warm-up; ZeRO-3 partitions even the smallest parameter."""
    table = {
        "dtype": "fp32",
        "schedule": {"name": "inverse_sqrt", "warmup_steps": 4},
        "optimizer": {"learning_rate": 5e-3},
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
    }
    return validate(EngineConfig, {**table, **changes}, "test")


def make_model(seed: int = 7, smoothing: float = 0.1, **changes: Any) -> Transformer:
    """The tiny model with weights that depend on the seed alone; biases are not zero, so that distances relative to a
    tensor's own size mean something for those that hardly move."""
    torch.manual_seed(seed)
    model = Transformer(tiny_config(**changes), VOCABULARY, label_smoothing=smoothing)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
    return model


def make_engine(world: World, settings: dict[str, Any], accumulation: int = 1, **model: Any) -> ZeroEngine:
    """A fresh engine over the tiny model."""
    return ZeroEngine(
        make_model(**model), engine_config(**settings), world=world, max_steps=MAX_STEPS, accumulation=accumulation
    )


def run_steps(engine: ZeroEngine, world: World, first: int, last: int, split: str = "even") -> list[dict[str, float]]:
    """Steps ``first`` to ``last - 1``; per step this rank's loss share, the gradient norm and the learning rate."""
    rows = []
    for step in range(first, last):
        mine = planned(step, world.size, engine.accumulation, split)[world.rank]
        total = 0.0
        for micro, batch in enumerate(mine):
            seed_step(1, step, micro, world.rank)
            losses = engine.forward(batch, token_mean(batch))
            engine.backward(losses, last=micro == len(mine) - 1)
            total += float(losses.total.detach())
        outcome = engine.step()
        rows.append({"loss": total, "norm": outcome.grad_norm, "rate": outcome.learning_rate, "skipped": outcome.skipped})
    return rows


def train(world: World, settings: dict[str, Any], steps: int = 20, split: str = "even", accumulation: int = 1, **model):
    """Trains; returns the rows and, from rank 0, weights and EMA."""
    engine = make_engine(world, settings, accumulation, **model)
    rows = run_steps(engine, world, 0, steps, split)
    weights = engine.weights()
    ema = engine.weights(ema=True) if engine.ema is not None else {}
    kind = type(engine._ds.optimizer).__name__
    engine.close()
    return {"rows": rows, "weights": weights, "ema": ema, "optimizer": kind}


def save_checkpoint(
    world: World, run: str, settings: dict[str, Any], steps: int, metric: float | None = None, **model: Any
) -> dict[str, Any]:
    """Trains from zero and writes a checkpoint after the last step."""
    engine = make_engine(world, settings, **model)
    rows = run_steps(engine, world, 0, steps)
    path = checkpoint.save(
        Path(run), steps, engine, {"next": steps}, metric=metric, config=engine.config.checkpoint, fingerprints={"x": "y"}
    )
    weights = engine.weights()
    engine.close()
    return {"rows": rows, "path": str(path), "weights": weights}


def continue_checkpoint(world: World, run: str, settings: dict[str, Any], last: int, mode: str = "required", **model: Any):
    """Resumes in a fresh engine and trains on to step ``last``; also returns every optimizer tensor of this rank."""
    engine = make_engine(world, settings, **model)
    state = checkpoint.resume(Path(run), engine, mode)
    loaded = engine.weights()
    rows = run_steps(engine, world, state["next"] if state else 0, last)
    weights = engine.weights()
    ema = engine.weights(ema=True) if engine.ema is not None else {}
    shard = {k: t.clone() for k, t in collect(engine).shard.items()}
    engine.close()
    return {"rows": rows, "weights": weights, "loaded": loaded, "ema": ema, "shard": shard, "state": state}


def uninterrupted(world: World, settings: dict[str, Any], steps: int, **model: Any) -> dict[str, Any]:
    """The run that a resumed one must equal."""
    engine = make_engine(world, settings, **model)
    rows = run_steps(engine, world, 0, steps)
    weights = engine.weights()
    ema = engine.weights(ema=True) if engine.ema is not None else {}
    shard = {k: t.clone() for k, t in collect(engine).shard.items()}
    engine.close()
    return {"rows": rows, "weights": weights, "ema": ema, "shard": shard}


def full_state(engine: ZeroEngine) -> dict[str, torch.Tensor]:
    """Weights, averages and optimizer moments as whole tensors on rank 0, whatever the layout."""
    shards = engine.shards
    flats = {"weight": [m.detach() for m in shards.masters]}
    if engine.ema is not None:
        flats["ema"] = engine.ema.averages
    states = shards.optimizer_state()
    for key, value in states[0].items():
        if torch.is_tensor(value) and value.shape == shards.masters[0].shape:
            flats[key] = [s[key] for s in states]
    return {f"{kind}/{n}": t for kind, flat in flats.items() for n, t in shards.gather(flat).items()}


def saved_state(world: World, run: str, settings: dict[str, Any], steps: int, **model: Any) -> dict[str, torch.Tensor]:
    """Trains, saves, returns ``full_state``."""
    engine = make_engine(world, settings, **model)
    run_steps(engine, world, 0, steps)
    checkpoint.save(Path(run), steps, engine, {"next": steps}, config=engine.config.checkpoint)
    state = full_state(engine)
    engine.close()
    return state


def loaded_state(world: World, run: str, settings: dict[str, Any], more: int = 0, **model: Any) -> dict[str, Any]:
    """Loads into a fresh engine, returns ``full_state`` and the losses of ``more`` steps."""
    engine = make_engine(world, settings, **model)
    first = checkpoint.resume(Path(run), engine, "required")["next"]
    state = full_state(engine)
    rows = run_steps(engine, world, first, first + more)
    result = {"state": state, "rows": rows, "steps": engine.steps}
    engine.close()
    return result


def refused(world: World, run: str, settings: dict[str, Any], mode: str = "required", **model: Any) -> tuple[str, str]:
    """(code, text) of the error that resuming raises on this rank."""
    engine = make_engine(world, settings, **model)
    try:
        checkpoint.resume(Path(run), engine, mode)
    except MnmtError as error:
        return error.code, str(error)
    finally:
        engine.close()
    return "", ""


def several_saves(
    world: World, run: str, settings: dict[str, Any], metrics: list[float | None], keep: dict[str, Any]
) -> list[dict[str, torch.Tensor]]:
    """One checkpoint after each step, with these metrics; returns rank 0's weights at each."""
    engine = make_engine(world, {**settings, "checkpoint": keep})
    out = []
    for step, metric in enumerate(metrics):
        run_steps(engine, world, step, step + 1)
        checkpoint.save(Path(run), step + 1, engine, {"next": step + 1}, metric=metric, config=engine.config.checkpoint)
        out.append(engine.weights())
    engine.close()
    return out


def failing_save(world: World, run: str, fault: str, settings: dict[str, Any], times: int = 1) -> dict[str, Any]:
    """A good save at step 1, then ``times`` saves with MNMT_FAULT set, then a good one; what happened to each."""
    engine = make_engine(world, settings)
    happened: list[str] = []

    def attempt(step: int) -> None:
        run_steps(engine, world, step - 1, step)
        try:
            path = checkpoint.save(Path(run), step, engine, {"next": step}, config=engine.config.checkpoint)
            happened.append(path.name if path else "went on")
        except MnmtError as error:
            happened.append(str(error))

    attempt(1)
    os.environ.update(MNMT_TESTING="1", MNMT_FAULT=fault)
    try:
        for i in range(times):
            attempt(2 + i)
    finally:
        del os.environ["MNMT_FAULT"]
    attempt(2 + times)
    engine.close()
    return {"happened": happened, "left": sorted(p.name for p in (Path(run) / "checkpoints").iterdir())}


def not_finite(world: World, settings: dict[str, Any], fault: str, steps: int) -> dict[str, Any]:
    """Trains with MNMT_FAULT; per step whether the update was left out and whether anything of the state moved."""
    engine = make_engine(world, settings)
    os.environ.update(MNMT_TESTING="1", MNMT_FAULT=fault)
    rows, error = [], None
    try:
        for step in range(steps):
            before = {k: t.clone() for k, t in collect(engine).shard.items()}
            try:
                row = run_steps(engine, world, step, step + 1)[0]
            except MnmtError as problem:
                error, row = str(problem), {"skipped": True}
            after = collect(engine).shard
            same = all(torch.equal(before[k], after[k]) for k in before)
            rows.append((row["skipped"], not same))
            if error:
                break
    finally:
        del os.environ["MNMT_FAULT"]
    engine.close()
    return {"rows": rows, "error": error, "weights": engine_weights_finite(after)}


def engine_weights_finite(shard: dict[str, torch.Tensor]) -> bool:
    """Whether every number of a shard is finite."""
    return all(bool(torch.isfinite(t).all()) for t in shard.values())


def bad_gradient(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    """The loss stays finite, but at step 1 the backward pass of rank 1 makes an infinite gradient."""
    model = make_model()
    step = 0

    def spoil(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if step == 1 and world.rank == 1 and output.requires_grad:
            output.register_hook(lambda g: g * float("inf"))

    model.encoder.register_forward_hook(spoil)
    engine = ZeroEngine(model, engine_config(**settings), world=world, max_steps=MAX_STEPS, accumulation=1)
    outcomes = []
    for step in range(3):
        batch = planned(step, world.size, 1)[world.rank][0]
        engine.backward(engine.forward(batch, token_mean(batch)), last=True)
        outcome = engine.step()
        outcomes.append((outcome.skipped, outcome.bad_ranks))
    engine.close()
    return {"outcomes": outcomes}


def evaluations_between(world: World, settings: dict[str, Any], steps: int, evaluate: bool) -> dict[str, Any]:
    """Trains with or without an evaluation after every step; also the last evaluation's loss on a fixed batch."""
    engine = make_engine(world, settings, dropout=0.1)
    batch = planned(100, world.size, 1)[world.rank][0]
    loss, direct = None, None
    for step in range(steps):
        run_steps(engine, world, step, step + 1)
        if evaluate:
            engine.evaluate_begin()
            with torch.no_grad():
                loss = engine.forward(batch, token_mean(batch)).nlls
                direct = engine.module(batch, token_mean(batch))  # the module itself gives the same record
            assert torch.equal(direct.nlls, loss)
            engine.evaluate_end()
            assert engine.module.training
    result = {"weights": engine.weights(), "loss": loss, "ema": engine.weights(ema=True) if engine.ema else {}}
    engine.close()
    return result


def what_is_printed(world: World, settings: dict[str, Any], path: str) -> str:
    """Everything on the file descriptors of standard output and error from building an engine to closing it."""
    name = f"{path}.{world.rank}"
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    kept = [os.dup(1), os.dup(2)]
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        train(world, settings, steps=2)
        sys.stdout.flush()
    finally:
        for descriptor, old in zip((1, 2), kept, strict=True):
            os.dup2(old, descriptor)
            os.close(old)
        os.close(target)
    return Path(name).read_text()


def two_engines(world: World, stages: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
    """Two models trained in turn in one process; their weights, each as if it had been alone."""
    engines = [make_engine(world, {"zero_stage": stage}, seed=seed) for seed, stage in enumerate(stages)]
    for step in range(4):
        for engine in engines:
            run_steps(engine, world, step, step + 1)
    out = [engine.weights() for engine in engines]
    for engine in engines:
        engine.close()
    return out


def collectives(world: World) -> dict[str, Any]:
    """One of each of dist's collectives."""
    total = dist.all_sum(torch.tensor([1.0 + world.rank, 10.0], dtype=torch.float64))
    dist.barrier()
    return {
        "sum": total.tolist(),
        "any": (dist.any_rank(world.rank == world.size - 1), dist.any_rank(False)),
        "first": dist.broadcast_object({"rank": world.rank}),
        "all": dist.gather_objects((world.rank, "x" * world.rank)),
    }
