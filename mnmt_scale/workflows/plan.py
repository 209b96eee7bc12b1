"""Which trainings a comparison is made of, what each is called, and how far each is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import settings
from ..engine.manifest import newest_unchecked
from ..errors import MnmtError, nearest
from ..methods.spec import label
from ..runlog import TRAINING_MARK
from ..train.config import RunConfig


@dataclass(frozen=True)
class Entry:
    """One settings file of a comparison: a row of its table.

    Attributes:
        name: of the file, without ``.toml``; where task weights are those of an earlier step, that is said in the name.
        label: what decides the weights of the tasks, with the sampling.
        config: the settings, ``--set`` included.
    """

    name: str
    label: str
    path: Path
    config: RunConfig


@dataclass(frozen=True)
class Job:
    """One training and its evaluation."""

    entry: Entry
    seed: int
    run: Path
    log: Path

    @property
    def name(self) -> str:
        """For people: ``cats-t1 seed 2``."""
        return f"{self.entry.name} seed {self.seed}"


def read_entries(configs: Sequence[Path], overrides: Sequence[str] = ()) -> list[Entry]:
    """The settings of a comparison, which must be comparable.

    Raises:
        MnmtError: E101 to E104 bad settings, two files of one name, or a seed among the overrides; E603 other data,
            directions or decoding in one than in the first.
    """
    for text in overrides:
        if "seed" in settings.parse_override(text).get("train", {}):
            raise MnmtError("E104", "the seeds of a comparison are given by --seeds", where=f"--set {text}")
    entries: list[Entry] = []
    for path in configs:
        config = settings.load(RunConfig, path, overrides)
        lagged = _lagged(config)
        entry = Entry(path.stem + (" (lagged)" if lagged else ""), describe(config), path, config)
        if any(entry.path.stem == other.path.stem for other in entries):
            raise MnmtError("E104", f"two settings files are called {path.stem!r}", where=str(path), remedy="rename one")
        if entries:
            _check_comparable(entries[0], entry)
        entries.append(entry)
    assert entries
    return entries


def choose_baseline(entries: Sequence[Entry], name: str | None) -> Entry:
    """The entry called ``name``; None: the first that weights nothing (``joint``), else the first.

    Raises:
        MnmtError: E102 for an unknown name.
    """
    if name is None:
        return next((e for e in entries if e.config.method.name == "joint"), entries[0])
    for entry in entries:
        if name in (entry.name, entry.path.stem):
            return entry
    remedy = nearest(name, [e.name for e in entries])
    raise MnmtError("E102", f"no settings file called {name!r} is compared", where="--baseline", remedy=remedy)


def make_plan(entries: Sequence[Entry], seeds: Sequence[int], out: Path) -> list[Job]:
    """Every entry with every seed, seed by seed, so that an interrupted comparison has whole seeds; runs are
    OUT/NAME/seed-S with the log beside them."""
    jobs = []
    for seed in seeds:
        for entry in entries:
            folder = out / entry.name.replace(" (lagged)", "-lagged")
            jobs.append(Job(entry, seed, folder / f"seed-{seed}", folder / f"seed-{seed}.log"))
    return jobs


def command(job: Job, overrides: Sequence[str]) -> list[str]:
    """The training of a job, as words after ``mnmt``."""
    sets = [word for text in (*overrides, f"train.seed={job.seed}") for word in ("--set", text)]
    return ["train", str(job.entry.path), *sets, "--run-dir", str(job.run), "--resume", "auto", "--json"]


def is_trained(job: Job) -> bool:
    """Whether the training came to its end: its last step, or whatever else its settings end it with.

    Raises:
        MnmtError: E603 when the run that lies there has other settings.
    """
    check_same_settings(job)
    mark = read_json(job.run / TRAINING_MARK)
    if mark is not None and mark.get("stopped") in ("steps", "patience", "minutes"):
        return True
    newest = newest_unchecked(job.run / "checkpoints")
    return newest is not None and newest.step >= job.entry.config.train.max_steps


def is_evaluated(job: Job, split: str, limit: int | None) -> bool:
    """Whether all directions were evaluated on the split, or on its first ``limit`` lines where that is asked, with the
    last weights of the training and decoded as the settings say."""
    found = read_json(job.run / "eval" / f"{split}.json")
    newest = newest_unchecked(job.run / "checkpoints")
    if found is None:
        return False
    evaluation = job.entry.config.evaluation
    asked = {
        "limit": limit,
        "only": None,
        "decoding": evaluation.model_dump(mode="json"),
        "weights": evaluation.weights,
        "trained_steps": None if newest is None else newest.step,
    }
    return all(found.get(key) == value for key, value in asked.items())


def check_same_settings(job: Job) -> None:
    """E603, naming the first difference, when a run of other settings lies in the job's directory."""
    path = job.run / "config.toml"
    if not path.is_file():
        return
    had = _flat(settings.load(RunConfig, path).model_dump(mode="json"))
    config = job.entry.config
    asked = config.model_copy(update={"train": config.train.model_copy(update={"seed": job.seed})})
    want = _flat(asked.model_dump(mode="json"))
    for key in sorted(had.keys() | want.keys()):
        # a run keeps the directions that it found, where the settings leave them open
        if key != "data.tasks" and had.get(key) != want.get(key):
            raise MnmtError(
                "E603",
                f"the run has {key} = {had.get(key)!r}, this comparison {want.get(key)!r}",
                where=str(job.run),
                remedy="give another --out, or remove that run",
            )


def describe(config: RunConfig) -> str:
    """What decides how the tasks count: ``joint, T = 1``; ``UPGrad (lagged), T = 5``."""
    sampling = config.sampling
    how = f"T = {sampling.temperature:g}" if sampling.kind == "temperature" else f"{sampling.kind} sampling"
    return f"{label(config.method)}, {how}"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _lagged(config: RunConfig) -> bool:
    return config.method.name == "gramian" and config.method.gramian.weights == "lagged"


def _check_comparable(first: Entry, other: Entry) -> None:
    for section in ("data", "evaluation"):
        a, b = (_flat(getattr(e.config, section).model_dump(mode="json"), section) for e in (first, other))
        for key in sorted(a.keys() | b.keys()):
            if a.get(key) != b.get(key):
                what = f"{other.name} has {key} = {b.get(key)!r} and {first.name} {a.get(key)!r}"
                raise MnmtError("E603", what, where=str(other.path), remedy="compare on the same data and decoding")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            out |= _flat(value, name)
        else:
            out[name] = value
    return out
