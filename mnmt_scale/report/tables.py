"""The tables of the report as rows of plain values: what the page prints and the CSV and JSON beside it hold."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .plots import by_size
from .read import RunData, drawn_tokens, normalised, resource_class, series
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
