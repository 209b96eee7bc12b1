"""The figures of the report, each a pure function of the runs: ``list[RunData] -> Figure | None``.

None means that no run has the numbers; the page then says so. A run has one colour throughout. Figures are drawn on
``matplotlib.figure.Figure`` directly: no global state, no display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .labels import count, log_ticks, percent, plain, with_room
from .read import CLASSES, Points, RunData, class_bounds, drawn_tokens, normalised, resource_class, series, task_series
from .svg import FAINT, INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#3a86c8", "#d9792b", "#2f9e77", "#b5559b", "#8a7a2f", "#6f6fd0", "#c24b4b", "#4d9aa8")
"""One per run, in order; middling lightness, so that they stand out on white and on black."""

WIDTH = 9.6
"""Inches of a full-width figure."""

_MOST_POINTS = 300


def color_of(index: int) -> str:
    """The colour of the run at ``index``."""
    return COLORS[index % len(COLORS)]


def loss_curves(runs: Sequence[RunData]) -> Figure | None:
    """Nats per token over steps, all tasks together: training as a line, dev as a line with marks, the best one ringed."""
    if not any(run.train or run.valid for run in runs):
        return None
    figure, (axes,) = _figure(1, height=3.4)
    for i, run in enumerate(runs):
        train, dev = series(run.train, "nll") or series(run.train, "loss"), series(run.valid, "loss")
        _line(axes, train, color=color_of(i), alpha=0.55, linewidth=1.2, label=f"{run.name}: train")
        _line(axes, dev, color=color_of(i), marker="o", markersize=3.2, label=f"{run.name}: dev")
        if dev:
            best = min(dev, key=lambda point: point[1])
            axes.plot(*best, "o", markersize=9, markerfacecolor="none", color=color_of(i))
    _trim(axes, [curve for run in runs for curve in (series(run.train, "nll"), series(run.valid, "loss"))])
    axes.set(xlabel="step", ylabel="nats per target token")
    axes.legend(ncols=2)
    return figure


def class_curves(runs: Sequence[RunData]) -> Figure | None:
    """One panel a resource class: a thin line per direction, the mean over directions bold. Dev, else training."""
    sections = {c: [(i, r, [t for t in r.tasks if resource_class(r, t) == c]) for i, r in enumerate(runs)] for c in CLASSES}
    sections = {c: found for c, found in sections.items() if any(tasks for _, _, tasks in found)}
    if not sections or not any(run.train or run.valid for run in runs):
        return None
    figure, panels = _figure(len(sections), height=3.0, share=True)
    shown: list[Points] = []
    for axes, (name, found) in zip(panels, sections.items(), strict=True):
        number = max(len(tasks) for _, _, tasks in found)
        axes.set(title=f"{name} resource, {number} direction{'s' if number != 1 else ''}", xlabel="step")
        for i, run, tasks in found:
            rows = run.valid or run.train
            curves = [curve for task in tasks if (curve := task_series(rows, task, "nll"))]
            shown += curves
            for curve in curves:
                _line(axes, curve, color=color_of(i), alpha=0.3, linewidth=0.8)
            _line(axes, mean_curve(curves), color=color_of(i), linewidth=2.4, label=run.name)
    panels[0].set_ylabel("nats per target token")
    _trim(panels[0], shown)
    if len(runs) > 1:
        panels[-1].legend()
    return figure


def mean_curve(curves: Sequence[Points]) -> Points:
    """Mean over curves at the steps where all of those present so far have a value (a curve need not begin at once)."""
    steps = sorted({step for curve in curves for step, _ in curve})
    tables = [dict(curve) for curve in curves]
    means = []
    for step in steps:
        here = [table[step] for table in tables if step in table]
        if here and 2 * len(here) >= len(tables):
            means.append((step, sum(here) / len(here)))
    return means


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
    low, high = _range(drawn)
    last = max(x for curve in drawn for x, _ in curve) or 1
    columns = max(1, min(len(tasks), 10 if len(tasks) > 40 else 6))
    rows = math.ceil(len(tasks) / columns)
    figure, (axes,) = _figure(1, height=0.45 + (1.02 if columns > 6 else 1.35) * rows)
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
                    for x, y in _thin(curve, 60)
                ]
                _line(axes, placed, color=color_of(i), **style)
        final = [dev[-1][1] for _, _, dev in curves[task] if dev]
        if final:
            axes.text(x0 + 0.94, y0 + 0.13, f"{min(final):.2f}", fontsize=7.5, ha="right", color=INK, alpha=0.65)
    axes.set_title(f"each cell: steps 0 to {last:,}, {low:.1f} (bottom) to {high:.1f} (top) nats per token", loc="left")
    return figure


def size_against_bleu(runs: Sequence[RunData], scores: Sequence[dict[str, dict[str, Any]]]) -> Figure | None:
    """Training sentences (log) against BLEU, a dot per direction and run, named where there is room.

    Args:
        scores: per run, direction -> cell with ``bleu``.
    """
    dots = [
        (i, run.sentences[task], cell["bleu"], task)
        for i, (run, cells) in enumerate(zip(runs, scores, strict=True))
        for task, cell in cells.items()
        if cell.get("bleu") is not None and run.sentences.get(task)
    ]
    if not dots:
        return None
    figure, (axes,) = _figure(1, height=3.8)
    axes.set_xscale("log")
    for i, run in enumerate(runs):
        mine = [dot for dot in dots if dot[0] == i]
        axes.plot([d[1] for d in mine], [d[2] for d in mine], "o", color=color_of(i), alpha=0.8, markersize=5, label=run.name)
    log_ticks(axes.xaxis, count)
    for bound in (class_bounds(runs[0]).low_below, class_bounds(runs[0]).high_from):
        if axes.get_xlim()[0] < bound < axes.get_xlim()[1]:
            axes.axvline(bound, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
    for _, size, bleu, task in with_room(dots, axes):
        axes.annotate(task, (size, bleu), xytext=(5, 3), textcoords="offset points", fontsize=7.5)
    axes.set(xlabel="training sentences (log scale)", ylabel="BLEU")
    if len(runs) > 1:
        axes.legend()
    return figure


def sampling(run: RunData, color: str) -> Figure | None:
    """Directions by size: share of the sentences, sampling share p, share of the target tokens really trained on."""
    tasks = by_size([run])
    size = normalised(run.sentences)
    drawn = normalised(drawn_tokens(run))
    if not run.shares or not size:
        return None
    figure, (axes,) = _figure(1, height=3.3)
    places = range(len(tasks))
    axes.set_yscale("log")
    for x, task in zip(places, tasks, strict=True):
        here = [v for v in (size.get(task, 0), run.shares.get(task, 0), drawn.get(task, 0)) if v > 0]
        if here:
            axes.plot([x, x], [min(here), max(here)], color=FAINT, linewidth=1.5, zorder=1)
    for table, label, style in (
        (size, "share of the sentences", dict(marker="s", markerfacecolor="none", color=INK, alpha=0.6)),
        (run.shares, "sampling share p", dict(marker="_", markersize=11, markeredgewidth=2, color=color)),
        (drawn, "share of the tokens trained on", dict(marker="o", color=color, alpha=0.85)),
    ):
        shown = [(x, table[task]) for x, task in zip(places, tasks, strict=True) if table.get(task, 0) > 0]
        if shown:
            axes.plot(
                [x for x, _ in shown], [y for _, y in shown], linestyle="none", **{"markersize": 4.5, **style}, label=label
            )
    log_ticks(axes.yaxis, percent)
    small = len(tasks) > 40
    axes.set_xticks(list(places), tasks, rotation=90, fontsize=5.5 if small else 8)
    axes.set(ylabel="share (log scale)", xlim=(-0.8, len(tasks) - 0.2))
    axes.grid(visible=False, axis="x")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def speed(runs: Sequence[RunData]) -> Figure | None:
    """Target tokens per second of each logging interval, over steps."""
    return _one_panel(runs, "tokens_per_second", "target tokens per second", zero=True)


def learning_rate(runs: Sequence[RunData]) -> Figure | None:
    """Learning rate over steps."""
    return _one_panel(runs, "learning_rate", "learning rate")


def gradient_norm(runs: Sequence[RunData]) -> Figure | None:
    """Global gradient norm before clipping (log), over steps."""
    return _one_panel(runs, "grad_norm", "gradient norm (log scale)", log=True)


def by_size(runs: Sequence[RunData]) -> list[str]:
    """Directions of all runs, largest training corpus first, unknown sizes last."""
    names = list(dict.fromkeys(task for run in runs for task in run.tasks))
    sizes = {task: max(run.sentences.get(task, -1) for run in runs) for task in names}
    return sorted(names, key=lambda task: (-sizes[task], task))


def _one_panel(runs: Sequence[RunData], key: str, label: str, *, zero: bool = False, log: bool = False) -> Figure | None:
    curves = [[(x, y) for x, y in series(run.train, key) if y > 0 or not log] for run in runs]
    if not any(curves):
        return None
    figure, (axes,) = _figure(1, height=2.5, width=WIDTH / 2.5)
    if log:
        axes.set_yscale("log")
    for i, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        _line(axes, curve, color=color_of(i), linewidth=1.2, label=run.name)
    if log:
        log_ticks(axes.yaxis, plain)
    if zero:
        axes.set_ylim(bottom=0)
    axes.set(xlabel="step", title=label)
    if len(runs) > 1:
        axes.legend()
    return figure


def _figure(panels: int, *, height: float, width: float = WIDTH, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with ``panels`` side by side, in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, panels, sharey=share, squeeze=False)
    return figure, list(axes[0])


def _line(axes: Axes, curve: Points, **style: Any) -> None:
    if curve:
        thin = _thin(curve, _MOST_POINTS)
        if len(thin) == 1 and "marker" not in style:
            style |= {"marker": "o", "markersize": 3.2}
        axes.plot([x for x, _ in thin], [y for _, y in thin], **style)


def _thin(curve: Points, most: int) -> Points:
    """At most ``most`` points, evenly chosen, first and last kept; the JSON beside the page has them all."""
    if len(curve) <= most:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]


def _range(curves: Sequence[Points]) -> tuple[float, float]:
    """Bounds of a loss axis: the first few high losses of a training must not squeeze the rest, but every curve's end is
    inside."""
    ordered = sorted(y for curve in curves for _, y in curve)
    ends = [curve[-1][1] for curve in curves if curve]
    low, high = ordered[0], max(ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))], *ends)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _trim(axes: Axes, curves: Sequence[Points]) -> None:
    if sum(map(len, curves)) > 20:
        low, high = _range(curves)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
