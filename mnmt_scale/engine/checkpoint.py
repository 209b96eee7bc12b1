"""Checkpoints that survive a crash at any moment.

A save goes: probe the directory; every rank writes its shard into ``step-N.tmp-<nonce>/``, syncs and hashes it; the
records are gathered, and if any rank failed, all give up and the directory is deleted; rank 0 writes ``manifest.json``
and renames the directory to ``step-N``: from this instant it counts. Only then are the pointers ``latest`` and ``best``
replaced and older checkpoints deleted.

    step-N/manifest.json             hashes, sizes, stage, ranks, dtype, fingerprints, versions
           weights.safetensors       full fp32 weights, names of ``Transformer.state_dict``
           ema.safetensors           the moving average, where one is kept
           state.json                what the caller handed over, and the engine's counters
           shard-00000-of-00002.safetensors   fp32 masters, optimizer moments and EMA of one rank, as named fragments

The shards are ours and not DeepSpeed's files: those are pickles that DeepSpeed unpickles without restriction, its save
waits at a barrier for a rank that failed, and it cannot read ZeRO-1 or 2 state at ZeRO-3. Nothing here is a pickle.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .. import dist
from ..errors import MnmtError
from . import state as engine_state
from .commit import commit, grouped, on_first_rank
from .config import CheckpointConfig
from .faults import fault
from .files import replace_text
from .manifest import (
    CheckpointInfo,
    check_file,
    committed,
    newest_unchecked,
    partial,
    partial_remedy,
    ranked_by_metric,
)
from .weights import load_weights

__all__ = ["CheckpointInfo", "find", "load", "load_weights", "newest", "resume", "save", "write_weights"]

log = logging.getLogger(__name__)

Resume = Literal["auto", "required", "never"]
_FAILURES_ALLOWED = 3


def save(
    run: Path,
    step: int,
    engine: Any,
    state: dict[str, Any],
    *,
    metric: float | None = None,
    config: CheckpointConfig,
    fingerprints: dict[str, Any] | None = None,
) -> Path | None:
    """Writes a checkpoint. All ranks call it with the same arguments (of ``state`` rank 0's counts).

    Args:
        step: updates done.
        state: JSON of everything beside weights and optimizer that a resumed run needs.
        metric: validation loss of these weights, for ``best``.
        fingerprints: written into the manifest (tokenizer, tasks, ...).

    Returns:
        The directory; None when the save failed and ``config.on_save_error`` is ``continue``.

    Raises:
        MnmtError: E401 or E406, on all ranks, when it failed and the policy is ``stop``, or it failed more than three
            times in a row. The earlier checkpoints are untouched.
    """
    root = run / "checkpoints"
    contents = engine_state.collect(engine)
    about = {
        "metric": metric,
        "world_size": engine.world.size,
        "zero_stage": engine.config.zero_stage,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "fingerprints": fingerprints or {},
    }
    try:
        path = commit(root, step, contents, state, engine.world.rank, engine.world.size, about)
    except MnmtError as error:
        engine.failed_saves += 1
        if config.on_save_error == "stop" or engine.failed_saves > _FAILURES_ALLOWED:
            raise
        if engine.world.rank == 0:
            log.warning("%s; going on with the previous checkpoint", error)
        return None
    engine.failed_saves = 0
    on_first_rank(lambda: _aftercommit(root, path, metric, config), root)
    return path


def write_weights(run: Path, weights: dict[str, Tensor], *, fingerprints: dict[str, Any] | None = None) -> Path:
    """A checkpoint of weights alone (an imported model) as step 0 of ``run``; one process.

    Raises:
        MnmtError: E401 or E406 as for ``save``.
    """
    root = run / "checkpoints"
    contents = engine_state.Contents({}, {}, None, weights, {})
    about = {"metric": None, "world_size": 0, "zero_stage": 0, "dtype": "float32", "fingerprints": fingerprints or {}}
    path = commit(root, 0, contents, {}, 0, 1, about)
    on_first_rank(lambda: replace_text(root / "latest", path.name + "\n"), root)
    return path


def find(run: Path, mode: Resume) -> CheckpointInfo | None:
    """The checkpoint to go on from, its files verified by all ranks together. Collective.

    ``auto``: the newest one, None when there is none. ``required``: E403 when there is none. ``never``: None; checkpoints
    that lie there are moved aside, so that they are not taken for the new training's.

    Raises:
        MnmtError: E403; E404 when a file of the newest checkpoint is missing, truncated or altered.
    """
    root = run / "checkpoints"
    info = on_first_rank(lambda: _look(root, mode), root)
    if info is not None:
        _verify_together(info)
    return info


def newest(run: Path) -> CheckpointInfo | None:
    """The newest checkpoint with every file verified, in this process alone; None when there is none."""
    info = newest_unchecked(run / "checkpoints")
    if info is not None:
        for record in info.files:
            check_file(info.path, record)
    return info


def load(found: CheckpointInfo, engine: Any) -> dict[str, Any]:
    """Puts a verified checkpoint into the engine; returns what the caller had handed to ``save``. Collective.

    Weights, moments and EMA come back bit for bit on the same stage and number of ranks; another stage, dtype or number of
    ranks is converted.

    Raises:
        MnmtError: E405 when it holds another model or optimizer, or weights alone.
    """
    state = _read_json(found.path / "state.json")
    if not state["engine"]:
        raise MnmtError(
            "E405",
            "this checkpoint holds weights alone, no training state",
            where=str(found.path),
            remedy="name the run in train.init_from and train in another --run-dir",
        )
    names = [f.name for f in found.files if f.name.startswith("shard-")]
    engine_state.restore(engine, found.path, names, state["engine"])
    was = (found.manifest["zero_stage"], found.manifest["world_size"], found.manifest["dtype"])
    now = (engine.config.zero_stage, engine.world.size, str(engine.dtype).removeprefix("torch."))
    if was != now and engine.world.rank == 0:
        text = "ZeRO-%s on %s rank(s) in %s"
        log.warning(f"{found.path.name} was written by {text} and is now converted to {text}", *was, *now)
    return state["caller"]


def resume(run: Path, engine: Any, mode: Resume) -> dict[str, Any] | None:
    """``find`` and ``load`` in one; None when training starts from zero."""
    found = find(run, mode)
    return None if found is None else load(found, engine)


def _aftercommit(root: Path, path: Path, metric: float | None, config: CheckpointConfig) -> None:
    """Pointers, then retention; what goes wrong here is a warning, since the checkpoint itself is safe."""
    try:
        replace_text(root / "latest", path.name + "\n")
        ranked = ranked_by_metric(committed(root))
        if metric is not None and ranked:
            replace_text(root / "best", ranked[0].name + "\n")
        fault("save.after_pointer", rank=0)
        keep = {*committed(root)[-config.keep_last :], *ranked[: config.keep_best], path}
        replaced = [p for p in root.iterdir() if ".tmp-replaced-" in p.name and p.name.startswith(path.name)]
        for old in [d for d in committed(root) if d not in keep] + replaced:
            gone = old.with_name(f"{old.name}.tmp-deleting") if old not in replaced else old
            os.replace(old, gone)  # a deletion that is cut short must not look like a checkpoint
            shutil.rmtree(gone)
    except OSError as error:
        log.warning("after the checkpoint %s: %s", path, error)


def _look(root: Path, mode: Resume) -> CheckpointInfo | None:
    if mode == "never":
        if committed(root):
            aside = root.with_name(f"checkpoints.before-{secrets.token_hex(4)}")
            os.replace(root, aside)
            log.warning("--resume never: the checkpoints that lay here are now in %s", aside)
        return None
    info = newest_unchecked(root)
    if info is None and mode == "required":
        raise MnmtError("E403", "no checkpoint to resume from", where=str(root), remedy=partial_remedy(root))
    if info is None and partial(root):
        log.warning("starting from zero; incomplete and not used: %s", ", ".join(partial(root)))
    return info


def _verify_together(info: CheckpointInfo) -> None:
    """Each rank hashes its part of the files; the first complaint is raised on all."""
    rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if grouped() else (0, 1)
    complaint = None
    try:
        for record in info.files[rank::size]:
            check_file(info.path, record)
    except MnmtError as error:
        complaint = error
    for error in dist.gather_objects(complaint):
        if error is not None:
            raise error


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
