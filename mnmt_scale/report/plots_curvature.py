"""Curvature: top eigenvalues of the Hessian and agreement of gradients over the steps, and one probe in full."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .canvas import CLASS_COLORS, CLASS_STYLES, WIDTH, class_color, class_style, legend_below, line, panels_by_run, points_each
from .labels import signed_axis
from .probes import PAIRS, Probe
from .read import CLASSES, Points, RunData, keys_of, nested_series, resource_class
from .svg import FAINT, INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAIR_STYLES: dict[str, dict[str, Any]] = {
    **{f"{name}-{name}": dict(color=CLASS_COLORS[name], linestyle=CLASS_STYLES[name]) for name in CLASSES},
    "high-medium": dict(color="#6f6fd0", linestyle=(0, (5, 1.5, 1.5, 1.5, 1.5, 1.5))),
    "high-low": dict(color="#b5559b", linestyle="-"),
    "medium-low": dict(color="#8a7a2f", linestyle=(0, (2, 1.2))),
    "all": dict(color=INK, linestyle=(0, (1, 1.6))),
}
"""Colour and line style of each pair of resource classes."""


def eigenvalue_curves(runs: Sequence[RunData]) -> Figure | None:
    """The eigenvalue of largest magnitude, signed, over steps: a panel per run that has it; a thin line per direction, the
    median of each resource class bold."""
    curves = []
    for run in runs:
        tasks = keys_of(run.curvature, "directions")
        here = {task: nested_series(run.curvature, "directions", task, "top") for task in tasks}
        curves.append({task: curve for task, curve in here.items() if curve})
    shown = [(run, here) for run, here in zip(runs, curves, strict=True) if here]
    if not _over_steps(shown):
        return None
    figure, cells = panels_by_run(len(shown), height=2.9)
    for axes, (run, here) in zip(cells, shown, strict=True):
        _zero(axes)
        for task, curve in here.items():
            name = resource_class(run, task)
            style = dict(color=class_color(name), linestyle=class_style(name), linewidth=0.8, alpha=0.45)
            line(axes, curve, points_each(len(here)), **style)
        for name in CLASSES:
            mine = [curve for task, curve in here.items() if resource_class(run, task) == name]
            style = dict(color=class_color(name), linestyle=class_style(name))
            line(axes, median_curve(mine), linewidth=2.4, label=f"{name} resource", **style)
        axes.set_title(_title(run))
    signed_axis(cells[0], [value for _, here in shown for curve in here.values() for _, value in curve])
    cells[0].set_ylabel("top eigenvalue")
    _one_legend(figure, cells)
    return figure


def cosine_curves(runs: Sequence[RunData]) -> Figure | None:
    """Mean cosine between the gradients of directions over steps, all parameters: a panel per run that has it, a line per
    pair of resource classes."""
    shown = []
    for run in runs:
        here = {pair: nested_series(run.gradients, "groups", "all", "cosine", pair) for pair in PAIRS}
        if any(here.values()):
            shown.append((run, here))
    if not _over_steps(shown):
        return None
    figure, cells = panels_by_run(len(shown), height=2.9)
    for axes, (run, here) in zip(cells, shown, strict=True):
        _zero(axes)
        for pair, curve in here.items():
            line(axes, curve, linewidth=2.4 if pair == "high-low" else 1.5, label=pair, **PAIR_STYLES[pair])
        axes.set_title(_title(run))
    cells[0].set_ylabel("cosine of gradients")
    _one_legend(figure, cells)
    return figure


def curvature_bars(run: RunData) -> Figure | None:
    """The newest curvature probe: per direction the range from the smallest to the largest eigenvalue with a dot at the one
    of largest magnitude and, around it, where Lanczos says that an eigenvalue lies; below it the trace with its standard
    error, where it was measured."""
    import matplotlib
    from matplotlib.figure import Figure

    probe = run.probes.get("curvature")
    if probe is None or not np.isfinite(probe.arrays["top"]).any():
        return None
    order = ordered(run, probe)
    arrays = {key: np.where(np.isfinite(array), array, np.nan)[order] for key, array in probe.arrays.items()}
    tasks = [probe.tasks[i] for i in order]
    names = [class_in(run, probe, task) for task in tasks]
    traced = bool(np.isfinite(arrays["trace"]).any())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH if len(tasks) > 6 else 0.62 * WIDTH, 4.6 if traced else 3.2), layout="constrained")
        ratios = [1.5, 1] if traced else [1]
        cells = list(figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0])
    _eigenvalues(cells[0], arrays, names)
    if traced:
        _traces(cells[1], arrays, names)
    cells[-1].set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=5.5 if len(tasks) > 40 else 8)
    cells[-1].set_xlim(-0.8, len(tasks) - 0.2)
    for axes in cells:
        axes.grid(visible=False, axis="x")
    _class_key(figure, names)
    return figure


def _eigenvalues(axes: Axes, arrays: dict[str, np.ndarray], names: Sequence[str | None]) -> None:
    places, colors = range(len(names)), [class_color(name) for name in names]
    _zero(axes)
    heights = arrays["largest"] - arrays["smallest"]
    axes.bar(places, heights, _bar_width(names), arrays["smallest"], color=colors, alpha=0.45, linewidth=0)
    _whiskers(axes, arrays["top"], arrays["residual"] * np.abs(arrays["top"]))
    size = 16 if len(names) < 40 else 9
    axes.scatter(places, arrays["top"], s=size, color=colors, edgecolors=INK, linewidths=0.5, zorder=3)
    _room(axes)
    signed_axis(axes, _finite(arrays["smallest"], arrays["largest"], arrays["top"]))
    axes.set_ylabel("eigenvalues")


def _traces(axes: Axes, arrays: dict[str, np.ndarray], names: Sequence[str | None]) -> None:
    places, colors = range(len(names)), [class_color(name) for name in names]
    _zero(axes)
    axes.bar(places, arrays["trace"], _bar_width(names), color=colors, alpha=0.7, linewidth=0)
    _whiskers(axes, arrays["trace"], arrays["trace_error"])
    _room(axes)
    signed_axis(axes, _finite(arrays["trace"]))
    axes.set_ylabel("trace")


def _whiskers(axes: Axes, values: np.ndarray, error: np.ndarray) -> None:
    known = np.where(error >= 0, error, np.nan)
    axes.errorbar(range(len(values)), values, known, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)


def _bar_width(names: Sequence[str | None]) -> float:
    """Wider where there are few."""
    return min(0.62, 0.2 + 25.0 / max(len(names), 40))


def ordered(run: RunData, probe: Probe) -> list[int]:
    """Places of the probe's directions by class (best-resourced first, unknown last), then by size of the corpus."""
    rank = {name: i for i, name in enumerate(CLASSES)}

    def key(i: int) -> tuple[int, int, str]:
        task = probe.tasks[i]
        return rank.get(class_in(run, probe, task) or "", len(rank)), -run.sentences.get(task, -1), task

    return sorted(range(len(probe.tasks)), key=key)


