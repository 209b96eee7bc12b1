"""Figures of an affinity probe: the table as a map, its windows over the steps, measured against estimated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .affinity import Affinity, rank_correlations, window_rows
from .canvas import WIDTH, legend_below, panels
from .labels import signed_axis
from .maps import bare, draw_cells, draw_scale, readable
from .svg import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = "RdBu"
"""Red harms, blue helps; both can be told apart under the common kinds of colour blindness."""

KIND_STYLES: dict[str, dict[str, Any]] = {
    "itself": dict(color=INK, linestyle="-", marker="s"),
    "its own cluster": dict(color="#3a86c8", linestyle="-", marker="o"),
    "a cluster that it helps": dict(color="#2f9e77", linestyle=(0, (6, 2, 1.5, 2)), marker="^"),
    "others": dict(color="#d9792b", linestyle=(0, (4, 1.8)), marker="v"),
}
"""Colour, line and mark of each of ``affinity.KINDS``."""

VALUES_UP_TO, _HELPERS_UP_TO = 12, 60
"""Directions up to which cells hold their values; up to which helpers are outlined."""

_SHAPES_UP_TO = 400
"""Dots up to which they are drawn as shapes; beyond, they are a picture inside the page, which stays small."""


def affinity_map(found: Affinity) -> Figure | None:
    """[N, N] mean affinity, row = trained, column = affected: clusters boxed, helpers outlined, cells within their standard
    error of zero dotted, never measured ones grey."""
    number = len(found.tasks)
    if number < 2 or not np.isfinite(found.mean).any():
        return None
    limit, unit = color_limit(found)
    side = min(WIDTH, max(4.8, 2.3 + 0.36 * number))
    figure, (axes,) = panels(1, height=side * 0.86, width=side)
    image = draw_cells(axes, found.mean, COLORS, (-limit, limit))
    axes.set_aspect("equal")
    size = 8.0 if number <= 20 else max(4.2, min(7.0, 400.0 / number))
    axes.set_xticks(range(number), found.tasks, rotation=90, fontsize=size)
    axes.set_yticks(range(number), found.tasks, fontsize=size)
    axes.tick_params(length=0)
    axes.set(xlabel="affected direction (column)", ylabel="trained direction (row)")
    few = number <= VALUES_UP_TO
    if few:
        for (j, i), value in np.ndenumerate(found.mean):
            if np.isfinite(value):
                text = f"{round(value / unit, 1) + 0.0:.1f}"
                axes.text(i, j, text, ha="center", va="center", fontsize=7, color=readable(image, value))
    rows, columns = np.nonzero(found.uncertain)
    inks = [readable(image, value) for value in found.mean[rows, columns]]
    dots = 4.0 if few else max(0.6, min(4.0, (130.0 / number) ** 2 / 9))
    away = 0.34 if few else 0.0
    axes.scatter(columns + away, rows + away, s=dots, c=inks, linewidths=0, zorder=3, rasterized=len(rows) > _SHAPES_UP_TO)
    _boxes(axes, found)
    bare(axes)
    draw_scale(figure, axes, image, limit=limit, fraction=0.04, shrink=0.6)
    return figure


def color_limit(found: Affinity) -> tuple[float, float]:
    """Affinity at which the colours end (the 99th percentile off the diagonal, whose cells are far stronger where directions
    share little), and the power of ten in which cells hold their values."""
    outside = np.abs(found.mean[~np.eye(len(found.tasks), dtype=bool)])
    for sizes in (outside, np.abs(found.mean)):
        sizes = sizes[np.isfinite(sizes)]
        limit = float(np.quantile(sizes, 0.99)) if len(sizes) else 0.0
        if limit > 0:
            return limit, 10.0 ** math.floor(math.log10(limit))
    return 1.0, 1.0


def _boxes(axes: Axes, found: Affinity) -> None:
    """Clusters along the diagonal, and of each helper its row in the columns of the cluster that it helps."""
    from matplotlib.patches import Rectangle

    for cluster, helpers in zip(found.clusters, found.helpers, strict=True):
        left, wide = min(cluster) - 0.5, len(cluster)
        axes.add_patch(Rectangle((left, left), wide, wide, fill=False, edgecolor="#111111", linewidth=1.5, zorder=4))
        for helper in helpers if len(found.tasks) <= _HELPERS_UP_TO else ():
            place, line = (left + 0.06, helper - 0.44), dict(linewidth=1.1, linestyle=(0, (3, 1.5)))
            axes.add_patch(Rectangle(place, wide - 0.12, 0.88, fill=False, edgecolor="#1b6b4f", zorder=4, **line))


def window_curves(found: Affinity) -> Figure | None:
    """Left: mean affinity of each kind of cell within each window of the training, with its standard error. Right: of the
    cells off the diagonal the share that is positive, and that lies within its standard error of zero."""
    rows = window_rows(found)
    if len(rows) < 2 or not np.isfinite(found.window_mean).any():
        return None
    figure, (left, right) = panels(2, height=3.0, width_ratios=[1.4, 1])
    places = [(row["first"] + row["last"]) / 2 for row in rows]
    left.axhline(0, color=FAINT, linewidth=1.6, zorder=0)
    drawn = []
    for kind in found.kinds:
        points = [(x, row["mean"][kind], row["error"][kind] or 0.0) for x, row in zip(places, rows, strict=True)]
        points = [point for point in points if point[1] is not None]
        drawn += [y for _, y, _ in points]
        x, y, error = ([point[n] for point in points] for n in range(3))
        left.errorbar(x, y, error, label=kind, markersize=4, elinewidth=1, capsize=2, **KIND_STYLES[kind])
    signed_axis(left, drawn)
    left.set(xlabel="step", title="mean affinity to ... within a window")
    for key, name, style in (
        ("positive", "positive cells", dict(color="#b5559b", marker="D")),
        ("uncertain", "cells within their standard error of zero", dict(color="#8a7a2f", marker="x", linestyle=(0, (4, 1.8)))),
    ):
        shown = [(x, 100 * row[key]) for x, row in zip(places, rows, strict=True) if row[key] is not None]
        right.plot([x for x, _ in shown], [y for _, y in shown], markersize=4, label=name, **style)
    right.set(xlabel="step", ylim=(-3, 103), title="% of the cells off the diagonal")
    legend_below(figure, [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]])
    return figure


def estimates(found: Affinity) -> Figure | None:
    """Estimate from gradients against measured affinity, a dot per cell off the diagonal with the standard error of what was
    measured."""
    outside = ~np.eye(len(found.tasks), dtype=bool)
    both = np.isfinite(found.estimate) & np.isfinite(found.mean) & outside
    if both.sum() < 3:
        return None
    figure, (axes,) = panels(1, height=3.6, width=WIDTH * 0.55)
    axes.axhline(0, color=FAINT, linewidth=1.4, zorder=0)
    axes.axvline(0, color=FAINT, linewidth=1.4, zorder=0)
    many = bool(both.sum() > _SHAPES_UP_TO)
    for kind, mask in found.kinds.items():
        cells = both & mask
        style = {key: KIND_STYLES[kind][key] for key in ("color", "marker")}
        error = np.nan_to_num(found.error[cells])
        x, y = found.estimate[cells], found.mean[cells]
        if cells.any():
            axes.errorbar(x, y, error, fmt="none", ecolor=style["color"], elinewidth=0.7, alpha=0.35, rasterized=many)
            axes.plot(x, y, linestyle="none", markersize=3.4, alpha=0.8, label=f"on {kind}", rasterized=many, **style)
    rho = rank_correlations(found)["off_diagonal"]
    text = "" if rho is None else f"rank correlation {rho:.2f}"
    axes.set(xlabel="estimated from gradients", ylabel="measured affinity", title=text)
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return figure
