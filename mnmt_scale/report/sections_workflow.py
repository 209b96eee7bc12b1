"""The parts of the page about a workflow of clusters: its systems, the clusters of each, what the seeds agree on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from . import plots_systems
from .affinity import affinity_of, rank_correlation
from .grid import average, difference
from .html import Column, details, heading, notes, paragraph, table
from .sections import Drawing
from .sections_affinity import affinity, grouping_table
from .systems import SUBJECT, SYSTEMS, label
from .systems_text import gain, number, remarks
from .workflow import UNIVERSAL, WorkflowData

Table = dict[str, Any]


def systems(workflow: WorkflowData, draw: Drawing) -> str:
    """Means of the systems, the gains of FTAC, BLEU of every direction; the same for other corpora's test sets."""
    found = workflow.table
    if found is None:
        return paragraph("No system is evaluated.")
    parts = [_one_corpus(found, draw)]
    for name, other in found["second"].items():
        parts += [heading(f"Test sets of {name}"), _one_corpus(other, draw)]
    return "".join(parts)


def clusters(workflow: WorkflowData) -> str:
    """The groups of every system that has any to tell, of the served seed first; other seeds folded away."""
    parts = []
    _, served = workflow.serve
    for seed in sorted({seed for _, seed in workflow.groups}, key=lambda seed: (seed != served, seed)):
        body = _clusters_of_seed(workflow, seed)
        if seed == served:
            parts.append(body)
        elif body:
            parts.append(details(f"Clusters of seed {seed}", body))
    return "".join(parts) + _seeds(workflow)


def affinities(workflow: WorkflowData, draw: Drawing) -> str:
    """The affinity of the served seed's universal run; other seeds folded away."""
    parts = []
    _, served = workflow.serve
    for seed in sorted(workflow.universal, key=lambda seed: (seed != served, seed)):
        body = affinity([workflow.universal[seed]], draw)
        if body:
            parts.append(body if not parts else details(f"Affinity of seed {seed}", body))
    return "".join(parts)


def _one_corpus(found: Table, draw: Drawing) -> str:
    gains = draw(
        lambda: plots_systems.gains(found),
        "Gain of FTAC by direction",
        "BLEU of FTAC less that of the other system, with the 95 % interval of the paired bootstrap over test sentences; "
        "filled: p < 0.05. Largest corpus first, the mean over directions at the right.",
    )
    return (
        _means(found) + gains + heading("BLEU by direction (FTAC paper, Table 4)") + _directions(found) + notes(remarks(found))
    )


def _means(found: Table) -> str:
    groups = [group for group in found["groups"] if group != "all"] if len(found["groups"]) > 2 else []
    compared = any(row["system"] == UNIVERSAL for row in found["systems"])
    several = any(len(row["seeds"]) > 1 for row in found["systems"])
    columns = [Column("system", text=True), Column("models"), Column("helpers"), Column("BLEU", 2)]
    columns += [Column("+-", 2)] if several else []
    columns += [*(Column(f"BLEU {group}", 2) for group in groups), Column("chrF++", 2), Column("nll", 3)]
    base = label(UNIVERSAL)
    columns += [Column(f"- {base}, over sentences")] if compared else []
    columns += [Column(f"- {base}, over seeds")] if compared and several else []
    columns += [Column("M tokens"), Column("minutes")]
    rows = []
    for row in found["systems"]:
        cells = row["groups"]
        bleu = cells["all"]["bleu"]
        line: list[Any] = [row["label"], number(row["clusters"]), number(row["helpers"]), bleu["mean"]]
        line += [None if bleu["high"] is None else bleu["high"] - bleu["mean"]] if several else []
        line += [cells[group]["bleu"]["mean"] for group in groups]
        line += [cells["all"]["chrf"]["mean"], cells["all"]["nll"]["mean"]]
        line += [_text(bleu.get("against_sentences"), "difference")] if compared else []
        line += [_text(bleu.get("against"), "mean")] if compared and several else []
        rows.append([*line, average(row["target_tokens"], 1e6, 2), average(row["training_seconds"], 60, 1)])
    return table(columns, rows)


def _text(cell: Table | None, key: str) -> str | None:
    return None if cell is None else difference(cell, key)


