"""Labels in figures: ticks of log axes in plain text, and names only where there is room for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
