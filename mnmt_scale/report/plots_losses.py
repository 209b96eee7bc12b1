"""Figures of losses: all together, by resource class, against the tokens trained on, each direction by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .canvas import by_size, color_of, held_mean, legend_below, line, panels, points_each, thin, trim, value_range
from .labels import count
from .read import CLASSES, Points, RunData, resource_class, series, task_series
from .svg import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRAIN: dict[str, Any] = {"linestyle": (0, (3, 1.6)), "linewidth": 1.3, "alpha": 0.9}
_THIN_RUNS = 2
"""Up to this many runs, single directions are drawn beside the means."""


def loss_curves(runs: Sequence[RunData]) -> Figure | None:
    """Nats per token over steps, all tasks together: training as a line, dev as a line with marks, the best one ringed."""
    if not any(run.train or run.valid for run in runs):
        return None
    figure, (axes,) = panels(1, height=3.4)
    for i, run in enumerate(runs):
        train, dev = series(run.train, "nll") or series(run.train, "loss"), series(run.valid, "loss")
        line(axes, train, color=color_of(i), alpha=0.55, linewidth=1.2, label=f"{run.name}: train")
        line(axes, dev, color=color_of(i), marker="o", markersize=3.2, label=f"{run.name}: dev")
        if dev:
            best = min(dev, key=lambda point: point[1])
            axes.plot(*best, "o", markersize=9, markerfacecolor="none", color=color_of(i))
    trim(axes, [curve for run in runs for curve in (series(run.train, "nll"), series(run.valid, "loss"))])
    axes.set(xlabel="step", ylabel="nats per target token")
    if len(runs) > 3:
        legend_below(figure, axes.get_legend_handles_labels()[0])
    else:
        axes.legend(ncols=2)
    return figure


def class_curves(runs: Sequence[RunData]) -> Figure | None:
    """One panel a resource class: the mean over its directions, training dashed and dev solid, of every run; thin lines are
    single directions on dev (on training where there is no dev), while there are few runs."""
    found = by_class(runs)
    if not found or not any(run.train or run.valid for run in runs):
        return None
    figure, cells = panels(len(found), height=3.4, share=True)
    shown: list[Points] = []
    for axes, (name, members) in zip(cells, found.items(), strict=True):
        number = max(map(len, members))
        axes.set(title=f"{name} resource, {number} direction{'s' if number != 1 else ''}", xlabel="step")
        for i, (run, tasks) in enumerate(zip(runs, members, strict=True)):
            train, dev = ([c for task in tasks if (c := task_series(rows, task, "nll"))] for rows in (run.train, run.valid))
            shown += train + dev
            if len(runs) <= _THIN_RUNS:
                for curve in dev or train:
                    line(axes, curve, points_each(len(tasks)), color=color_of(i), alpha=0.3, linewidth=0.8)
            line(axes, held_mean(train), color=color_of(i), **_TRAIN)
            line(axes, held_mean(dev), color=color_of(i), linewidth=2.4)
    cells[0].set_ylabel("nats per target token")
    trim(cells[0], shown)
    _key(figure, runs)
    return figure


def token_curves(runs: Sequence[RunData]) -> Figure | None:
    """Dev loss against the target tokens trained on until then: one panel for all directions, one a resource class."""
    overall = [against_tokens(run, series(run.valid, "loss")) for run in runs]
    if not any(len(curve) > 1 for curve in overall):
        return None
    drawn = {"all directions": overall}
    for name, members in by_class(runs).items():
        curves = []
        for run, tasks in zip(runs, members, strict=True):
            dev = [curve for task in tasks if (curve := task_series(run.valid, task, "nll"))]
            curves.append(against_tokens(run, held_mean(dev)))
        if any(curves):
            drawn[f"{name} resource"] = curves
    figure, cells = panels(len(drawn), height=3.0, share=True)
    for axes, (name, curves) in zip(cells, drawn.items(), strict=True):
        axes.set(title=name, xlabel="target tokens trained on")
        for i, curve in enumerate(curves):
            line(axes, curve, color=color_of(i), marker="o", markersize=3, label=runs[i].name)
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        axes.xaxis.get_major_locator().set_params(nbins=5)
    cells[0].set_ylabel("dev nats per token")
    trim(cells[0], [curve for curves in drawn.values() for curve in curves])
    if len(runs) > 1:
        legend_below(figure, cells[0].get_legend_handles_labels()[0])
    return figure


def by_class(runs: Sequence[RunData]) -> dict[str, list[list[str]]]:
    """Resource classes that occur, best-resourced first: per run the directions of the class."""
    members = {name: [[t for t in run.tasks if resource_class(run, t) == name] for run in runs] for name in CLASSES}
    return {name: lists for name, lists in members.items() if any(lists)}


def against_tokens(run: RunData, curve: Points) -> Points:
    """(step, value) as (target tokens trained on until that step, value): exact at logged steps, linear between them. What
    lies after the last logged step is left out."""
    known = [(0.0, 0.0), *series(run.train, "tokens")]
    points = []
    for step, value in curve:
        after = next((i for i, (s, _) in enumerate(known) if s >= step), None)
        if after is None or len(known) == 1:
            continue
        (s0, t0), (s1, t1) = known[max(after - 1, 0)], known[after]
        points.append((t0 + (t1 - t0) * (step - s0) / (s1 - s0) if s1 > s0 else t1, value))
    return points


def _key(figure: Figure, runs: Sequence[RunData]) -> None:
    """What colours and line styles mean, under the panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color_of(i), linewidth=2.4, label=run.name) for i, run in enumerate(runs)]
    styles = [Line2D([], [], color=INK, label="training", **_TRAIN), Line2D([], [], color=INK, linewidth=2.4, label="dev")]
    handles = styles + (handles if len(runs) > 1 else [])
    legend_below(figure, handles)


