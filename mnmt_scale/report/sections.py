"""The parts of the page, each a pure function of the runs that gives markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import plots, plots_losses, tables
from .canvas import by_size, color_of
from .html import Column, details, download, figure, heading, notes, number, paragraph, preformatted, table
from .read import RunData
from .scores import COMPARISON_COLUMNS, average_rows, cells, comparison_rows, main_split, remarks, signatures
from .svg import STYLE, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FOLD_DIRECTIONS = 12
"""From this many directions on, what takes a cell per direction is folded away."""


class Drawing:
    """Numbers the figures of one page and makes them SVG."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, draw: Callable[[], Figure | None], label: str, caption: str) -> str:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            drawn = draw()
            if drawn is None:
                return ""
            self._count += 1
            return figure(to_svg(drawn, self._count, label), caption)


def summary(runs: Sequence[RunData]) -> str:
    """A column per run: text, length, speed, best dev value, mean scores."""
    split = main_split(runs)
    cells: dict[str, list[str | None]] = {}
    for run in runs:
        overall = next((row for row in average_rows([run], split) if row["class"] == "all"), {})
        values = {**tables.summary_row(run), "mean BLEU": overall.get("bleu"), "mean chrF++": overall.get("chrf")}
        for name, value in values.items():
            if isinstance(value, int | float):
                value = number(value, _SUMMARY_DIGITS.get(name, 0))
            cells.setdefault(name, []).append(value)
    if split:
        cells = {f"{name} ({split})" if name.startswith("mean") else name: row for name, row in cells.items()}
    columns = [Column("", text=True), *(Column(run.name) for run in runs)]
    return table(columns, [[name, *row] for name, row in cells.items()])


_SUMMARY_DIGITS = {"hours": 2, "best dev nll": 4, "mean BLEU": 2, "mean chrF++": 2}


def losses(runs: Sequence[RunData], draw: Drawing) -> str:
    """Loss figures: all together, by resource class, and each direction."""
    overall = draw(
        lambda: plots_losses.loss_curves(runs),
        "Training and dev loss over steps",
        "Negative log-likelihood without label smoothing. A ring marks the best dev value of a run.",
    )
    classes = draw(
        lambda: plots_losses.class_curves(runs),
        "Loss over steps by resource class",
        "Mean over the directions of a class, of the last value that each has had: training dashed, dev solid. With one or two "
        "runs thin lines are single directions, on dev where there is dev text, else in training. (CATS paper, Fig. 4.)",
    )
    tokens = draw(
        lambda: plots_losses.token_curves(runs),
        "Dev loss against target tokens trained on",
        "All directions: mean over dev tokens, as the best checkpoint is chosen; classes: mean over their directions. "
        "(CATS paper, Fig. 6.)",
    )
    if tokens:
        tokens += _tokens_to_reach(runs)
    each = draw(
        lambda: plots_losses.small_multiples(runs),
        "Loss of each direction",
        "Largest corpus first. Thin: training, bold: dev; the number is the last dev value (the lowest of the runs).",
    )
    if len(by_size(runs)) > _FOLD_DIRECTIONS and each:
        each = details(f"Each of the {len(by_size(runs))} directions", each)
    return overall + classes + tokens + each or paragraph("No run has logged a loss yet.")


def _tokens_to_reach(runs: Sequence[RunData]) -> str:
    """How soon each run comes to the dev loss that all of them reach."""
    rows = tables.reach_rows(runs)
    if not rows:
        return ""
    columns = [Column("dev loss that all runs reach", text=True), Column("nll", 4)]
    columns += [Column("tokens", group=run.name, best="min") for run in runs]
    body = [[row["class"], row["nll"], *row["tokens"]] for row in rows]
    return table(columns, body)


def scores(runs: Sequence[RunData], draw: Drawing, csv: str, stem: str) -> str:
    """Averages, figure, table per direction, bootstrap results. ``csv`` is offered as STEM.csv."""
    split = main_split(runs)
    link = f"<p>{download(f'{stem}.csv', csv, 'text/csv')}</p>"
    listing = _direction_table(runs, split)
    if split is None:
        return paragraph("No run has been evaluated.") + listing + link
    found = [cells(run, split) for run in runs]
    scatter = draw(
        lambda: plots.size_against_bleu(runs, found),
        "Training size against BLEU",
        "A dot per direction. Dashed: the bounds of the resource classes, where these go by size. BLEU of different target "
        "languages or signatures is not comparable from dot to dot.",
    )
    parts = [
        paragraph(f"Scores on the {split} split. A direction without test text is listed as missing and in no average."),
        _average_table(runs, split),
        notes(remarks(runs, split)),
        scatter,
        heading("By direction"),
        listing,
        link,
        paragraph("; ".join(signatures(runs, split)), "soft"),
    ]
    comparison = comparison_rows(runs)
    if comparison:
        columns = [Column(name, digits, text=digits == 0, signed=signed) for name, digits, signed in COMPARISON_COLUMNS]
        parts += [heading("Paired comparison between runs"), table(columns, comparison)]
    return "".join(parts)


def _average_table(runs: Sequence[RunData], split: str) -> str:
    rows = average_rows(runs, split)
    classes = list(dict.fromkeys(row["class"] for row in rows))
    group = len(runs) > 1
    columns = [Column("class", text=True)]
    for run in runs:
        name = run.name if group else ""
        columns += [Column("directions", group=name), Column("BLEU", 2, group=name, best="max")]
        columns += [Column("chrF++", 2, group=name, best="max"), Column("nll", 4, group=name, best="min")]
    table_rows = []
    for name in classes:
        row: list[Any] = [name]
        for run in runs:
            here = next((r for r in rows if r["run"] == run.name and r["class"] == name), {})
            row += [here.get("directions"), here.get("bleu"), here.get("chrf"), here.get("nll")]
        table_rows.append(row)
    return table(columns, table_rows)


