"""Groups files: which directions train together, as ``mnmt cluster`` decided it and as the next training reads it.

    {"version": 1, "kind": "groups", "method": "ftac", "clusters": [["en-fr", ...], ...], "helpers": [[...], ...],
     "about": {...}}

``about`` tells how it came about (scores, settings, merges, warnings, source) and is read by people and the report alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MnmtError, nearest
from .flow import Grouping
from .runlog import write_atomically
from .tasks import parse_direction

VERSION = 1


@dataclass(frozen=True)
class GroupsFile:
    """An opened groups file: a partition of the tasks with helpers, checked."""

    path: Path
    grouping: Grouping
    about: dict[str, Any]


def write_groups(path: Path, grouping: Grouping, about: Mapping[str, Any]) -> None:
    """Writes the whole file or none.

    Raises:
        MnmtError: E401 when it cannot be written.
    """
    table = {
        "version": VERSION,
        "kind": "groups",
        "method": grouping.method,
        "clusters": [list(cluster) for cluster in grouping.clusters],
        "helpers": [list(helpers) for helpers in grouping.helpers],
        "about": dict(about),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise MnmtError("E401", f"the groups file cannot be written: {error.strerror}", where=str(path)) from None


def read_groups(path: str | Path, known: Collection[str] | None = None) -> GroupsFile:
    """Opens a groups file.

    Args:
        known: names of the directions that there are; None takes any.

    Raises:
        MnmtError: E606 when it is no groups file, or its clusters are no partition; E105 for a direction that is not known
            (the nearest is named).
    """
    path = Path(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise _unusable(path, "not JSON") from None
    if not isinstance(table, dict) or table.get("kind") != "groups":
        raise _unusable(path, "not a groups file")
    if table.get("version") != VERSION:
        raise _unusable(path, f"groups file of version {table.get('version')!r}, this program reads {VERSION}")
    clusters, helpers = (_names(path, table, key) for key in ("clusters", "helpers"))
    about = table.get("about", {})
    if not isinstance(table.get("method"), str) or not isinstance(about, dict):
        raise _unusable(path, "it lacks method or about")
    grouping = Grouping(table["method"], clusters, helpers)
    _check(path, grouping, known)
    return GroupsFile(path, grouping, about)


def _names(path: Path, table: dict[str, Any], key: str) -> tuple[tuple[str, ...], ...]:
    found = table.get(key)
    good = isinstance(found, list) and all(isinstance(g, list) and all(isinstance(n, str) for n in g) for g in found)
    if not good:
        raise _unusable(path, f"{key} is no list of lists of directions")
    return tuple(tuple(group) for group in found)  # type: ignore[union-attr]


def _check(path: Path, grouping: Grouping, known: Collection[str] | None) -> None:
    every = [name for cluster in grouping.clusters for name in cluster]
    if not every or not all(grouping.clusters):
        raise _unusable(path, "a cluster without a direction")
    if len(grouping.helpers) != len(grouping.clusters):
        raise _unusable(path, f"{len(grouping.clusters)} clusters, but {len(grouping.helpers)} lists of helpers")
    for name in dict.fromkeys([*every, *(name for helpers in grouping.helpers for name in helpers)]):
        parse_direction(name)
        if known is not None and name not in known:
            raise MnmtError("E105", f"unknown direction {name!r}", where=str(path), remedy=nearest(name, sorted(known)))
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise _unusable(path, f"{twice[0]} is in two clusters")
    for cluster, helpers in zip(grouping.clusters, grouping.helpers, strict=True):
        wrong = [n for n in helpers if n in cluster or n not in every or helpers.count(n) > 1]
        if wrong:
            raise _unusable(path, f"helper {wrong[0]} of the cluster of {cluster[0]} is in it, in no cluster, or given twice")


def _unusable(path: Path, what: str) -> MnmtError:
    return MnmtError("E606", what, where=str(path), remedy="write it again with mnmt cluster")
