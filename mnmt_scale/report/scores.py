"""What RUN/eval/SPLIT.json says (``evaluation.evaluate`` writes it), as rows for the page's tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .read import CLASSES, RunData

Cell = dict[str, Any]

GROUPS = ("all", *CLASSES, "zero-shot")

COMPARISON_COLUMNS = (
    # title, digits (0: text), signed
    ("run", 0, False),
    ("against", 0, False),
    ("split", 0, False),
    ("direction", 0, False),
    ("metric", 0, False),
    ("its score", 2, False),
    ("score", 2, False),
    ("difference", 2, True),
    ("p", 4, False),
)


def main_split(runs: Sequence[RunData]) -> str | None:
    """The split that the page shows: test where any run has it, else the first one found."""
    splits = {split for run in runs for split in run.evaluations}
    return "test" if "test" in splits else min(splits, default=None)


def cells(run: RunData, split: str | None) -> dict[str, Cell]:
    """Per direction its bleu, chrf, nll, lines, class and signature, or ``missing`` with the reason in words."""
    evaluation = run.evaluations.get(split or "", {})
    found = {name: {**row, "signature": row.get("bleu_signature")} for name, row in evaluation.get("directions", {}).items()}
    for name in evaluation.get("missing", []):
        found[name] = {"missing": f"no {split} text"}
    return found


def average_rows(runs: Sequence[RunData], split: str | None) -> list[Cell]:
    """Means by resource class as the evaluation wrote them: one row a run and class, best-resourced first."""
    rows = []
    for group in GROUPS:
        for run in runs:
            mean = run.evaluations.get(split or "", {}).get("averages", {}).get(group)
            if mean:
                rows.append({"run": run.name, "class": group, **mean})
    return rows


def remarks(runs: Sequence[RunData], split: str) -> list[str]:
    """What a reader must know before comparing the numbers: mixed signatures, part of the lines, unlike directions."""
    out = []
    for run in runs:
        evaluation = run.evaluations.get(split)
        if evaluation is None:
            out.append(f"{run.name} was not evaluated on {split}.")
            continue
        if evaluation.get("limit"):
            out.append(f"{run.name}: only the first {evaluation['limit']} lines of each {split} set were scored.")
        mixed = [row["class"] for row in average_rows([run], split) if row.get("mixed_signatures")]
        if mixed:
            out.append(f"{run.name}: the BLEU average of {', '.join(mixed)} is over different sacreBLEU signatures.")
        if evaluation.get("missing"):
            out.append(f"{run.name}: no {split} text for {', '.join(evaluation['missing'])}; these are in no average.")
        warnings = dict.fromkeys(row["warning"] for row in evaluation.get("directions", {}).values() if row.get("warning"))
        out += [f"{run.name}: {warning}." for warning in warnings]
    scored = [set(run.evaluations[split].get("directions", {})) for run in runs if split in run.evaluations]
    if any(names != scored[0] for names in scored[1:]):
        out.append("The runs were evaluated on different directions: their averages do not compare.")
    return out


def signatures(runs: Sequence[RunData], split: str) -> list[str]:
    """Every sacreBLEU signature of the shown scores, once."""
    rows = [row for run in runs for row in run.evaluations.get(split, {}).get("directions", {}).values()]
    return sorted({row[key] for row in rows for key in ("bleu_signature", "chrf_signature") if row.get(key)})


def comparison_rows(runs: Sequence[RunData]) -> list[list[Any]]:
    """Paired bootstraps that the evaluations hold, in the order of ``COMPARISON_COLUMNS``."""
    rows: list[list[Any]] = []
    names = {run.path.resolve(): run.name for run in runs}
    for run in runs:
        for split, evaluation in run.evaluations.items():
            against = evaluation.get("against") or {}
            for direction, differences in against.get("directions", {}).items():
                for d in differences or []:
                    gain = d["system"] - d["baseline"]
                    other = names.get(Path(against["run"]).resolve(), str(against["run"]))
                    where = [run.name, other, split, direction, d["metric"]]
                    rows.append([*where, d["baseline"], d["system"], gain, d["p"]])
    return rows
