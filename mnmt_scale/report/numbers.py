"""Numbers of the probes' figures as JSON, which has no NaN."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .affinity import affinity_numbers
from .plots_curvature import class_in, ordered
from .plots_gradients import group_spreads
from .probes import Probe
from .read import RunData


def probe_numbers(run: RunData, probe: Probe) -> dict[str, Any]:
    """What the figures of a probe show: its facts, the directions in the figures' order, and the values in that order.

    Of gradients the spread by group and pair of classes and [N][N] cosine and magnitude over all parameters, to six
    digits; the matrices of the groups are in the probe file. Of affinity what ``affinity.affinity_numbers`` says.
    """
    if probe.kind == "affinity":
        return affinity_numbers(probe, run.groups)
    if probe.kind == "vectors":  # hundreds of numbers a language, which no figure shows
        return {"step": probe.step, **probe.facts}
    order = ordered(run, probe)
    tasks = [probe.tasks[i] for i in order]
    known = {"step": probe.step, **probe.facts, "tasks": tasks, "classes": [class_in(run, probe, task) for task in tasks]}
    if probe.kind == "curvature":
        return known | {name: [float(array[i]) for i in order] for name, array in probe.arrays.items()}
    for measure in ("cosine", "magnitude"):
        spreads = group_spreads(run, measure)
        known[f"{measure}_by_group"] = {
            group: {pair: dataclasses.asdict(s) for pair, s in table.items()} for group, table in spreads.items()
        }
        if "all" in probe.groups:
            matrix = probe.arrays[measure][probe.groups.index("all")]
            known[measure] = [[float(f"{matrix[i, j]:.6g}") for j in order] for i in order]
    return known


def finite(value: Any) -> Any:
    """The same tables and lists with None for every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
