"""The parts of the page about affinity and about what was clustered by it.

The figures and tables follow those of the FTAC paper (Fig. 2 and 3, Tables 2, 3 and 10); captions name them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..flow import Grouping
from ..groups import GroupsFile
from . import plots_affinity
from .affinity import CONVENTION, Affinity, affinity_of, rank_correlations
from .html import Column, details, heading, notes, paragraph, table
from .probes import Probe
from .read import RunData
from .sections import Drawing

_LISTED_UP_TO = 60
"""Directions up to which the page holds every cell; the JSON always does."""


def affinity(runs: Sequence[RunData], draw: Drawing) -> str:
    """For each run with an affinity probe the table as a map, its windows, and measured against estimated."""
    parts = []
    shown = [run for run in runs if "affinity" in run.probes]
    for run in shown:
        body = _affinity(run, run.probes["affinity"], draw)
        parts += [heading(run.name)] if len(runs) > 1 else []
        parts.append(body)
    return "".join(parts)


def clusters(runs: Sequence[RunData]) -> str:
    """The groups of the runs, each grouping once, with the run that is for a cluster named beside it."""
    shown: list[tuple[GroupsFile, dict[int, str]]] = []
    for run in runs:
        if run.groups is None:
            continue
        known = next((models for groups, models in shown if groups.grouping == run.groups.grouping), None)
        if known is None:
            known = {}
            shown.append((run.groups, known))
        serves = _serves(run)
        for k, cluster in enumerate(run.groups.grouping.clusters):
            if serves == set(cluster):
                known[k] = run.name
    return "".join(grouping_table(groups, models) for groups, models in shown)


def grouping_table(groups: GroupsFile, models: dict[int, str] | None = None) -> str:
    """Clusters with their helpers as the paper's Tables 2, 3 and 10, and what the groups file says of how they came about.

    Args:
        models: number of a cluster -> what its model is called, where it is known.
    """
    grouping, models = groups.grouping, models or {}
    shorten, where = _names(grouping)
    scores = groups.about.get("scores")
    scores = scores if isinstance(scores, list) and len(scores) == len(grouping.clusters) else None
    columns = [Column("k"), Column(f"cluster{where}", text=True), Column(f"helpers{where}", text=True), Column("directions")]
    columns += [Column("S(c, g)", 4)] if scores else []
    columns += [Column("model", text=True)] if models else []
    rows: list[list[Any]] = []
    for k, (cluster, helpers) in enumerate(zip(grouping.clusters, grouping.helpers, strict=True)):
        row: list[Any] = [k, ", ".join(map(shorten, cluster)), ", ".join(map(shorten, helpers)) or None, len(cluster)]
        row += [_number(scores[k])] if scores else []
        rows.append(row + ([models.get(k)] if models else []))
    return table(columns, rows) + _about(groups)


def _about(groups: GroupsFile) -> str:
    about = groups.about
    lines = [f"Decided by {groups.grouping.method}."]
    agreement = about.get("agreement")
    if isinstance(agreement, dict):
        if _number(agreement.get("adjusted_rand")) is not None:
            lines.append(f"Adjusted Rand index with language families: {agreement['adjusted_rand']:.2f}.")
        effect = agreement.get("effect")
        if isinstance(effect, dict) and all(_number(effect.get(key)) is not None for key in ("within", "across", "size", "p")):
            lines.append(
                f"Affinity within families {effect['within']:.3g}, across {effect['across']:.3g}: effect size "
                f"{effect['size']:.2f} pooled standard deviations, permutation p {effect['p']:.2g}."
            )
    warnings = about.get("warnings")
    said = [str(line) for line in warnings] if isinstance(warnings, list) else []
    return paragraph(" ".join(lines), "soft") + notes(said)


def _affinity(run: RunData, probe: Probe, draw: Drawing) -> str:
    found = affinity_of(probe, run.groups)
    _, unit = plots_affinity.color_limit(found)
    drawing = draw(
        lambda: plots_affinity.affinity_map(found),
        f"Affinity between directions, {run.name}: {CONVENTION}",
        f"Row: the direction that was trained; column: the direction whose loss it changed. Blue helps, red harms. "
        f"{_quantity(probe)} {_order_text(found)} A dot: within its standard error of zero ({int(found.uncertain.sum())} of "
        f"{found.mean.size} cells); grey: never measured. The colours end at the 99th percentile off the diagonal"
        + (f"; numbers are in units of {unit:g}." if len(found.tasks) <= plots_affinity.VALUES_UP_TO else ".")
        + " (FTAC paper, Fig. 2 and 3.)",
    )
    over_steps = draw(
        lambda: plots_affinity.window_curves(found),
        f"Affinity within windows of the training, {run.name}",
        "Each point is measured within one window of steps alone: mean over cells with its standard error, by what the trained "
        "direction is to the affected one. Early in training everything helps everything; clusters mean something where the "
        "cells off the diagonal are not all positive.",
    )
    rho = rank_correlations(found)
    beside = draw(
        lambda: plots_affinity.estimates(found),
        f"Affinity as measured and as estimated from gradients, {run.name}",
        f"A dot per cell off the diagonal. Estimated: {_estimated(probe)} Spearman's rank correlation over these "
        f"cells {_rho(rho['off_diagonal'])}, with the diagonal {_rho(rho['all'])}.",
    )
    if not drawing:
        return notes([f"{run.name}: the affinity probe of step {probe.step} has no cell that was measured."])
    listing = ""
    if len(found.tasks) <= _LISTED_UP_TO:
        listing = details(f"Affinity of the {len(found.tasks)} directions as numbers", _numbers(found))
    return drawing + over_steps + beside + listing


def _numbers(found: Affinity) -> str:
    """Mean and standard error of every cell."""
    columns = [Column("trained \\ affected", text=True), *(Column(task) for task in found.tasks)]
    rows = []
    for j, task in enumerate(found.tasks):
        cells = [_cell(mean, error) for mean, error in zip(found.mean[j], found.error[j], strict=True)]
        rows.append([task, *cells])
    return table(columns, rows)


def _cell(mean: float, error: float) -> str | None:
    if not math.isfinite(mean):
        return None
    return f"{mean:.3g}" + (f" \N{PLUS-MINUS SIGN}{error:.1g}" if math.isfinite(error) else "")


def _quantity(probe: Probe) -> str:
    facts = probe.facts
    held = f" of held sentences of {facts['split']}" if isinstance(facts.get("split"), str) else ""
    return f"Mean over steps of: {facts.get('quantity', 'change of the log-probability')}{held}; {probe.step:,} steps."


def _estimated(probe: Probe) -> str:
    said = probe.facts.get("estimate")
    return f"{said}." if isinstance(said, str) else "the learning rate times the inner product of the two gradients."


def _order_text(found: Affinity) -> str:
    since = f"Only windows from step {found.since:,} on, as for the clusters. " if found.since else ""
    if not found.clusters:
        return since + "Directions stand by language."
    helped = " Dashed: helpers, in the columns of the cluster that they help." if any(found.helpers) else ""
    return since + "Directions stand by cluster (boxes)." + helped


def _names(grouping: Grouping) -> tuple[Any, str]:
    """How directions are written in a table, and where that is said: by one language where all share the other."""
    sides = [name.split("-") for name in grouping.tasks]
    for place, text in ((0, " ({}-X)"), (1, " (X-{})")):
        if len({side[place] for side in sides}) == 1 and len(sides) > 1:
            return (lambda name, place=place: name.split("-")[1 - place]), text.format(sides[0][place])
    return str, ""


def _serves(run: RunData) -> set[str]:
    """The directions that a run was trained for, by its settings."""
    table = run.config.get("method")
    own = table.get("ftac") if isinstance(table, dict) and table.get("name") == "ftac" else None
    names = own.get("tasks") if isinstance(own, dict) else None
    return {str(name) for name in names or run.tasks}


def _rho(value: float | None) -> str:
    return "is not known" if value is None else f"{value:.2f}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
