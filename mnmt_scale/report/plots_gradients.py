"""How alike the gradients of the directions are, from a gradient probe: by group of parameters and pair to pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .canvas import WIDTH, legend_below, panels
from .maps import bare, draw_cells, draw_scale, readable, short
from .plots_curvature import PAIR_STYLES, class_in, ordered
from .probes import PAIRS, Probe, Spread, spreads
from .read import CLASSES, RunData
from .svg import FAINT, INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSINES, MAGNITUDES = "RdBu", "Purples"
"""Colour maps: red opposes, blue agrees; both can be told apart under the common kinds of colour blindness."""

GROUPS = ("E.SA", "E.FC", "E.LN", "D.SA", "D.EA", "D.FC", "D.LN", "embeddings")
"""Groups of parameters in the order in which they are drawn."""

_VALUES_UP_TO = 12
"""Directions up to which the cells of the N x N map hold their values."""

Table = dict[str, dict[str, Spread]]


def group_spreads(run: RunData, measure: str) -> Table:
    """Group of parameters -> pair of resource classes -> mean and spread of ``cosine`` or ``magnitude`` in the newest probe,
    the groups in the order of the paper's figures, others and at last ``all`` parameters after them."""
    probe = run.probes.get("gradients")
    if probe is None:
        return {}
    kinds = [class_in(run, probe, task) for task in probe.tasks]
    found = {group: spreads(probe.arrays[measure][g], kinds) for g, group in enumerate(probe.groups)}
    places = {**dict.fromkeys(found, len(GROUPS)), **{group: n for n, group in enumerate(GROUPS)}, "all": len(GROUPS) + 1}
    names = sorted(found, key=lambda group: places[group])
    return {group: found[group] for group in names if found[group]}


def group_maps(run: RunData, runs: Sequence[RunData]) -> Figure | None:
    """Two maps, groups of parameters by pairs of classes: mean cosine and mean magnitude similarity, with the standard
    deviation over the pairs of directions. ``runs``: those of the page, whose maps have the same colours."""
    import matplotlib
    from matplotlib.figure import Figure

    cosines, magnitudes = group_spreads(run, "cosine"), group_spreads(run, "magnitude")
    if not cosines:
        return None
    rows = sum(any(pair in cells for cells in cosines.values()) for pair in PAIRS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2 * (0.34 * rows + 0.62)), layout="constrained")
        above, below = figure.subplots(2, 1)
    limit = max([0.05, *(abs(mean) for mean in _means(runs, "cosine"))])
    least = min([0.9, *(math.floor(10 * mean) / 10 for mean in _means(runs, "magnitude"))])
    _map(figure, above, cosines, COSINES, (-limit, limit), "cosine of gradients")
    _map(figure, below, magnitudes, MAGNITUDES, (least, 1.0), "similarity of gradient norms")
    return figure


def _means(runs: Sequence[RunData], measure: str) -> list[float]:
    return [s.mean for run in runs for cells in group_spreads(run, measure).values() for s in cells.values()]


def group_dots(run: RunData) -> Figure | None:
    """Per group of parameters and pair of classes the mean cosine as a dot, one standard deviation over the pairs of
    directions as a bar and the extremes as a thin line."""
    table = group_spreads(run, "cosine")
    pairs = [pair for pair in PAIRS if any(pair in cells for cells in table.values())]
    if not pairs or max(s.pairs for cells in table.values() for s in cells.values()) < 2:
        return None
    figure, (axes,) = panels(1, height=3.2)
    axes.axhline(0, color=FAINT, linewidth=1.6, zorder=0)
    apart = 0.72 / len(pairs)
    for n, pair in enumerate(pairs):
        found = [
            (x + (n - (len(pairs) - 1) / 2) * apart, cells[pair]) for x, cells in enumerate(table.values()) if pair in cells
        ]
        color, places = PAIR_STYLES[pair]["color"], [x for x, _ in found]
        means, deviations = [s.mean for _, s in found], [s.deviation for _, s in found]
        axes.vlines(places, [s.low for _, s in found], [s.high for _, s in found], color=color, linewidth=0.7, alpha=0.7)
        axes.errorbar(places, means, deviations, fmt="none", ecolor=color, elinewidth=3.4, alpha=0.4)
        axes.plot(places, means, "o", color=color, markersize=4, label=f"{pair} ({max(s.pairs for _, s in found):,})")
    axes.set_xticks(range(len(table)), list(table))
    axes.set(xlim=(-0.55, len(table) - 0.45), ylabel="cosine of gradients")
    axes.grid(visible=False, axis="x")
    for x in range(1, len(table)):
        axes.axvline(x - 0.5, color=FAINT, linewidth=0.6)
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return figure


