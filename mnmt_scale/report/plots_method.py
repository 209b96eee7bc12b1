"""What a training method decided over the steps: the weights of the directions and its own scalars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .canvas import WIDTH, class_color, class_style, held_mean, line, points_each
from .labels import log_where_wide, spread_labels
from .read import CLASSES, Points, RunData, keys_of, nested_series, resource_class, series
from .svg import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALARS = {
    "lambda_c": "curvature multiplier lambda_c",
    "curvature": "curvature alpha' G alpha",
    "l_grad": "objective L_grad",
    "half_chi_square": "half the chi-square divergence",
}
"""Scalars of a method's lines that have a longer name; they come first, the others follow in the order of the log."""

_COUNTERS = ("alpha_updates",)

MOST_SCALARS = 6
"""Beside the weights; what a method logs beyond that is in the JSON alone."""

_NAMED = 12
"""Up to this many directions are named at the ends of their lines."""

_SAMPLING = ("multidds", "chi_ibr", "ftac")
"""Methods that decide how often a direction is seen."""


def scalar_names(run: RunData) -> list[str]:
    """Names of the numbers in the method's lines besides its weights; not mere counters, nor what was 0 throughout."""
    known = ("kind", "time", "step", "name", "weights", *_COUNTERS)
    found = [key for key in dict.fromkeys(key for row in run.observed for key in row) if key not in known]
    found = [key for key in found if any(value for _, value in series(run.observed, key))]
    return [key for key in SCALARS if key in found] + [key for key in found if key not in SCALARS]


def weight_curves(run: RunData) -> dict[str, Points]:
    """Direction -> (step, weight) where the method weighed it; the order is the log's."""
    curves = {task: nested_series(run.observed, "weights", task) for task in keys_of(run.observed, "weights")}
    return {task: curve for task, curve in curves.items() if curve}


def method_curves(run: RunData) -> Figure | None:
    """Weights over steps, a line per direction in the colour of its class and the mean of each class bold; beside them the
    method's scalars, each on its own scale."""
    import matplotlib
    from matplotlib.figure import Figure

    weights, scalars = weight_curves(run), scalar_names(run)[:MOST_SCALARS]
    if not weights and not scalars:
        return None
    columns = (len(scalars) + 1) // 2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        ratios = ([2.1] if weights else []) + [1.0] * columns
        grid = figure.add_gridspec(min(2, max(len(scalars), 1)), len(ratios), width_ratios=ratios)
        if weights:
            _weights(figure.add_subplot(grid[:, 0]), run, weights)
        for n, name in enumerate(scalars):
            axes = figure.add_subplot(grid[n % 2, n // 2 + bool(weights)])
            _scalar(axes, name, series(run.observed, name), last=n >= len(scalars) - 2 or n % 2 == 1)
    return figure


def _weights(axes: Axes, run: RunData, weights: dict[str, Points]) -> None:
    classes = {task: resource_class(run, task) for task in weights}
    few = len(weights) <= _NAMED
    for task, curve in weights.items():
        style = dict(linewidth=1.2, alpha=0.85) if few else dict(linewidth=0.6, alpha=0.4)
        name = classes[task]
        line(axes, curve, points_each(len(weights)), color=class_color(name), linestyle=class_style(name), **style)
        if few:
            drawn = nested_series(run.observed, "drawn", task)
            line(axes, drawn, points_each(len(weights)), color=class_color(name), linestyle=":", linewidth=1.0, alpha=0.7)
    for name in CLASSES:
        mine = [curve for task, curve in weights.items() if classes[task] == name]
        label = f"{name}, mean of {len(mine)}" if len(mine) > 1 else name
        style = dict(linewidth=2.8) if len(mine) > 1 else dict(linewidth=1.2)
        line(axes, held_mean(mine), color=class_color(name), linestyle=class_style(name), label=label, **style)
    what = "sampling share" if run.method in _SAMPLING else "weight"
    axes.set(xlabel="step", title=f"{what} of each direction, {run.method}")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if few:
        _name_ends(axes, weights, classes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.08), ncols=3, borderaxespad=0, columnspacing=1.4)


def _name_ends(axes: Axes, weights: dict[str, Points], classes: dict[str, str | None]) -> None:
    """The directions' names to the right of their lines, kept apart."""
    low, high = axes.get_ylim()
    tasks = list(weights)
    places = spread_labels([(weights[task][-1][1] - low) / (high - low) for task in tasks], 0.052)
    for task, place in zip(tasks, places, strict=True):
        axes.text(1.015, place, task, transform=axes.transAxes, fontsize=7.5, va="center", color=class_color(classes[task]))


def _scalar(axes: Axes, name: str, curve: Points, last: bool) -> None:
    line(axes, curve, color="#6f6fd0", linewidth=1.3)
    axes.set_title(SCALARS.get(name, name.replace("_", " ")), fontsize=8.5)
    log_where_wide(axes, [value for _, value in curve])
    if last:
        axes.set_xlabel("step")