def small_multiples(runs: Sequence[RunData]) -> Figure | None:
    """Every direction in a cell of its own, all on the same scales: training thin, dev bold, the last dev value beside
    the name. Drawn as one plot in cell coordinates, so that a hundred directions stay quick and small."""
    tasks = by_size(runs)
    curves = {
        task: [(i, task_series(r.train, task, "nll"), task_series(r.valid, task, "nll")) for i, r in enumerate(runs)]
        for task in tasks
    }
    drawn = [curve for cells in curves.values() for _, train, dev in cells for curve in (train, dev) if curve]
    if not drawn:
        return None
    low, high = value_range(drawn)
    last = max(x for curve in drawn for x, _ in curve) or 1
    columns = max(1, min(len(tasks), 10 if len(tasks) > 40 else 6))
    rows = math.ceil(len(tasks) / columns)
    figure, (axes,) = panels(1, height=0.45 + (1.02 if columns > 6 else 1.35) * rows)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.axis("off")
    for n, task in enumerate(tasks):
        x0, y0 = n % columns, n // columns
        axes.plot([x0 + 0.04, x0 + 0.94], [y0 + 0.97] * 2, color=FAINT, linewidth=0.8)
        axes.text(x0 + 0.04, y0 + 0.13, task, fontsize=7.5)
        for i, train, dev in curves[task]:
            for curve, style in ((train, dict(alpha=0.5, linewidth=0.8)), (dev, dict(linewidth=1.7))):
                placed = [
                    (x0 + 0.04 + 0.9 * x / last, y0 + 0.97 - 0.78 * min(max((y - low) / (high - low), 0.0), 1.0))
                    for x, y in thin(curve, 60)
                ]
                line(axes, placed, color=color_of(i), **style)
        final = [dev[-1][1] for _, _, dev in curves[task] if dev]
        if final:
            axes.text(x0 + 0.94, y0 + 0.13, f"{min(final):.2f}", fontsize=7.5, ha="right", color=INK, alpha=0.65)
    axes.set_title(f"each cell: steps 0 to {last:,}, {low:.1f} (bottom) to {high:.1f} (top) nats per token", loc="left")
    return figure