def _directions(found: Table) -> str:
    names = [row["system"] for row in found["systems"]]
    columns = [Column("direction", text=True), Column("sentences"), Column("class", text=True)]
    columns += [Column(label(name), 1) for name in names]
    columns += [Column(f"FTAC - {label(base)}") for base in found["baselines"]]
    rows: list[list[Any]] = []
    for row in found["directions"]:
        scores = [row["bleu"][name] for name in names]
        rows.append(
            [row["direction"], row["sentences"], row["class"], *scores, *(gain(row["deltas"][b]) for b in found["baselines"])]
        )
    means = [row["groups"]["all"]["bleu"]["mean"] for row in found["systems"]]
    gains = [gain(found["average"]["deltas"][base]) for base in found["baselines"]]
    return table(columns, [*rows, ["Average", None, None, *means, *gains]])


def _clusters_of_seed(workflow: WorkflowData, seed: int) -> str:
    """A table for each system whose clusters are not those of every comparison (one, or one a direction)."""
    parts = []
    ours = workflow.groups.get((SUBJECT, seed))
    names = [name for name, of in workflow.groups if of == seed and name not in ("bilingual", UNIVERSAL)]
    for name in sorted(names, key=lambda name: (name != SUBJECT, list(SYSTEMS).index(name) if name in SYSTEMS else 99)):
        groups = workflow.groups[name, seed]
        title = heading(f"{label(name)}, seed {seed}: {SYSTEMS[name][1] if name in SYSTEMS else groups.grouping.method}")
        if ours is not None and groups is not ours and groups.grouping.clusters == ours.grouping.clusters:
            same = groups.grouping.helpers == ours.grouping.helpers
            if same or not any(groups.grouping.helpers):
                helpers = "and helpers of" if same else "of"
                parts.append(title + paragraph(f"The clusters {helpers} FTAC{'' if same else ', without helpers'}."))
                continue
        parts.append(title + grouping_table(groups))
    return "".join(parts)


def seed_agreement(workflow: WorkflowData) -> list[Table]:
    """For each two seeds, how alike their affinities (rank correlation off the diagonal) and FTAC's clusters (adjusted Rand
    index) are; None where one is not there."""
    tables = {}
    for seed, run in workflow.universal.items():
        if "affinity" in run.probes:
            groups = workflow.groups.get((SUBJECT, seed))
            found = affinity_of(run.probes["affinity"], groups, by_cluster=False)  # by language: the same order for all
            tables[seed] = found.tasks, np.where(np.eye(len(found.tasks), dtype=bool), np.nan, found.mean)
    rows = []
    for a, b in combinations(sorted({seed for _, seed in workflow.groups} | set(tables)), 2):
        rho = None
        if a in tables and b in tables and tables[a][0] == tables[b][0]:
            rho = rank_correlation(tables[a][1], tables[b][1])
        rows.append({"seeds": [a, b], "affinity": rho, "clusters": _rand(workflow, a, b)})
    return rows


def _rand(workflow: WorkflowData, a: int, b: int) -> float | None:
    from ..methods.affinity.agreement import adjusted_rand

    if (SUBJECT, a) not in workflow.groups or (SUBJECT, b) not in workflow.groups:
        return None
    first, second = (workflow.groups[SUBJECT, seed].grouping for seed in (a, b))
    if first.tasks != second.tasks:
        return None
    place = {name: i for i, name in enumerate(first.tasks)}
    other = {name: k for k, cluster in enumerate(second.clusters) for name in cluster}
    return adjusted_rand([[place[n] for n in cluster] for cluster in first.clusters], [other[n] for n in first.tasks])


def _seeds(workflow: WorkflowData) -> str:
    rows = [row for row in seed_agreement(workflow) if row["affinity"] is not None or row["clusters"] is not None]
    if not rows:
        return ""
    columns: Sequence[Column] = (
        Column("seeds", text=True),
        Column("rank correlation of affinity off the diagonal", 2),
        Column("adjusted Rand index of FTAC's clusters", 2),
    )
    body = [[" and ".join(map(str, row["seeds"])), row["affinity"], row["clusters"]] for row in rows]
    return heading("How alike the seeds are") + table(columns, body)
