"""A workflow directory, and a bundle of cluster models, as what the report shows of them.

OUT/workflow.json SYSTEM/seed-S/{groups.json, cluster-K/ (runs), eval/}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bundle import WORKFLOW, bundle_directory, is_bundle
from ..errors import MnmtError
from ..evaluation.paired import Key
from ..evaluation.resources import averages
from ..groups import GroupsFile, read_groups
from .read import RunData, read_run, read_runs
from .systems import SUBJECT, collect_systems, in_order, label

UNIVERSAL = "multilingual"


@dataclass
class WorkflowData:
    """What is there of a workflow.

    Attributes:
        about: workflow.json.
        table: what ``systems.collect_systems`` gives; None where no bundle is evaluated.
        groups: (system, seed) -> its groups, where they are decided.
        universal: seed -> the run of all directions, in which the affinities were measured.
        runs: what the page shows curves of: the universal run and the models of the bundle that the directory stands for.
        missing: what cannot be shown, in sentences.
    """

    path: Path
    about: dict[str, Any]
    table: dict[str, Any] | None = None
    groups: dict[Key, GroupsFile] = field(default_factory=dict)
    universal: dict[int, RunData] = field(default_factory=dict)
    runs: list[RunData] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def serve(self) -> Key:
        """System and seed of the bundle that the directory stands for; the first ones where it does not say."""
        parts = str(self.about.get("serve", "")).split("/seed-")
        if len(parts) == 2 and parts[1].isdecimal():
            return parts[0], int(parts[1])
        systems, seeds = (list(self.about.get(key) or [first]) for key, first in (("systems", SUBJECT), ("seeds", 1)))
        return (SUBJECT if SUBJECT in systems else systems[-1]), seeds[0]


def is_workflow(path: Path) -> bool:
    """Whether a directory is that of a workflow of clusters."""
    return (path / WORKFLOW).is_file()


def read_workflow(path: Path) -> WorkflowData:
    """Everything that a page about a workflow shows.

    Raises:
        MnmtError: E407 when its workflow.json cannot be used.
    """
    try:
        about = json.loads((path / WORKFLOW).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict):
        raise MnmtError("E407", "not a workflow file", where=str(path / WORKFLOW))
    found = WorkflowData(path, about)
    try:
        found.table = collect_systems(path, about)
    except MnmtError as error:
        found.missing.append(f"No table of systems: {error.what} ({error.where}).")
    else:
        if found.table is None:
            found.missing.append("No system is evaluated yet.")
        else:
            found.missing += found.table["left_out"]
    systems = in_order(about.get("systems") or ())
    for seed in map(int, about.get("seeds") or ()):
        for system in systems:
            _read_groups(found, (system, seed))
        run = path / UNIVERSAL / f"seed-{seed}" / "cluster-0"
        if (run / "config.toml").is_file():
            found.universal[seed] = _named(run, f"{label(UNIVERSAL)} seed {seed}")
            deciding = next((found.groups[s, seed] for s in (SUBJECT, "htac", "average") if (s, seed) in found.groups), None)
            found.universal[seed].groups = deciding
    system, seed = found.serve
    found.runs = [found.universal[seed]] if seed in found.universal and system != UNIVERSAL else []
    found.runs += cluster_runs(path / system / f"seed-{seed}", label(system))
    for run in found.runs:
        run.evaluations = {}  # the systems' table has the scores, and means over a cluster alone do not compare
    return found


def expanded(paths: Iterable[Path]) -> list[RunData]:
    """The runs of a page: those named, and of a bundle (or the one that a workflow directory stands for) all models, each
    with the scores of the directions that it serves.

    Raises:
        MnmtError: E407 when a path is neither.
    """
    alone: list[Path] = []
    runs: list[RunData] = []
    for path in map(Path, paths):
        if is_bundle(path):
            bundle = bundle_directory(path)
            runs += cluster_runs(bundle, "/".join(bundle.resolve().parts[-2:]))
        else:
            alone.append(path)
    return [*read_runs(alone), *runs]


def cluster_runs(bundle: Path, name: str) -> list[RunData]:
    """Models of a bundle that there are, called NAME 0, NAME 1 ..."""
    folders = sorted(bundle.glob("cluster-*/config.toml"), key=lambda file: (len(file.parent.name), file.parent.name))
    runs = [_named(file.parent, f"{name} {file.parent.name.removeprefix('cluster-')}") for file in folders]
    for file in sorted((bundle / "eval").glob("*.json")):
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
            rows = dict(table["directions"])
            for run in runs:
                own = {name: row for name, row in rows.items() if row.get("model") == run.path.name}
                if own:
                    run.evaluations[file.stem] = {**table, "directions": own, "averages": averages(own), "missing": []}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            for run in runs[:1]:
                run.missing.append(f"eval/{file.name} of the bundle cannot be read and is left out.")
    for run in runs:
        if run.evaluations:
            run.missing = [line for line in run.missing if not line.startswith("No evaluation")]
    return runs


def _named(path: Path, name: str) -> RunData:
    run = read_run(path)
    run.name = name
    return run


def _read_groups(found: WorkflowData, key: Key) -> None:
    file = found.path / key[0] / f"seed-{key[1]}" / "groups.json"
    if not file.is_file():
        return
    try:
        found.groups[key] = read_groups(file)
    except MnmtError as error:
        found.missing.append(f"{label(key[0])} seed {key[1]}: groups.json: {error.what}; left out.")
