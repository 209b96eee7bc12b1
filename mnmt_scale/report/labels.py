"""Labels in figures: ticks of log axes in plain text, and names only where there is room for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DECADES, _SIGNED_DECADES = 50, 20
"""Largest over smallest of positive values, over the median size of signed ones: from there on a log scale shows more."""


def with_room(dots: list[tuple], axes: Axes) -> list[tuple]:
    """The first run's dots whose name, set to the right of the dot, would lie on no other dot or name."""
    low, high = axes.get_ylim()
    left, right = (math.log10(x) for x in axes.get_xlim())

    def place(dot: tuple) -> tuple[float, float]:
        return (math.log10(dot[1]) - left) / (right - left), (dot[2] - low) / (high - low)

    occupied = [place(dot) for dot in dots]
    chosen = []
    for dot in (d for d in dots if d[0] == 0):
        x, y = place(dot)
        cells = [(x + dx, y + 0.02) for dx in (0.015, 0.03, 0.045)]
        if not any(abs(a - c) < 0.014 and abs(b - d) < 0.04 for a, b in cells for c, d in occupied if (c, d) != (x, y)):
            chosen.append(dot)
            occupied += cells
    return chosen


def log_ticks(axis: Any, text: Callable[[float], str]) -> None:
    """Plain text on a log axis that is drawn on already (matplotlib's own labels are formulas); 2 and 5 where it is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def signed_axis(axes: Axes, values: Sequence[float]) -> None:
    """A y scale for values of either sign: linear, or symmetric logarithmic where their sizes span decades; the part around
    zero is linear up to the smallest tenth of them.

    Args:
        values: what is drawn already, finite.
    """
    from matplotlib.ticker import NullLocator

    sizes = sorted(abs(value) for value in values if value)
    if not sizes or sizes[-1] < _SIGNED_DECADES * sizes[len(sizes) // 2]:
        return
    first = math.floor(math.log10(max(sizes[len(sizes) // 10], 1e-5 * sizes[-1])))
    last = math.floor(math.log10(sizes[-1]))
    axes.set_yscale("symlog", linthresh=10.0**first, linscale=0.6)
    step = 1 if last - first < 4 else 2
    powers = [10.0**e for e in range(last, first - 1, -step)]
    lowest, highest = min(values), max(values)
    ticks = sorted([-p for p in powers if lowest <= -p] + [0.0] + [p for p in powers if p <= highest])
    axes.set_yticks(ticks, [power(tick) for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())


def log_where_wide(axes: Axes, values: Sequence[float]) -> None:
    """A log scale on y where all values are positive and span decades."""
    if values and min(values) > 0 and max(values) > _DECADES * min(values):
        axes.set_yscale("log")
        log_ticks(axes.yaxis, plain)


def spread_labels(places: Sequence[float], least: float) -> list[float]:
    """Places on an axis from 0 to 1, moved apart so that neighbours are at least ``least`` from each other and, while there is
    room for all, within the axis; order is kept."""
    blocks: list[list[int]] = []  # neighbours that touch: they move as one

    def first(block: list[int]) -> float:
        span = (len(block) - 1) * least
        middle = sum(places[i] for i in block) / len(block)
        return max(0.0, min(middle - span / 2, 1.0 - span))

    for i in sorted(range(len(places)), key=lambda i: places[i]):
        blocks.append([i])
        while len(blocks) > 1 and first(blocks[-2]) + len(blocks[-2]) * least > first(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    moved = list(places)
    for block in blocks:
        for n, i in enumerate(block):
            moved[i] = first(block) + n * least
    return moved


def power(value: float) -> str:
    """-1k, -10, 0, 0.001, 1e-05."""
    return ("-" if value < 0 else "") + count(abs(value))


def count(value: float) -> str:
    """1k, 10k, 1M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:g} %"


def plain(value: float) -> str:
    """As short as it goes."""
    return f"{value:g}"
