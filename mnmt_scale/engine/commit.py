"""The commit protocol of a checkpoint: all files of all ranks, or nothing.

Every rank writes into ``step-N.tmp-<nonce>/``, syncs and hashes; the records are gathered, and if any rank failed, all give
up and the directory is deleted. Else rank 0 writes ``manifest.json`` and renames the directory: from that instant it
counts. No rank waits at a barrier that a failed one never reaches: errors travel in the gather.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import dist
from ..errors import MnmtError
from .faults import fault
from .files import FileRecord, sync_directory, write_tensors, write_text
from .manifest import directory_name, manifest_text
from .state import Contents


def commit(
    root: Path,
    step: int,
    contents: Contents,
    state: dict[str, Any],
    rank: int,
    size: int,
    about: dict[str, Any],
) -> Path:
    """Writes and publishes one checkpoint; collective over ``size`` ranks. Returns its directory.

    Raises:
        MnmtError: on all ranks, E401 when the directory cannot be written, E406 when a rank could not write or publish.
    """
    fault("save.begin", rank=rank, step=step)
    needed = dist.gather_objects(contents.bytes)
    aside = on_first_rank(lambda: _prepare(root, step, sum(needed)), root)
    records, error = [], None
    try:
        records = _write_own(aside, contents, state, rank, size)
        fault("save.after_shard", rank=rank, step=step)
    except OSError as problem:
        error = f"rank {rank} could not write: {problem.strerror or problem}"
    answers = dist.gather_objects((records, error))
    errors = [e for _, e in answers if e]
    if errors:
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        dist.barrier()
        raise MnmtError("E406", errors[0], where=str(aside), remedy="free space there; the earlier checkpoints are whole")
    files = [f for own, _ in answers for f in own]
    final = root / directory_name(step)
    on_first_rank(lambda: _publish(aside, final, manifest_text(step, files, **about)), root)
    return final


def _prepare(root: Path, step: int, needed_bytes: int) -> Path:
    """Proves that files can be made, synced, renamed and read here, and makes the aside directory."""
    nonce = secrets.token_hex(4)
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe-{nonce}"
        write_text(root, probe.name, nonce)
        os.replace(probe, root / f".probed-{nonce}")
        intact = (root / f".probed-{nonce}").read_text() == nonce
        (root / f".probed-{nonce}").unlink()
        free = shutil.disk_usage(root).free
        aside = root / f"{directory_name(step)}.tmp-{nonce}"
        aside.mkdir()
    except OSError as error:
        raise MnmtError("E401", f"cannot write checkpoints: {error.strerror}", where=str(root)) from None
    if not intact:
        raise MnmtError("E401", "what is written does not come back when read", where=str(root))
    if free < needed_bytes * 1.02:
        aside.rmdir()
        what = f"a checkpoint needs {needed_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
        raise MnmtError("E406", what, where=str(root), remedy="free space, or lower engine.checkpoint.keep_last")
    return aside


def _write_own(aside: Path, contents: Contents, state: dict[str, Any], rank: int, size: int) -> list[FileRecord]:
    fault("save.write_shard", rank=rank)
    records = []
    if contents.shard:
        name = f"shard-{rank:05d}-of-{size:05d}.safetensors"
        records.append(write_tensors(aside, name, contents.shard, contents.shard_metadata, rank=rank))
    if rank == 0:
        records.append(write_tensors(aside, "weights.safetensors", contents.weights, {"format": "pt"}))
        if contents.ema is not None:
            records.append(write_tensors(aside, "ema.safetensors", contents.ema, {"format": "pt"}))
        text = json.dumps({"engine": contents.engine, "caller": state}, allow_nan=False)
        records.append(write_text(aside, "state.json", text + "\n"))
    return records


def _publish(aside: Path, final: Path, manifest: str) -> None:
    try:
        fault("save.before_manifest", rank=0)
        write_text(aside, "manifest.json", manifest)
        sync_directory(aside)
        fault("save.before_rename", rank=0)
        if final.exists():  # the same step saved twice: the new one takes the old one's place
            os.replace(final, final.with_name(f"{final.name}.tmp-replaced-{secrets.token_hex(4)}"))
        os.replace(aside, final)
        sync_directory(final.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise MnmtError("E406", f"could not publish a checkpoint: {error.strerror}", where=str(final)) from None
    fault("save.after_rename", rank=0)


def on_first_rank(act: Callable[[], Any], where: Path) -> Any:
    """What ``act`` returns on rank 0, on all ranks; what it raises there, on all ranks."""
    outcome: Any = None
    if not grouped() or torch.distributed.get_rank() == 0:
        try:
            outcome = act()
        except MnmtError as error:
            outcome = error
        except OSError as error:
            outcome = MnmtError("E401", f"{error.strerror or error}", where=str(where))
    outcome = dist.broadcast_object(outcome)
    if isinstance(outcome, MnmtError):
        raise outcome
    return outcome


def grouped() -> bool:
    """Whether there is more than one rank."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
