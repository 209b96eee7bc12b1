"""Trainings that are meant to die: run by ``launch`` in processes of their own."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

from mnmt_scale import dist
from mnmt_scale.engine import checkpoint

from .engine_cases import make_engine, run_steps


def save_twice(run: str, fault: str, settings: dict[str, Any]) -> None:
    """Two steps, a checkpoint, two steps, a checkpoint during which ``fault`` strikes."""
    world = dist.join()
    engine = make_engine(world, settings, dropout=0.1)
    for last in (2, 4):
        run_steps(engine, world, last - 2, last)
        if last == 4:
            os.environ.update(MNMT_TESTING="1", MNMT_FAULT=fault)
        checkpoint.save(Path(run), last, engine, {"next": last}, metric=1.0 / last, config=engine.config.checkpoint)
    engine.close()
    dist.leave()


def full_disk(run: str, rank: int, limit_bytes: int) -> None:
    """A save in which the files of one rank may not grow beyond a limit: the write fails in the middle of the shard."""
    world = dist.join()
    engine = make_engine(world, {})
    run_steps(engine, world, 0, 1)
    checkpoint.save(Path(run), 1, engine, {"next": 1}, config=engine.config.checkpoint)
    if world.rank == rank:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    run_steps(engine, world, 1, 2)
    try:
        checkpoint.save(Path(run), 2, engine, {"next": 2}, config=engine.config.checkpoint)
    except checkpoint.MnmtError as error:
        Path(run, f"error-{world.rank}").write_text(str(error)[: limit_bytes - 1])
    engine.close()
    dist.leave()