def direction_map(run: RunData) -> Figure | None:
    """Cosine of every pair of directions over all parameters, by class and size, classes set off by lines."""
    probe = run.probes.get("gradients")
    if probe is None or "all" not in probe.groups or len(probe.tasks) < 2:
        return None
    order = ordered(run, probe)
    matrix = probe.arrays["cosine"][probe.groups.index("all")][np.ix_(order, order)].copy()
    np.fill_diagonal(matrix, np.nan)
    if not np.isfinite(matrix).any():
        return None
    tasks, number = [probe.tasks[i] for i in order], len(order)
    side = min(WIDTH, max(4.6, 2.2 + 0.34 * number))
    figure, (axes,) = panels(1, height=side * 0.93, width=side)
    limit = max(0.05, float(np.nanquantile(np.abs(matrix), 0.99)))
    image = draw_cells(axes, matrix, COSINES, (-limit, limit))
    axes.set_aspect("equal")
    size = 8.0 if number <= 20 else max(4.2, min(7.0, 400.0 / number))
    axes.set_xticks(range(number), tasks, rotation=90, fontsize=size)
    axes.set_yticks(range(number), tasks, fontsize=size)
    axes.tick_params(length=0)
    if number <= _VALUES_UP_TO:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                axes.text(j, i, short(value), ha="center", va="center", fontsize=7, color=readable(image, value))
    _borders(axes, run, probe, tasks)
    bare(axes)
    draw_scale(figure, axes, image, limit=limit, fraction=0.04, shrink=0.6)
    return figure


def _map(figure: Figure, axes: Axes, table: Table, colors: str, span: tuple[float, float], title: str) -> None:
    """One map with its values in the cells."""
    pairs = [pair for pair in PAIRS if any(pair in cells for cells in table.values())]
    matrix = np.array([[cells[pair].mean if pair in cells else np.nan for cells in table.values()] for pair in pairs])
    image = draw_cells(axes, matrix, colors, span)
    small = 7.0 if len(table) <= 9 else 6.2
    for x, cells in enumerate(table.values()):
        for y, pair in enumerate(pairs):
            if pair in cells:
                spread = cells[pair]
                text = short(spread.mean) + (f" \N{PLUS-MINUS SIGN}{spread.deviation:.2f}" if spread.pairs > 1 else "")
                axes.text(x, y, text, ha="center", va="center", fontsize=small, color=readable(image, spread.mean))
    counts = {pair: max(cells[pair].pairs for cells in table.values() if pair in cells) for pair in pairs}
    axes.set_yticks(range(len(pairs)), [f"{pair} ({counts[pair]:,})" for pair in pairs])
    axes.set_xticks(range(len(table)), list(table))
    axes.tick_params(length=0)
    axes.set_title(title)
    bare(axes)
    draw_scale(figure, axes, image, limit=span[1], fraction=0.025)


def _borders(axes: Axes, run: RunData, probe: Probe, tasks: Sequence[str]) -> None:
    """Lines between resource classes and their names above."""
    names = [class_in(run, probe, task) for task in tasks]
    for name in (*CLASSES, None):
        mine = [i for i, other in enumerate(names) if other == name]
        if not mine:
            continue
        low, high = mine[0] - 0.5, mine[-1] + 0.5
        if high < len(tasks) - 0.5:
            axes.axhline(high, color="#111111", linewidth=1.1)
            axes.axvline(high, color="#111111", linewidth=1.1)
        axes.text((low + high) / 2, -0.75, name or "unknown", ha="center", va="bottom", color=INK, fontsize=8.5)
