"""The table of a comparison as markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..report.grid import average, difference, grid, mean
from ..runlog import write_atomically


def write_tables(table: dict[str, Any], out: Path) -> None:
    """OUT/compare.md, compare.csv and compare.json."""
    write_atomically(out / "compare.md", markdown(table))
    write_atomically(out / "compare.csv", as_csv(table))
    write_atomically(out / "compare.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")


def markdown(table: dict[str, Any]) -> str:
    """Everything for people: means by class, differences to the baseline, scores by direction, what it was made with."""
    parts = [_scores(table, "bleu", "BLEU", cost=True)]
    if len(table["rows"]) > 1:
        parts += [_differences(table, "against", "mean", "seeds")]
        parts += [_differences(table, "against_sentences", "difference", "sentences")]
    parts += [_scores(table, "chrf", "chrF++"), _directions(table), _notes(table)]
    return "\n\n".join(parts) + "\n"


def _scores(table: dict[str, Any], metric: str, title: str, *, cost: bool = False) -> str:
    rows = [[title, *(_group(table, g) for g in table["groups"])]]
    rows[0] += ["seeds", "M tokens", "minutes"] if cost else []
    for row in table["rows"]:
        cells = [mean(row["groups"].get(g, {}).get(metric)) for g in table["groups"]]
        if cost:
            cells += [str(len(row["seeds"])), average(row["target_tokens"], 1e6, 2), average(row["training_seconds"], 60, 1)]
        rows.append([_name(table, row), *cells])
    return grid(rows)


def _differences(table: dict[str, Any], kind: str, key: str, over: str) -> str:
    rows = [[f"BLEU - {table['baseline']}, over {over}", *(_group(table, g) for g in table["groups"])]]
    for row in table["rows"]:
        if row["name"] != table["baseline"]:
            cells = [row["groups"].get(g, {}).get("bleu", {}).get(kind) for g in table["groups"]]
            rows.append([row["name"], *(difference(cell, key) for cell in cells)])
    return grid(rows)


def _directions(table: dict[str, Any]) -> str:
    names = sorted(table["classes"], key=lambda n: (_place(table["classes"][n]), n))
    header = ["BLEU by direction", *(f"{n} ({table['classes'][n]})" for n in names)]
    rows = [[row["name"], *(f"{row['directions'][n]:.1f}" for n in names)] for row in table["rows"]]
    return grid([header, *rows])


def _notes(table: dict[str, Any]) -> str:
    decoding = table["decoding"]
    how = f"beam {decoding['beam']}, length penalty {decoding['length_penalty']:g}; {'; '.join(table['signatures'])}"
    lines = [f"- {row['name']}: {row['label']}; seeds {', '.join(map(str, row['seeds']))}" for row in table["rows"]]
    lines += [
        "- Means are over seeds, of the plain mean over directions; +- is the half width of the 95 % t-interval over seeds.",
        "- Differences over seeds: paired by seed, 95 % t-interval, p of the paired t test. Differences over sentences: paired "
        f"bootstrap of the test sentences, {table['resamples']} resamples, mean over the seeds of both, 95 % interval and "
        "two-sided p. No p is corrected for the number of comparisons. Minutes are of training steps, on this machine as busy "
        "as it was.",
        f"- {table['split']} split{_limit(table)}, {how}",
    ]
    if len(table["signatures"]) > 1:
        lines.append("- The directions have different BLEU signatures: their mean is no number to compare with other work.")
    if table["unfinished"]:
        lines.append(f"- Not finished, and left out: {', '.join(table['unfinished'])}.")
    return "\n".join(lines)


def as_csv(table: dict[str, Any]) -> str:
    """One line per row, group and metric."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(
        ["name", "label", "group", "metric", "mean", "low", "high", "seeds", "difference", "difference_low",
         "difference_high", "p_seeds", "sentences_low", "sentences_high", "p_sentences"]
    )  # fmt: skip
    for row in table["rows"]:
        for group, metrics in row["groups"].items():
            for metric, cell in metrics.items():
                against, sentences = cell.get("against") or {}, cell.get("against_sentences") or {}
                numbers = [cell["mean"], cell["low"], cell["high"], cell["count"]]
                numbers += [against.get(key) for key in ("mean", "low", "high", "p")]
                numbers += [sentences.get(key) for key in ("low", "high", "p")]
                out.writerow([row["name"], row["label"], group, metric, *("" if n is None else n for n in numbers)])
    return text.getvalue()


def _name(table: dict[str, Any], row: dict[str, Any]) -> str:
    return row["name"] + (" (baseline)" if row["name"] == table["baseline"] else "")


def _limit(table: dict[str, Any]) -> str:
    return "" if table["limit"] is None else f", the first {table['limit']} lines of each direction"


def _group(table: dict[str, Any], group: str) -> str:
    classes = [c for c in table["classes"].values() if c != "zero-shot"]
    return f"{group} ({len(classes) if group == 'all' else classes.count(group)})"


def _place(group: str) -> int:
    return ("low", "medium", "high", "zero-shot").index(group)
