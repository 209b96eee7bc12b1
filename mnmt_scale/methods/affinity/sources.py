"""What a clustering is made from: affinity pooled over windows and runs, language vectors, lists of directions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ... import settings
from ...data.config import DataConfig
from ...data.store import TokenStore
from ...errors import MnmtError
from ...groups import GroupsFile, read_groups
from ...probes import ProbeFile, read_probe
from ...runs import run_table
from ...tasks import TaskSet, directions_of
from .fuzzy import some

Statistic = Literal["mean", "sum"]


@dataclass(frozen=True)
class Affinity:
    """Affinity of N directions, in order of their names; row = trained task j, column = affected task i.

    Attributes:
        cells, error: [N, N] affinity and its standard error (NaN below two measurements).
        counts: [N, N] measurements of each cell.
        about: quantity, split, windows that were used, runs, as the groups file keeps them.
    """

    tasks: tuple[str, ...]
    cells: NDArray[np.float64]
    error: NDArray[np.float64]
    counts: NDArray[np.float64]
    about: dict[str, Any]


def find_probe(source: Path, kind: str) -> ProbeFile:
    """A probe file, or the newest of its kind in a run directory.

    Raises:
        MnmtError: E407 not a run directory, E605 not such a probe, or a run without one.
    """
    if not source.is_dir():
        return read_probe(source, kind)
    run_table(source)
    found = {
        int(match[1]): file
        for file in (source / "probes").glob(f"{kind}-step-*.safetensors")
        if (match := re.fullmatch(rf"{kind}-step-(\d+)\.safetensors", file.name))
    }
    if not found:
        remedy = f"run mnmt probe {kind} on it, or name a file"
        raise MnmtError("E605", f"no probe of {kind} in the run's probes", where=str(source), remedy=remedy)
    return read_probe(found[max(found)], kind)


def passed_over(sources: Sequence[Path], kind: str) -> list[str]:
    """A sentence for each run directory with several probes of a kind, of which the newest is taken: it may be a short one."""
    remarks = []
    for source in sources:
        files = sorted((source / "probes").glob(f"{kind}-step-*.safetensors")) if source.is_dir() else []
        if len(files) > 1:
            taken = find_probe(source, kind).path
            others = ", ".join(file.name for file in files if file != taken)
            remarks.append(f"of several probes in {source} the newest was taken, {taken.name}; passed over: {others}")
    return remarks


def find_groups(source: Path) -> GroupsFile:
    """A groups file, or the one in a directory."""
    return read_groups(source / "groups.json" if source.is_dir() else source)


def directions_in(source: Path) -> list[str]:
    """Names of the directions of a run directory, settings file, probe file or groups file.

    Raises:
        MnmtError: as these files are refused; E303 for a settings file that names no directions and has no token store.
    """
    if source.suffix == ".json" and not source.is_dir():
        return list(find_groups(source).grouping.tasks)
    if source.suffix == ".toml" or source.is_dir():
        where = source / "config.toml" if source.is_dir() else source
        table = run_table(source) if source.is_dir() else settings.read_table(source)
        data = settings.validate(DataConfig, table.get("data", {}), str(where))
        if data.tasks is not None:
            return list(data.tasks)
        pairs = TokenStore.open(settings.user_path(data.store)).pairs("train")
        return TaskSet(directions_of(pairs, data.directions, data.pivot)).names
    return list(read_probe(source).about["tasks"])


def check_covers(tasks: Sequence[str], wanted: Sequence[str], where: str) -> None:
    """E607 naming the directions that were wanted and not measured, or measured and not wanted."""
    missing, surplus = sorted(set(wanted) - set(tasks)), sorted(set(tasks) - set(wanted))
    if missing:
        what = f"it holds {len(tasks)} directions of the {len(set(wanted))} of the training; it lacks {some(missing)}"
        raise MnmtError("E607", what, where=where, remedy="measure them all: mnmt probe on a training of all directions")
    if surplus:
        what = f"it holds directions that the training does not have: {some(surplus)}"
        raise MnmtError("E607", what, where=where, remedy="name the training that was measured")


def owner(file: Path) -> Path | None:
    """The run directory whose probe a file is, where it lies in one."""
    run = file.parent.parent
    return run if file.parent.name == "probes" and (run / "config.toml").is_file() else None


def pool(files: Sequence[ProbeFile], *, statistic: Statistic = "mean", since: int = 0, min_count: int = 2) -> Affinity:
    """One affinity from the windows of one or several probe files, as if all measurements were of one sample.

    Args:
        statistic: ``mean`` of the measurements of a cell, or their ``sum`` (Eq. 8).
        since: leaves out windows that begin before this step.
        min_count: the fewest measurements of a cell; with 0 cells never measured count as 0.

    Raises:
        MnmtError: E607 when the files are not of the same directions or quantity, hold the same measurements, no window is
            left, a cell is not finite, or one was measured less often than ``min_count``; cells are named as ``trained ->
            affected``.
    """
    first = files[0]
    tasks = sorted(first.about["tasks"])
    for file in files:
        check_covers(file.about["tasks"], tasks, str(file.path))
        unlike = [key for key in ("quantity", "split") if file.about[key] != first.about[key]]
        if unlike:
            values = f"{file.about[unlike[0]]!r}, not {first.about[unlike[0]]!r} as in {first.path}"
            raise MnmtError("E607", f"{unlike[0]} is {values}", where=str(file.path), remedy="pool what was measured alike")
    _check_distinct(files)
    parts = [_windows(file, tasks, since) for file in files]
    counts, means, variances = (np.concatenate([part[k] for part in parts]) for k in range(3))
    windows = [[file.about["windows"][w] for w in part[3]] for file, part in zip(files, parts, strict=True)]
    where = ", ".join(str(file.path) for file in files)
    _check_cells(tasks, counts, np.where(counts > 0, means, 0.0), min_count, where)
    count, mean, variance = _pooled(counts, means, variances)
    scale = count if statistic == "sum" else np.ones_like(count)
    error = np.sqrt(variance / np.maximum(count, 1)) * scale
    about = {
        "sources": [str(file.path) for file in files],
        "runs": [file.about["run"] for file in files],
        "convention": "row = trained task j, column = affected task i",
        "quantity": first.about["quantity"],
        "split": first.about["split"],
        "statistic": statistic,
        "windows": windows,
        "measurements": {"least": int(count.min()), "median": float(np.median(count)), "most": int(count.max())},
    }
    return Affinity(tuple(tasks), mean * scale, error, count, about)


def _windows(
    file: ProbeFile, tasks: Sequence[str], since: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], list[int]]:
    """count, mean, variance [W, N, N] of the windows from ``since`` on, directions in the order of ``tasks``; and which."""
    starts = [int(window[0]) for window in file.about["windows"]]
    chosen = [w for w, start in enumerate(starts) if start >= since]
    if not chosen:
        what = f"no window of steps begins at {since} or later" if starts else "it has no window of steps"
        remedy = f"they begin at {', '.join(map(str, starts))}" if starts else "probe for longer"
        raise MnmtError("E607", what, where=str(file.path), remedy=remedy)
    order = [file.about["tasks"].index(name) for name in tasks]
    axes = np.ix_(chosen, order, order)
    count, mean, variance = (file.tensors[name].numpy()[axes] for name in ("count", "mean", "variance"))
    return count, mean, variance, chosen


def _check_distinct(files: Sequence[ProbeFile]) -> None:
    """E607 for measurements that are in two files: counted twice they would seem more certain than they are."""
    seen: dict[bytes, ProbeFile] = {}
    for file in files:
        tables = [file.tensors[name].numpy() for name in ("count", "mean")]
        windows = {b"".join(table[w].tobytes() for table in tables) for w in range(len(tables[0])) if tables[1][w].any()}
        for window in windows:
            if window in seen:
                what = f"it holds measurements that are in {seen[window].path} too"
                raise MnmtError("E607", what, where=str(file.path), remedy="give each of them once")
        seen |= dict.fromkeys(windows, file)


def _check_cells(
    tasks: Sequence[str], counts: NDArray[np.float64], means: NDArray[np.float64], min_count: int, where: str
) -> None:
    """E607 naming cells that are not finite or were measured too seldom."""

    def cells(bad: NDArray[np.bool_]) -> str:
        return some([f"{tasks[j]} -> {tasks[i]}" for j, i in np.argwhere(bad)])

    broken = ~(np.isfinite(means) & np.isfinite(counts)).all(axis=0)
    if broken.any():
        what = f"{int(broken.sum())} of {broken.size} cells are not finite: {cells(broken)}"
        raise MnmtError("E607", what, where=where, remedy="leave out the windows where the training went astray with --since")
    thin, never = counts.sum(axis=0) < min_count, counts.sum(axis=0) == 0
    if thin.any():
        what = f"{int(thin.sum())} of {thin.size} cells were measured less than {min_count} times: {cells(thin)}"
        what += f"; never measured: {cells(never)}" if never.any() else ""
        remedy = "probe for longer or more directions at once (method.affinity.affected = 0), or set --min-count"
        raise MnmtError("E607", what, where=where, remedy=remedy)


def _pooled(
    counts: NDArray[np.float64], means: NDArray[np.float64], variances: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Count, mean and unbiased variance [N, N] of parts [W, N, N] put together (Chan et al. 1983).

    What the windows differ by is part of the variance: where affinity shrinks as training goes on, standard errors are too
    large rather than too small. Mean 0 where nothing was measured, variance NaN below two measurements.
    """
    count = counts.sum(axis=0)
    means = np.where(counts > 0, means, 0.0)
    mean = (counts * means).sum(axis=0) / np.maximum(count, 1)
    inside = np.where(counts > 1, (counts - 1) * np.where(counts > 1, variances, 0.0), 0.0).sum(axis=0)
    between = (counts * (means - mean) ** 2).sum(axis=0)
    variance = np.where(count > 1, (inside + between) / np.maximum(count - 1, 1), np.nan)
    return count, mean, variance
