"""``mnmt probe affinity``: a training that measures affinity, from its beginning or from where a run stands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import dist, settings
from ..engine.commit import on_first_rank
from ..engine.manifest import newest_unchecked, partial_remedy
from ..errors import MnmtError
from ..methods.affinity.probe import pooled
from ..probes import read_probe
from ..runlog import write_atomically
from ..runs import run_table
from .config import Resume, RunConfig
from .train import TrainResult, train

STEPS = 1000
"""Updates that are measured on from a run, where nothing else is said."""
_STRONGEST = 5


@dataclass(frozen=True)
class AffinityResult:
    """What was measured.

    Attributes:
        path: of the probe file; None when a signal stopped the training before there was one.
        about: its metadata.
        summary: of the table, see ``summarise``.
        trained: how the training ended.
    """

    path: Path | None
    about: dict[str, Any]
    summary: dict[str, Any]
    trained: TrainResult


def probe_affinity(
    source: Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | None = None,
    steps: int | None = None,
    resume: Resume = "auto",
) -> AffinityResult:
    """Trains with single-direction steps in between, in this process, which is one rank of however many there are.

    A settings file: the universal training itself, probing from its first step, in ``run_dir`` (default runs/NAME). A run:
    goes on from its newest checkpoint (weights, moments, place in the data) for ``steps`` updates in a run directory of its
    own, RUN/probes/affinity-run; the run itself stays as it is, and the probe file lands in RUN/probes. Either can be
    stopped and goes on when it is asked for again.

    Raises:
        MnmtError: E104 for another method than joint or affinity, or ``steps`` and ``run_dir`` where they mean nothing; E403
            a run without a checkpoint; E405 with ``auto`` for a run that went on since measuring began; what ``train`` raises.
    """
    dist.join()
    if source.is_dir():
        return _beside(source, overrides, run_dir, STEPS if steps is None else steps, resume)
    if steps is not None:
        raise MnmtError("E104", "--steps is for a run", where=str(source), remedy="use --set train.max_steps=N")
    config = _probing(source, overrides)
    run = run_dir or Path("runs") / config.name
    trained = train(config, run, resume)
    return _result(run, trained)


def summarise(tensors: dict[str, torch.Tensor], names: Sequence[str]) -> dict[str, Any]:
    """Of the table over all windows: the smallest and the largest count of a cell, means on and off the diagonal, how many
    cells off the diagonal lie beyond their standard error, and the strongest of these: [trained, affected, mean, standard
    error]."""
    count, mean, error = pooled(tensors)
    own = torch.eye(len(names), dtype=torch.bool)
    measured = ~own & (count > 0)
    sure = measured & (mean.abs() > error)
    order = torch.where(sure, mean, -torch.inf).flatten().argsort(descending=True)[: min(_STRONGEST, int(sure.sum()))]
    cells = [divmod(int(cell), len(names)) for cell in order]
    return {
        "counts": [int(count.min()), int(count.max())],
        "mean_on_itself": _mean(mean[own & (count > 0)]),
        "mean_on_others": _mean(mean[measured]),
        "cells_on_others": int(measured.sum()),
        "beyond_standard_error": int(sure.sum()),
        "strongest": [[names[j], names[i], float(mean[j, i]), float(error[j, i])] for j, i in cells],
    }


def _mean(values: torch.Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _beside(source: Path, overrides: Sequence[str], run_dir: Path | None, steps: int, resume: Resume) -> AffinityResult:
    """On from a run, in its own directory beside the run's probes."""
    if run_dir is not None:
        raise MnmtError("E104", "--run-dir is for a settings file", where=str(source), remedy="leave it out")
    run_table(source)  # E407 where it is none
    run = source / "probes" / "affinity-run"
    begin = on_first_rank(lambda: _begin(source, run, resume), source)
    own = [
        f"train.max_steps={begin + steps}",
        "train.patience=0",
        f"method.affinity.window_steps={max(1, steps // 10)}",
    ]
    config = _probing(source / "config.toml", [*own, *overrides])
    changes: dict[str, Any] = {"init_from": None}
    if not any(text.startswith("train.max_minutes") for text in overrides):  # the limit was the run's
        changes["max_minutes"] = None
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    trained = train(config, run, resume, begin_from=source)
    found = _result(run, trained)
    if found.path is None or trained.stopped == "signal":  # what is there so far stays where it goes on
        return found
    path = source / "probes" / found.path.name
    on_first_rank(lambda: shutil.copyfile(found.path, path), path)
    return AffinityResult(path, found.about, found.summary, trained)


def _begin(source: Path, run: Path, resume: Resume) -> int:
    """The step that the measuring began at, or begins at now; kept beside its checkpoints, since the run may move on."""
    note, newest = run / "begun.json", newest_unchecked(source / "checkpoints")
    if resume != "never" and newest_unchecked(run / "checkpoints") is not None and note.is_file():
        step = int(json.loads(note.read_text(encoding="utf-8"))["step"])
        if resume == "auto" and newest is not None and newest.step != step:
            what = f"affinity was measured from step {step} on, and the run stands at step {newest.step} now"
            remedy = "--resume never to measure from where it stands, --resume required to go on with the old measuring"
            raise MnmtError("E405", what, where=str(run), remedy=remedy)
        return step
    if newest is None:
        root = source / "checkpoints"
        raise MnmtError("E403", "no checkpoint here", where=str(root), remedy=partial_remedy(root))
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps({"run": source.name, "step": newest.step}) + "\n")
    return newest.step


def _probing(path: Path, overrides: Sequence[str]) -> RunConfig:
    """The settings with method ``affinity``, which trains as ``joint`` does."""
    name = settings.load(RunConfig, path, overrides).method.name
    if name not in ("joint", "affinity"):
        raise MnmtError(
            "E104",
            f"affinity is measured in a training with method joint or affinity, not {name}",
            where=str(path),
            remedy="set method.name to 'affinity'",
        )
    return settings.load(RunConfig, path, [*overrides, "method.name=affinity"])


def _result(run: Path, trained: TrainResult) -> AffinityResult:
    """The newest probe file of a run that has ended or was stopped."""

    def newest() -> Path | None:
        found = (run / "probes").glob("affinity-step-*.safetensors")
        return max(found, key=lambda path: int(path.stem.rpartition("-")[2]), default=None)

    path = on_first_rank(newest, run)
    if path is None or trained.rank != 0:
        return AffinityResult(path, {}, {}, trained)
    file = read_probe(path, "affinity")
    return AffinityResult(path, file.about, summarise(file.tensors, file.about["tasks"]), trained)
