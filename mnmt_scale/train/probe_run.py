"""``mnmt probe``: a probe of a run's weights, or of the fresh weights of a settings file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import dist, settings
from ..data.store import TokenStore
from ..engine.checkpoint import load_weights
from ..engine.commit import on_first_rank
from ..engine.manifest import committed, partial_remedy, ranked_by_metric
from ..errors import MnmtError, nearest
from ..probes import probe_path, write_probe
from ..runs import load_tokenizer, run_table
from ..settings import user_path
from .config import RunConfig
from .learner import Learner
from .probe import Kind, ProbeResult, measure
from .train import resolve_tasks


def probe(
    kind: Kind,
    source: Path,
    overrides: Sequence[str] = (),
    *,
    weights: str = "best",
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ProbeResult:
    """Measures a run's weights, or fresh ones of a settings file, in this process, which is one rank of however many the
    launcher started. Any ZeRO stage and number of ranks will do, whatever the run was trained with.

    Args:
        source: run directory or settings file.
        overrides: ``section.key=value`` over its settings.
        weights: ``best``, ``last`` or ``step-N`` of a run.
        out: the file; default RUN/probes/KIND-step-NNNNNN.safetensors, where RUN of a settings file is runs/NAME.
        say: told a line per direction (rank 0).

    Raises:
        MnmtError: among others E103 and E407 for ``source``, E303 no store, E306 a store of another tokenizer, E403 no such
            weights, E405 weights that do not fit, and what ``probe_training`` raises.
    """
    world = dist.join()
    said = say if world.rank == 0 else lambda line: None
    is_run = source.is_dir()
    config = _settings(source, overrides, is_run)
    found = on_first_rank(lambda: _checkpoint(source, weights), source) if is_run else None
    store = TokenStore.open(user_path(config.data.store))
    if is_run and load_tokenizer(source).fingerprint != store.fingerprint:
        raise MnmtError("E306", "the token store has another tokenizer than the run", where=str(store.path))
    learner = Learner.build(config, store, resolve_tasks(config, store), world)
    try:
        tokens = 0
        if found is not None:
            learner.step, tokens = int(found.name.removeprefix("step-")), _tokens(found)
            _put_weights(learner, source, found.name)
        per_direction = f", {config.probe.sentences} sentences of {config.probe.split} per direction"
        said(f"{kind} at step {learner.step}{'' if kind == 'vectors' else per_direction}")
        about, tensors, summary = measure(learner, learner.task_gradients, kind, said)
        about |= {"run": config.name, "tokens": tokens}
        run = source if is_run else Path("runs") / config.name
        path = out if out is not None else probe_path(run, kind, learner.step)
        on_first_rank(lambda: write_probe(path, about, tensors), path)
        return ProbeResult(path, about, summary, world.rank)
    finally:
        learner.close()


def _settings(source: Path, overrides: Sequence[str], is_run: bool) -> RunConfig:
    """The settings to measure with. A probe takes gradients one direction at a time and asks nothing of Adam."""
    if is_run:
        run_table(source)  # E407 where it is none
    config = settings.load(RunConfig, source / "config.toml" if is_run else source, overrides)
    how = config.engine.task_gradients
    if how.route != "off":
        how = how.model_copy(update={"route": "per_task", "preconditioner": "none"})
    changes: dict[str, Any] = {"engine": config.engine.model_copy(update={"task_gradients": how})}
    if is_run:  # its own weights are put in
        changes["train"] = config.train.model_copy(update={"init_from": None})
    return config.model_copy(update=changes)


def _checkpoint(run: Path, which: str) -> Path:
    """Directory of the checkpoint to measure; E403 when there is none."""
    root = run / "checkpoints"
    directories = committed(root)
    if not directories:
        raise MnmtError("E403", "no checkpoint here", where=str(root), remedy=partial_remedy(root))
    if which == "last":
        return directories[-1]
    if which == "best":
        return (ranked_by_metric(directories) or directories[-1:])[0]
    number = which.removeprefix("step-")
    for directory in directories:
        if which.startswith("step-") and number.isdecimal() and int(directory.name.removeprefix("step-")) == int(number):
            return directory
    names = ["best", "last", *(d.name for d in directories)]
    raise MnmtError(
        "E403",
        f"no weights {which!r} to measure",
        where=str(root),
        remedy=nearest(which, names) or f"there are {', '.join(names)}",
    )


def _tokens(checkpoint: Path) -> int:
    """Target tokens trained until then; 0 for imported weights."""
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        return int(state["caller"]["progress"]["tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


@torch.no_grad()
def _put_weights(learner: Learner, run: Path, name: str) -> None:
    """The weights of a checkpoint into the engine; gradients and Hessian need no more of it. Collective, and what one rank
    cannot read all refuse."""
    shards, state, problem = learner.engine.shards, {}, None
    try:
        state = load_weights(run, name)
        for weight in sorted(shards.shapes.keys() | state.keys()):
            have = tuple(state[weight].shape) if weight in state else "missing"
            want = tuple(shards.shapes[weight]) if weight in shards.shapes else "unknown"
            if have != want:
                what = f"weight {weight} is {have} in the checkpoint and {want} in the settings"
                raise MnmtError("E405", what, where=f"{run} ({name})")
    except MnmtError as error:
        problem = error
    for complaint in dist.gather_objects(problem):
        if complaint is not None:
            raise complaint
    shards.set_from_full(state)
    shards.refresh()
