"""A bundle of cluster models, which together are one translator: a direction goes to the model whose cluster it is in.

    BUNDLE/ groups.json  cluster-0/ .. cluster-(K-1)/ (a run directory for each cluster)  eval/

A workflow directory stands for the bundle that its ``workflow.json`` names under ``serve``. No model is opened here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import MnmtError
from .groups import GroupsFile, read_groups
from .runs import run_table
from .tasks import Task, TaskSet, pair_name, parse_direction

GROUPS, WORKFLOW = "groups.json", "workflow.json"
SHOWN = 30
"""Most directions that an error lists."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every cluster has a run that was trained for it.

    Attributes:
        path: its directory, also where a workflow directory was given.
    """

    path: Path
    groups: GroupsFile

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the run directories in ``path``, in the order of the clusters."""
        return tuple(f"cluster-{k}" for k in range(len(self.groups.grouping.clusters)))

    @cached_property
    def tasks(self) -> TaskSet:
        """All directions, sorted by name."""
        return TaskSet(parse_direction(name) for name in self.groups.grouping.tasks)

    @cached_property
    def routes(self) -> dict[str, str]:
        """Direction -> the model that serves it."""
        clusters = self.groups.grouping.clusters
        routes = {name: model for model, cluster in zip(self.models, clusters, strict=True) for name in cluster}
        return dict(sorted(routes.items()))

    def run_for(self, source: str, target: str) -> Path:
        """Run directory of the model that serves a direction.

        Raises:
            MnmtError: E105 when none does: what was not trained belongs to no cluster, so nothing says which to ask.
        """
        name = f"{source}-{target}"
        if name not in self.routes:
            raise self._without_model(name, [t for t in self.tasks if t.source == source or t.target == target])
        return self.path / self.routes[name]

    def chosen(self, only: Sequence[str] | None) -> list[Task]:
        """The directions in ``only``: directions, or pairs (both their directions); None: all.

        Raises:
            MnmtError: E105 for a name that no model serves.
        """
        if only is None:
            return list(self.tasks)
        chosen: dict[str, Task] = {}
        for name in only:
            pair = pair_name(*parse_direction(name))
            found = [t for t in self.tasks if t.name == name] or [t for t in self.tasks if t.pair == pair]
            if not found:
                raise self._without_model(name, self.tasks)
            chosen |= {task.name: task for task in found}
        return list(chosen.values())

    def _without_model(self, name: str, near: Iterable[Task]) -> MnmtError:
        names = [task.name for task in near] or self.tasks.names
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        remedy = f"there are {' '.join(names[:SHOWN])}{more}"
        return MnmtError("E105", f"no model of this bundle translates {name!r}", where=str(self.path), remedy=remedy)


def is_bundle(path: str | Path) -> bool:
    """Whether a directory is meant as a bundle or stands for one. (A run that was trained for a cluster keeps a groups file
    too, and is a run.)"""
    path = Path(path)
    return (path / WORKFLOW).is_file() or ((path / GROUPS).is_file() and not (path / "config.toml").is_file())


def bundle_directory(path: str | Path) -> Path:
    """The bundle's own directory: ``path``, or what the workflow there serves.

    Raises:
        MnmtError: E407 when that workflow has none, or not yet (those that there are, are named).
    """
    path = Path(path)
    if not (path / WORKFLOW).is_file():
        return path
    try:
        table = json.loads((path / WORKFLOW).read_text(encoding="utf-8"))
        serve = table.get("serve") if isinstance(table, dict) else None
    except (OSError, ValueError, RecursionError):
        raise MnmtError("E407", "not a workflow file", where=str(path / WORKFLOW)) from None
    if not isinstance(serve, str):
        remedy = "give one of the runs in it"
        raise MnmtError("E407", "this workflow makes no bundle of cluster models", where=str(path), remedy=remedy)
    if not (path / serve / GROUPS).is_file():
        there = sorted(str(p.parent.relative_to(path)) for p in path.glob(f"*/*/{GROUPS}"))
        remedy = f"run the workflow to its end, or give one of {', '.join(there)} in it" if there else "run it to its end"
        raise MnmtError("E407", f"the workflow has not made its bundle {serve} yet", where=str(path), remedy=remedy)
    return path / serve


def open_bundle(path: str | Path) -> Bundle:
    """Opens a bundle, or that of a workflow directory, and checks that its runs are those of its groups.

    Raises:
        MnmtError: E407 when a cluster has no run directory, E606 for a groups file that cannot be used or does not agree with
            what a run was trained for, E103 for settings of a run that cannot be read.
    """
    path = bundle_directory(path)
    bundle = Bundle(path, read_groups(path / GROUPS))
    grouping = bundle.groups.grouping
    for model, cluster, helpers in zip(bundle.models, grouping.clusters, grouping.helpers, strict=True):
        run = path / model
        if not run.is_dir():
            said = " ".join(cluster[:5]) + (" ..." if len(cluster) > 5 else "")
            remedy = "train it, or choose a grouping whose clusters are all trained"
            raise MnmtError("E407", f"the bundle lacks the model of {said}", where=str(run), remedy=remedy)
        _check_run(run, cluster, helpers)
    return bundle


def _check_run(run: Path, cluster: Sequence[str], helpers: Sequence[str]) -> None:
    """A run of method ftac was trained for just this cluster with just these helpers; any other has all of the cluster."""
    table = run_table(run)
    method = table.get("method", {})
    trained = table.get("data", {}).get("tasks") or []
    if method.get("name") != "ftac":
        wrong = sorted(set(cluster) - set(trained))
    else:
        served = method.get("ftac", {}).get("tasks") or trained
        wrong = sorted(set(served) ^ set(cluster)) or sorted(set(trained) ^ {*cluster, *helpers})
    if wrong:
        what = f"{run.name} was not trained for the groups file beside it: they disagree about {' '.join(wrong[:5])}"
        raise MnmtError("E606", what, where=str(run), remedy="train this cluster again, or use the groups file it came from")