def class_in(run: RunData, probe: Probe, task: str) -> str | None:
    """The class as the probe knew it; where it did not, as the run's settings have it."""
    return probe.classes.get(task) or resource_class(run, task)


def median_curve(curves: Sequence[Points]) -> Points:
    """Median over the curves at each step that any of them has."""
    values: dict[float, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            values.setdefault(step, []).append(value)
    return [(step, statistics.median(values[step])) for step in sorted(values)]


def _over_steps(shown: Sequence[tuple[RunData, dict[str, Points]]]) -> bool:
    """Whether there is more than one step to draw; a single probe has figures of its own."""
    return any(len(curve) > 1 for _, here in shown for curve in here.values())


def _title(run: RunData) -> str:
    """Name and method, short enough for a narrow panel."""
    name = run.name if len(run.name) <= 28 else run.name[:27] + "\N{HORIZONTAL ELLIPSIS}"
    return name if run.method in name else f"{name} ({run.method})"


def _zero(axes: Axes) -> None:
    axes.axhline(0, color=FAINT, linewidth=1.6, zorder=0)


def _room(axes: Axes) -> None:
    """Space above and below bars, so that a dot at the end of one is whole."""
    axes.use_sticky_edges = False
    axes.margins(y=0.07)


def _finite(*arrays: np.ndarray) -> list[float]:
    values = np.concatenate(arrays)
    return [float(value) for value in values[np.isfinite(values)]]


def _one_legend(figure: Figure, cells: Sequence[Axes]) -> None:
    """The legend of the panel that knows most."""
    legend_below(figure, max((axes.get_legend_handles_labels()[0] for axes in cells), key=len))


def _class_key(figure: Figure, names: Sequence[str | None]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=CLASS_COLORS[name], alpha=0.7, label=f"{name} resource") for name in CLASSES if name in names]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
