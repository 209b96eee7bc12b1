"""The tables of the report as rows of plain values: what the page prints and the CSV and JSON beside it hold."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .canvas import by_size, held_mean
from .plots_losses import against_tokens, by_class
from .read import Points, RunData, drawn_tokens, normalised, resource_class, series, task_series
from .scores import cells

Row = dict[str, Any]

DIRECTION_COLUMNS = (
    "run", "direction", "sentences", "class", "share", "drawn_tokens_share", "bleu", "chrf", "nll", "signature", "missing",
)  # fmt: skip


def summary_row(run: RunData) -> Row:
    """One run in a line: how much text, how long, how far, how good. None where the run does not say."""
    dev = series(run.valid, "loss")
    best = min(dev, key=lambda point: point[1], default=(None, None))
    speeds = [value for _, value in series(run.train, "tokens_per_second")]
    last = run.train[-1] if run.train else {}
    seconds = sum(value for _, value in series(run.train, "seconds")) + sum(value for _, value in series(run.valid, "seconds"))
    return {
        "method": run.method,
        "directions": len(run.tasks) or None,
        "sentence pairs": sum(run.sentences.values()) or None,
        "steps": last.get("step"),
        "target tokens trained on": last.get("tokens"),
        "hours": seconds / 3600 or None,
        "target tokens per second (median)": statistics.median(speeds) if speeds else None,
        "best dev nll": best[1],
        "at step": best[0],
    }


def direction_rows(runs: Sequence[RunData], split: str | None) -> list[Row]:
    """One row a direction and run, largest corpus first; scores are None where there is none, ``missing`` says why."""
    drawn = [normalised(drawn_tokens(run)) for run in runs]
    scored = [cells(run, split) for run in runs]
    known = by_size(runs)
    extra = [d for table in scored for d in table if d not in known]
    rows = []
    for task in dict.fromkeys([*known, *extra]):
        for run, share, table in zip(runs, drawn, scored, strict=True):
            if task not in run.tasks and task not in table:
                continue
            cell = table.get(task, {})
            known_of_it = (run.name, task, run.sentences.get(task), cell.get("class") or resource_class(run, task))
            seen = (run.shares.get(task), share.get(task))
            score = (cell.get("bleu"), cell.get("chrf"), cell.get("nll"), cell.get("signature"))
            why = cell.get("missing") or (None if cell or split is None else "not evaluated")
            rows.append(dict(zip(DIRECTION_COLUMNS, (*known_of_it, *seen, *score, why), strict=True)))
    return rows


def class_losses(run: RunData) -> dict[str, dict[str, Points]]:
    """Resource class -> ``train`` and ``dev`` (step, mean nll over its directions) and ``dev_by_tokens``, as drawn."""
    found = {}
    for name, (tasks,) in by_class([run]).items():
        train, dev = (held_mean([task_series(rows, task, "nll") for task in tasks]) for rows in (run.train, run.valid))
        found[name] = {"train": train, "dev": dev, "dev_by_tokens": against_tokens(run, dev)}
    return found


def reach_rows(runs: Sequence[RunData]) -> list[Row]:
    """For several runs: the lowest dev loss that every one of them reaches, over all directions and by class, and the target
    tokens after which each first had it (at a validation). Nothing where a run has no dev loss."""
    curves = {"all": [against_tokens(run, series(run.valid, "loss")) for run in runs]}
    by_run = [class_losses(run) for run in runs]
    for name in by_class(runs):
        curves[name] = [table.get(name, {}).get("dev_by_tokens", []) for table in by_run]
    rows = []
    for name, here in curves.items():
        if len(runs) > 1 and all(here):
            level = max(min(value for _, value in curve) for curve in here)
            first = [next(tokens for tokens, value in curve if value <= level) for curve in here]
            rows.append({"class": name, "nll": level, "tokens": first})
    return rows


def differing_settings(runs: Sequence[RunData]) -> list[tuple[str, list[Any]]]:
    """(setting, value per run) where the runs' resolved settings differ, the list of directions left out."""
    flat = [dict(_flatten(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for table in flat for key in table))
    return [
        (key, [table.get(key) for table in flat])
        for key in keys
        if key not in ("name", "data.tasks") and any(table.get(key) != flat[0].get(key) for table in flat)
    ]


def environment_rows(runs: Sequence[RunData]) -> list[tuple[str, list[Any]]]:
    """(what, value per run) of environment.json; tables and lists as text."""
    flat = [{key: _plain(value) for key, value in _flatten(run.environment)} for run in runs]
    keys = list(dict.fromkeys(key for table in flat for key in table))
    return [(key, [table.get(key) for table in flat]) for key in keys]


def _flatten(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in table.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows


def _plain(value: Any) -> Any:
    return " ".join(str(v) for v in value) if isinstance(value, list) else value
