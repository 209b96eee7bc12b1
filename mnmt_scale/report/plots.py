"""Figures of scores, sampling and speed, each a pure function of the runs: ``list[RunData] -> Figure | None``.

None means that no run has the numbers; the page then says so. So it is in all ``plots*.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .canvas import WIDTH, by_size, color_of, line, panels
from .labels import count, log_ticks, percent, plain, with_room
from .read import RunData, drawn_tokens, normalised, series
from .svg import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    figure, (axes,) = panels(1, height=3.8)
    axes.set_xscale("log")
    for i, run in enumerate(runs):
        mine = [dot for dot in dots if dot[0] == i]
        axes.plot([d[1] for d in mine], [d[2] for d in mine], "o", color=color_of(i), alpha=0.8, markersize=5, label=run.name)
    log_ticks(axes.xaxis, count)
    classes = runs[0].classes
    for bound in () if classes.classes else (classes.low_below, classes.high_from):
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
    figure, (axes,) = panels(1, height=3.3)
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


def _one_panel(runs: Sequence[RunData], key: str, label: str, *, zero: bool = False, log: bool = False) -> Figure | None:
    curves = [[(x, y) for x, y in series(run.train, key) if y > 0 or not log] for run in runs]
    if not any(curves):
        return None
    figure, (axes,) = panels(1, height=2.5, width=WIDTH / 2.5)
    if log:
        axes.set_yscale("log")
    for i, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        line(axes, curve, color=color_of(i), linewidth=1.2, label=run.name)
    if log:
        log_ticks(axes.yaxis, plain)
    if zero:
        axes.set_ylim(bottom=0)
    axes.set(xlabel="step", title=label)
    if len(runs) > 1:
        axes.legend()
    return figure
