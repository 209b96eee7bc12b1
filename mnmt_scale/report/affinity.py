"""Affinity of directions, from a probe file, as the figures and the JSON show it.

Everywhere the row is the direction j that was trained and the column the direction i that was affected: [j, i] is Z_{j->i}
of the FTAC paper. Windows of the training are put together as ``mnmt cluster`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..flow import Grouping
from ..groups import GroupsFile
from .probes import Probe

Table = NDArray[np.float64]

CONVENTION = "row: the direction that was trained; column: the direction that was affected"

KINDS = ("itself", "its own cluster", "a cluster that it helps", "others")
"""What a trained direction may be to an affected one; without clusters ``itself`` and ``others`` alone."""


@dataclass(frozen=True)
class Affinity:
    """The table of one probe in the order in which it is shown.

    Attributes:
        tasks: [N] by cluster, else by target and source language.
        clusters: places of each cluster's directions, neighbours of each other; empty without groups.
        helpers: places of the directions that help each cluster.
        count, mean, error: [N, N] measurements of a cell, their mean, its standard error; mean NaN without a measurement,
            error NaN with fewer than two.
        estimate: [N, N] mean of the estimates from gradients, NaN without one.
        windows: [W] first and last step of each that counts; ``window_*``: [W, N, N] of each by itself.
        since: first step of the windows that count, as the groups were decided; 0 all.
    """

    tasks: tuple[str, ...]
    clusters: tuple[tuple[int, ...], ...]
    helpers: tuple[tuple[int, ...], ...]
    count: Table
    mean: Table
    error: Table
    estimate: Table
    windows: tuple[tuple[int, int], ...]
    window_count: Table
    window_mean: Table
    window_error: Table
    since: int

    @property
    def uncertain(self) -> NDArray[np.bool_]:
        """[N, N] cells that lie within their standard error of zero."""
        return np.isfinite(self.mean) & (np.abs(self.mean) <= self.error)

    @property
    def kinds(self) -> dict[str, NDArray[np.bool_]]:
        """Kind -> [N, N] its cells; kinds without a cell are left out."""
        number = len(self.tasks)
        left = np.ones((number, number), dtype=bool)
        masks = dict.fromkeys(KINDS, np.zeros((number, number), dtype=bool))
        masks["itself"] = np.eye(number, dtype=bool)
        if self.clusters:
            inside, helping = np.zeros_like(left), np.zeros_like(left)
            for cluster, helpers in zip(self.clusters, self.helpers, strict=True):
                inside[np.ix_(cluster, cluster)] = True
                helping[np.ix_(helpers, cluster)] = True
            masks["its own cluster"], masks["a cluster that it helps"] = inside & ~masks["itself"], helping
        for mask in list(masks.values())[:-1]:
            left &= ~mask
        masks["others"] = left
        return {kind: mask for kind, mask in masks.items() if mask.any()}


def affinity_of(probe: Probe, groups: GroupsFile | None, *, by_cluster: bool = True) -> Affinity:
    """The probe's table as the groups were decided from it, by cluster where they are of its directions and it is wanted."""
    grouping = groups.grouping if groups is not None and set(groups.grouping.tasks) == set(probe.tasks) else None
    tasks, clusters, helpers = _order(probe.tasks, grouping if by_cluster else None)
    order = [probe.tasks.index(task) for task in tasks]
    since = _since(groups) if grouping is not None else 0
    spans = [tuple(map(int, window)) for window in probe.facts["windows"]]
    chosen = [w for w, (first, _) in enumerate(spans) if first >= since] or list(range(len(spans)))
    cells = np.ix_(chosen, order, order)
    counts, means, variances, estimates, estimate_counts = (
        probe.arrays[name][cells] for name in ("count", "mean", "variance", "estimate", "estimate_count")
    )
    count, mean, error = pooled(counts, means, variances)
    estimate, estimated = _weighted(estimate_counts, estimates)
    with np.errstate(invalid="ignore", divide="ignore"):
        window_error = np.sqrt(np.where(counts > 1, variances, np.nan) / counts)
    return Affinity(
        tasks, clusters, helpers, count, mean, error, np.where(estimated > 0, estimate, np.nan),
        tuple((first, last) for first, last in (spans[w] for w in chosen)),
        counts, np.where(counts > 0, means, np.nan), window_error, since if len(chosen) < len(spans) else 0,
    )  # fmt: skip


