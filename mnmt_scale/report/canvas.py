"""What all figures share: sizes, colours, panels, lines that stay small, axes that one bad value cannot squeeze.

Figures are drawn on ``matplotlib.figure.Figure`` directly: no global state, no display. A run has one colour throughout
the page, a resource class another set of colours and, since colours alone do not tell everybody, a line style.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .read import Points, RunData
from .svg import INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#3a86c8", "#d9792b", "#2f9e77", "#b5559b", "#8a7a2f", "#6f6fd0", "#c24b4b", "#4d9aa8")
"""One per run, in order; middling lightness, so that they stand out on white and on black."""

CLASS_COLORS = {"high": "#3a86c8", "medium": "#2f9e77", "low": "#d9792b"}
"""Resource classes: blue, green and orange that differ under the common kinds of colour blindness too."""

CLASS_STYLES: dict[str, Any] = {"high": "-", "medium": (0, (6, 2, 1.5, 2)), "low": (0, (4, 1.8))}
"""Line styles that go with ``CLASS_COLORS``."""

WIDTH = 9.6
"""Inches of a full-width figure."""

MOST_POINTS = 300
"""Of one curve; see ``points_each`` where a panel has many."""

_MOST_PANELS = 4
"""Side by side, where each shows a run."""


def color_of(index: int) -> str:
    """The colour of the run at ``index``."""
    return COLORS[index % len(COLORS)]


def class_color(name: str | None) -> str:
    """The colour of a resource class; ink where the class is not known."""
    return CLASS_COLORS.get(name or "", INK)


def class_style(name: str | None) -> Any:
    """The line style of a resource class; dots where the class is not known."""
    return CLASS_STYLES.get(name or "", ":")


def by_size(runs: Sequence[RunData]) -> list[str]:
    """Directions of all runs, largest training corpus first, unknown sizes last."""
    names = list(dict.fromkeys(task for run in runs for task in run.tasks))
    sizes = {task: max(run.sentences.get(task, -1) for run in runs) for task in names}
    return sorted(names, key=lambda task: (-sizes[task], task))


def panels(number: int, *, height: float, width: float = WIDTH, share: bool = False, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure with ``number`` panels side by side, in inches; ``grid`` goes to ``GridSpec`` (width_ratios and such)."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, number, sharey=share, squeeze=False, gridspec_kw=grid or None)
    return figure, list(axes[0])


def panels_by_run(number: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with a panel per run over steps, all on one pair of scales, four in a row at most; ``height`` is a row's, in
    inches. One or two runs do not fill the width: a panel stays of a readable shape."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(number, _MOST_PANELS)
    rows = math.ceil(number / columns)
    width = WIDTH if columns > 2 else WIDTH * (0.62, 0.85)[columns - 1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height * rows), layout="constrained")
        cells = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for i, axes in enumerate(cells[:number]):
        if i >= number - columns:  # the lowest of its column, although the last row may be shorter
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step")
    for axes in cells[number:]:
        axes.remove()
    return figure, cells[:number]


def line(axes: Axes, curve: Points, most: int = MOST_POINTS, **style: Any) -> None:
    """One curve, thinned to ``most`` points; a single point is a dot. An empty curve draws nothing."""
    if curve:
        drawn = thin(curve, most)
        if len(drawn) == 1 and "marker" not in style:
            style |= {"marker": "o", "markersize": 3.2}
        axes.plot([x for x, _ in drawn], [y for _, y in drawn], **style)


def points_each(curves: int) -> int:
    """Points of each of many thin curves in one panel, so that a hundred of them do not make the page heavy."""
    return max(40, min(MOST_POINTS, 6000 // max(curves, 1)))


def thin(curve: Points, most: int) -> Points:
    """At most ``most`` points, evenly chosen, first and last kept; the JSON beside the page has them all."""
    if len(curve) <= most:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]


def value_range(curves: Sequence[Points]) -> tuple[float, float]:
    """Bounds of a loss axis: the first few high losses of a training must not squeeze the rest, but every curve's end is
    inside."""
    ordered = sorted(y for curve in curves for _, y in curve)
    ends = [curve[-1][1] for curve in curves if curve]
    low, high = ordered[0], max(ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))], *ends)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def trim(axes: Axes, curves: Sequence[Points]) -> None:
    """``value_range`` on the axes, where there are enough points for it to mean something."""
    if sum(map(len, curves)) > 20:
        low, high = value_range(curves)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """One legend for all panels, under them, in as many columns as the figure is wide enough for.

    Args:
        handles: what is labelled: lines, patches, or what ``axes.get_legend_handles_labels`` gives first.
    """
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = int((figure.get_figwidth() - 0.2) / (0.62 + 0.078 * longest))
        figure.legend(handles=list(handles), loc="outside lower center", ncols=max(1, min(columns, len(handles))))


def held_mean(curves: Sequence[Points]) -> Points:
    """Mean over curves of the last value that each has had, from where half of them have one.

    For values of which a step has only those of the tasks in its batch: the mean of these alone would jump with the
    tasks that happen to be there.
    """
    events = sorted((step, i, value) for i, curve in enumerate(curves) for step, value in curve)
    last: dict[int, float] = {}
    means: dict[float, float] = {}
    for step, i, value in events:
        last[i] = value
        if 2 * len(last) >= len(curves):
            means[step] = sum(last.values()) / len(last)
    return list(means.items())