def _direction_table(runs: Sequence[RunData], split: str | None) -> str:
    rows = tables.direction_rows(runs, split)
    if not rows:
        return paragraph("The directions are not known: the run has no plan.")
    several = len(runs) > 1
    columns = [Column("direction", text=True), Column("sentences"), Column("class", text=True)]
    columns += [Column("p %", 2), Column("drawn %", 2)] if not several else []
    for i, run in enumerate(runs if split else ()):
        name = run.name if several else ""
        columns += [Column("BLEU", 1, group=name, best="max")]
        columns += [Column("+/-", 1, group=name, signed=True)] if i else []
        columns += [Column("chrF++", 1, group=name, best="max"), Column("nll", 3, group=name, best="min")]
    columns.append(Column("", text=True))
    body = []
    for task in dict.fromkeys(row["direction"] for row in rows):
        mine = {row["run"]: row for row in rows if row["direction"] == task}
        first = next(iter(mine.values()))
        line: list[Any] = [task, first["sentences"], first["class"]]
        line += [_percent(first["share"]), _percent(first["drawn_tokens_share"])] if not several else []
        for i, run in enumerate(runs if split else ()):
            row = mine.get(run.name, {})
            line.append(row.get("bleu"))
            line += [_gain(mine.get(runs[0].name, {}), row)] if i else []
            line += [row.get("chrf"), row.get("nll")]
        reasons = dict.fromkeys(row["missing"] for row in mine.values() if row["missing"])
        body.append([*line, "; ".join(reasons)])
    return table(columns, body)


def _gain(baseline: dict[str, Any], row: dict[str, Any]) -> float | None:
    if baseline.get("bleu") is None or row.get("bleu") is None:
        return None
    return row["bleu"] - baseline["bleu"]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


_COUNTED = {"tokens": "tokens of a sentence's longer side"}


def sampling(runs: Sequence[RunData], draw: Drawing) -> str:
    """For each run what it sampled and what it really trained on."""
    parts = []
    for i, run in enumerate(runs):
        if len(runs) > 1:
            parts.append(heading(run.name))
        unit = run.plan.get("unit") or run.config.get("sampling", {}).get("unit", "tokens")
        drawing = draw(
            lambda run=run, i=i: plots.sampling(run, color_of(i)),
            f"Sampling distribution of {run.name}",
            f"Largest corpus first. p is counted in {_COUNTED.get(unit, unit)}; what was drawn is counted in target tokens of "
            "the logged steps, so the two differ where one side of a language is longer.",
        )
        parts.append(drawing or paragraph("The run has no plan: sizes and shares are unknown."))
        parts.append(paragraph("; ".join(_plan_facts(run)), "soft"))
    return "".join(parts)


def _plan_facts(run: RunData) -> list[str]:
    """The plan's own numbers; its tables per direction are in the figure and the table."""
    scalars = {key: value for key, value in run.plan.items() if isinstance(value, int | float | str)}
    facts = [f"{k.replace('_', ' ')}: {v}" for k, v in scalars.items() if k not in ("kind", "time", "step")]
    dropped = run.plan.get("dropped")
    if isinstance(dropped, dict) and sum(dropped.values()):
        facts.append(f"sentences longer than data.max_tokens left out: {sum(dropped.values()):,}")
    return facts


def optimisation(runs: Sequence[RunData], draw: Drawing) -> str:
    """Speed, learning rate, gradient norm, events, checkpoints."""
    drawings = [
        draw(lambda: plots.speed(runs), "Target tokens per second", "Predicted target tokens, waiting for data included."),
        draw(lambda: plots.learning_rate(runs), "Learning rate", "At the last step of each logging interval."),
        draw(lambda: plots.gradient_norm(runs), "Gradient norm", "Global norm before clipping."),
    ]
    if not any(drawings):
        return paragraph("No run has logged a step yet.")
    events = [[run.name, row.get("step"), str(row.get("text", ""))] for run in runs for row in run.events]
    parts = ['<div class="pairs">', *drawings, "</div>"]
    if events:
        parts.append(
            details(f"{len(events)} event(s)", table([Column("run", text=True), Column("step"), Column("", text=True)], events))
        )
    saved = [[run.name, row.get("step"), row.get("seconds")] for run in runs for row in run.checkpoints]
    if saved:
        columns = [Column("run", text=True), Column("step"), Column("seconds", 2)]
        parts.append(details(f"{len(saved)} checkpoint(s) written", table(columns, saved)))
    return "".join(parts)


def settings(runs: Sequence[RunData]) -> str:
    """Settings that differ between the runs, all settings, environment."""
    import tomli_w

    names = [Column(run.name, text=True) for run in runs]
    parts = []
    if len(runs) > 1:
        differing = [[key, *(_text(v) for v in values)] for key, values in tables.differing_settings(runs)]
        parts.append(heading("Settings that differ"))
        parts.append(table([Column("setting", text=True), *names], differing) if differing else paragraph("None."))
    for run in runs:
        parts.append(details(f"All settings of {run.name}", preformatted(tomli_w.dumps(run.config))))
    rows = [[key, *(_text(v) for v in values)] for key, values in tables.environment_rows(runs)]
    if rows:
        parts += [heading("Environment"), table([Column("", text=True), *names], rows)]
    return "".join(parts)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
