"""Figure of what FTAC gains over the systems that it is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .canvas import color_of, legend_below, panels
from .svg import FAINT
from .systems import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gains(table: Mapping[str, Any]) -> Figure | None:
    """BLEU differences by direction with their intervals, a colour and mark for each system compared with; filled where
    p < 0.05. At the right, behind a line, the mean over directions."""
    rows = [*((row["direction"], row["deltas"]) for row in table["directions"]), ("mean", table["average"]["deltas"])]
    if not any(deltas.get(base) for _, deltas in rows for base in table["baselines"]):
        return None
    figure, (axes,) = panels(1, height=3.4)
    axes.axhline(0, color=FAINT, linewidth=1.8, zorder=0)
    axes.axvline(len(rows) - 1.5, color=FAINT, linewidth=1.2)
    handles = []
    for n, base in enumerate(table["baselines"]):
        apart = (n - (len(table["baselines"]) - 1) / 2) * 0.3
        style: dict[str, Any] = dict(color=color_of(n), marker="os"[n % 2], markersize=5, linestyle="none")
        for x, (_, deltas) in enumerate(rows):
            delta = deltas.get(base)
            if delta is not None:
                axes.plot([x + apart] * 2, [delta["low"], delta["high"]], color=color_of(n), linewidth=1.4, alpha=0.6)
                face = color_of(n) if delta["p"] < 0.05 else "none"
                (mark,) = axes.plot(x + apart, delta["difference"], markerfacecolor=face, **style)
        mark.set_label(f"FTAC - {label(base)}")
        handles.append(mark)
    size = 5.5 if len(rows) > 40 else 8
    axes.set_xticks(range(len(rows)), [name for name, _ in rows], rotation=90, fontsize=size)
    axes.set(xlim=(-0.8, len(rows) - 0.2), ylabel="BLEU difference")
    axes.grid(visible=False, axis="x")
    legend_below(figure, handles)
    return figure
