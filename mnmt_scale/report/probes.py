"""Probe files of a run as plain arrays, and what the figures want to know of them.

RUN/probes/{gradients,curvature,affinity,vectors}-step-NNNNNN.safetensors: trainings and ``mnmt probe`` write them. A file
that is damaged, of another version, or no probe at all is said to be missing and otherwise left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MnmtError
from ..probes import TENSORS, read_probe

Rows = list[dict[str, Any]]

PAIRS = ("high-high", "medium-medium", "low-low", "high-medium", "high-low", "medium-low", "all")
"""Pairs of resource classes, better-resourced first, like pairs before unlike ones."""

_CLASSES = ("high", "medium", "low")


@dataclass(frozen=True)
class Probe:
    """One probe file.

    Attributes:
        kind: a key of ``mnmt_scale.probes.TENSORS``.
        step: updates that the weights had had.
        tasks: [N] names of the directions, in the order of the arrays.
        classes: name -> high, medium or low, as the probe knew them.
        facts: everything else that the file says (split, sentences, groups, tokens, product ...).
        arrays: ``gradients``: gram, cosine, magnitude [groups, N, N] fp64; ``curvature``: largest, smallest, top, trace,
            trace_error, residual [N] fp64; of the other kinds as ``mnmt_scale.probes`` says. A value that could not be
            measured is NaN.
    """

    kind: str
    step: int
    tasks: tuple[str, ...]
    classes: dict[str, str]
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def groups(self) -> list[str]:
        """[groups] names of the groups of parameters; empty where a probe has none."""
        return [str(group) for group in self.facts.get("groups", [])]


@dataclass(frozen=True)
class Spread:
    """Of a similarity over the pairs of directions of two classes."""

    pairs: int
    mean: float
    deviation: float
    low: float
    high: float


def read_probes(directory: Path, missing: list[str]) -> tuple[dict[str, Probe], dict[str, Rows]]:
    """All probe files of a run.

    Returns:
        The newest probe of each kind, whole; and per kind a row per file, as the lines of metrics.jsonl of that kind are
        (see ``summarised``), by ascending step, of those files that measured the same split as the newest. Files that
        cannot be read go to ``missing``, a sentence each.
    """
    newest: dict[str, Probe] = {}
    rows: dict[str, Rows] = {kind: [] for kind in TENSORS}
    for file in sorted(directory.glob("*.safetensors")):
        try:
            probe = read_file(file)
        except ValueError as error:
            missing.append(f"probes/{file.name}: {error}; left out.")
            continue
        rows[probe.kind].append(summarised(probe))
        if probe.kind not in newest or probe.step >= newest[probe.kind].step:
            newest[probe.kind] = probe
    for kind, probe in newest.items():
        same = [row for row in rows[kind] if row["split"] == probe.facts.get("split")]
        rows[kind] = sorted(same, key=lambda row: row["step"])
    return newest, rows


def summarised(probe: Probe) -> dict[str, Any]:
    """What metrics.jsonl says of such a probe: means by pair of classes for each group, or numbers by direction."""
    row: dict[str, Any] = {"kind": probe.kind, "step": probe.step, "split": probe.facts.get("split")}
    if probe.kind == "curvature":
        keys = ("top", "largest", "smallest", "trace")
        table = {task: {key: float(probe.arrays[key][i]) for key in keys} for i, task in enumerate(probe.tasks)}
        return row | {"directions": table}
    if probe.kind != "gradients":  # no lines of metrics.jsonl are like it
        return row
    kinds = [probe.classes.get(task) for task in probe.tasks]
    groups = {}
    for g, group in enumerate(probe.groups):
        both = {name: spreads(probe.arrays[name][g], kinds) for name in ("cosine", "magnitude")}
        groups[group] = {name: {pair: s.mean for pair, s in found.items()} for name, found in both.items()}
    return row | {"groups": groups}


def read_file(file: Path) -> Probe:
    """One probe file.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    try:
        opened = read_probe(file)
    except MnmtError as error:
        raise ValueError(error.what) from None
    except (TypeError, KeyError) as error:  # metadata whose lists and tables hold something else than names
        raise ValueError(f"its metadata cannot be used ({error})") from None
    known = ("kind", "version", "step", "tasks", "classes")
    classes = {str(task): str(name) for task, name in opened.about["classes"].items()}
    facts = {key: value for key, value in opened.about.items() if key not in known}
    arrays = {name: opened.tensors[name].numpy() for name in TENSORS[opened.kind]}
    return Probe(opened.kind, opened.about["step"], tuple(map(str, opened.about["tasks"])), classes, facts, arrays)


def spreads(matrix: np.ndarray, kinds: Sequence[str | None]) -> dict[str, Spread]:
    """Mean and spread over the pairs i < j of directions, by pair of resource classes and over all.

    Args:
        matrix: [N, N] symmetric; pairs that are not finite (a gradient of zero has no direction) are left out.
        kinds: [N] high, medium, low or None (then the pair counts in ``all`` alone).

    Returns:
        Keys of ``PAIRS`` that have a pair. The deviation is over these pairs as they are (divided by their number).
    """
    rows, columns = np.triu_indices(len(matrix), 1)
    values, rank = matrix[rows, columns], np.array([_CLASSES.index(kind) if kind in _CLASSES else -1 for kind in kinds])
    better, worse = np.minimum(rank[rows], rank[columns]), np.maximum(rank[rows], rank[columns])
    out = {}
    for pair in PAIRS:
        chosen = np.isfinite(values)
        if pair != "all":
            first, second = (_CLASSES.index(name) for name in pair.split("-"))
            chosen &= (better == first) & (worse == second)
        mine = values[chosen]
        if len(mine):
            out[pair] = Spread(len(mine), float(mine.mean()), float(mine.std()), float(mine.min()), float(mine.max()))
    return out