def pooled(counts: Table, means: Table, variances: Table) -> tuple[Table, Table, Table]:
    """Number, mean and standard error [N, N] of the measurements of all windows, [W, N, N], as of one sample (Chan et al.
    1983): what the windows differ by makes the error larger."""
    mean, count = _weighted(counts, means)
    inside = np.where(counts > 1, (counts - 1) * np.where(counts > 1, variances, 0.0), 0.0).sum(axis=0)
    between = (counts * np.where(counts > 0, means - mean, 0.0) ** 2).sum(axis=0)
    variance = np.where(count > 1, (inside + between) / np.maximum(count - 1, 1), np.nan)
    return count, np.where(count > 0, mean, np.nan), np.sqrt(variance / np.maximum(count, 1))


def rank_correlations(found: Affinity) -> dict[str, Any]:
    """Spearman's rank correlation of the estimates from gradients with the measured table: over all cells, and off the
    diagonal, where it is not the diagonal alone that makes it; None below three cells."""
    return {
        "all": rank_correlation(found.mean, found.estimate),
        "off_diagonal": rank_correlation(_off_diagonal(found.mean), _off_diagonal(found.estimate)),
        "cells": int(np.isfinite(found.estimate).sum()),
    }


def rank_correlation(a: Table, b: Table) -> float | None:
    """Over the cells that are finite in both; None below three of them, or where one table is constant."""
    from scipy.stats import rankdata

    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return None
    x, y = rankdata(a[both]), rankdata(b[both])
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else None


def window_rows(found: Affinity) -> list[dict[str, Any]]:
    """For each window the mean over the cells of each kind, with its standard error, and of the cells off the diagonal the
    shares that are positive and that lie within their standard error of zero. None where there is nothing to tell."""
    rows = []
    outside = ~np.eye(len(found.tasks), dtype=bool)
    for w, (first, last) in enumerate(found.windows):
        mean, error = found.window_mean[w], found.window_error[w]
        row: dict[str, Any] = {"first": first, "last": last, "mean": {}, "error": {}}
        for kind, mask in found.kinds.items():
            cells = mask & np.isfinite(mean)
            row["mean"][kind] = float(mean[cells].mean()) if cells.any() else None
            known = bool(cells.any()) and bool(np.isfinite(error[cells]).all())
            row["error"][kind] = float(np.sqrt((error[cells] ** 2).sum()) / cells.sum()) if known else None
        cells = outside & np.isfinite(mean)
        row["positive"] = float((mean[cells] > 0).mean()) if cells.any() else None
        sure = cells & np.isfinite(error)
        row["uncertain"] = float((np.abs(mean[sure]) <= error[sure]).mean()) if sure.any() else None
        rows.append(row)
    return rows


def affinity_numbers(probe: Probe, groups: GroupsFile | None) -> dict[str, Any]:
    """What the figures of an affinity probe show, to six digits; None for what was not measured."""
    found = affinity_of(probe, groups)
    names = {"estimate": "estimate_quantity"}  # what it is, for people; the table has its name
    facts = {names.get(key, key): value for key, value in probe.facts.items() if key != "windows"}

    def numbers(table: Table) -> list[list[float]]:
        return [[float(f"{value:.6g}") for value in row] for row in table]

    tables = {name: numbers(getattr(found, name)) for name in ("mean", "error", "count", "estimate")}
    return {
        "step": probe.step,
        **facts,
        "tasks": list(found.tasks),
        "convention": CONVENTION,
        "since": found.since,
        **tables,
        "within_standard_error_of_zero": int(found.uncertain.sum()),
        "rank_correlation": rank_correlations(found),
        "windows": window_rows(found),
    }


def _order(
    tasks: Sequence[str], grouping: Grouping | None
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    if grouping is None:
        return tuple(sorted(tasks, key=lambda task: task.split("-")[::-1])), (), ()
    names = [name for cluster in grouping.clusters for name in cluster]
    place = {name: i for i, name in enumerate(names)}
    clusters, helpers = (
        tuple(tuple(place[name] for name in group) for group in groups) for groups in (grouping.clusters, grouping.helpers)
    )
    return tuple(names), clusters, helpers


def _since(groups: GroupsFile | None) -> int:
    options = groups.about.get("options") if groups is not None else None
    since = options.get("since") if isinstance(options, dict) else None
    return since if isinstance(since, int) else 0


def _weighted(counts: Table, means: Table) -> tuple[Table, Table]:
    """Mean and number [N, N] over the windows; 0 where there is nothing."""
    count = counts.sum(axis=0)
    return (counts * np.where(counts > 0, means, 0.0)).sum(axis=0) / np.maximum(count, 1), count


def _off_diagonal(table: Table) -> Table:
    return np.where(np.eye(len(table), dtype=bool), np.nan, table)
