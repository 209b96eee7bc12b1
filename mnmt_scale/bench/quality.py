"""What two trainings came to: BLEU of every direction side by side, its difference with a p, and what the trainings did.

Reads what ``mnmt train`` and ``mnmt evaluate`` wrote, and nothing of it has to be whole: a direction that was not evaluated
(the time was up), a training that failed, are rows that say so. The p is that of a paired bootstrap over test sentences
(``evaluation.bootstrap``), at one seed each: it says nothing about other trainings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import settings
from ..errors import MnmtError
from ..evaluation.config import EvaluationConfig
from ..evaluation.paired import Scores, add_scores, direction_scores, paired_test
from ..methods.spec import MethodConfig, label
from ..runlog import TRAINING_MARK
from ..runs import run_table
from ..tasks import parse_direction
from .table import Row, figure, row, table_text

TRAINING = "training"
"""The case of rows about the trainings themselves."""
_SEED = 0


@dataclass(frozen=True)
class Trained:
    """One training to be compared. ``error``: why it is not there; then the rest is empty."""

    path: Path
    name: str
    table: dict[str, Any]
    error: str | None = None

    @property
    def directions(self) -> list[str]:
        return list(self.table.get("data", {}).get("tasks", []))

    @property
    def evaluation(self) -> EvaluationConfig:
        return settings.validate(EvaluationConfig, self.table.get("evaluation", {}), str(self.path / "config.toml"))

    def has(self, stem: str, direction: str) -> bool:
        """Whether the direction was evaluated: its translations are written last."""
        return (self.path / "eval" / f"{stem}.{direction}.hyp").is_file()


def bench_quality(runs: Sequence[Path], split: str = "test") -> Iterator[Row]:
    """Rows of every run's training, and of every direction's BLEU; the first run is what the others are held against.

    Directions are those of the first run that can be read. The means are over the directions that all runs have, by target
    language and over all of them.

    Raises:
        MnmtError: E603 runs that decode or score differently.
    """
    trained = _named([_opened(Path(run)) for run in runs])
    for one in trained:
        yield from _training_rows(one)
    readable = [one for one in trained if one.error is None]
    if not readable:
        return
    config = _same_scoring(readable)
    common: dict[str, list[Scores]] = {}
    for number, direction in enumerate(readable[0].directions):
        scores, error = _scores(trained, split, direction, config, number)
        yield from _direction_rows(direction, trained, scores, error, lines=_lines(readable, split, direction))
        if len(scores) == len(trained) and error is None:
            common.setdefault(parse_direction(direction)[1], []).append(scores)
    groups = {f"mean into {target}": found for target, found in sorted(common.items())}
    every = [scores for found in common.values() for scores in found]
    for name, found in ({**groups, "mean of all": every} if len(groups) > 1 else {"mean of all": every}).items():
        if found:
            yield from _mean_rows(name, trained, found, asked=len(readable[0].directions))


def report(rows: Sequence[Row]) -> str:
    """One line for each direction: BLEU of every run, the difference of the others to the first and its p; above it a table
    of the trainings."""
    about = [r for r in rows if r["case"] == TRAINING]
    rest = [r for r in rows if r["case"] != TRAINING]
    runs, metrics = (list(dict.fromkeys(r[key] for r in about)) for key in ("candidate", "metric"))
    value = {(r["case"], r["candidate"], r["metric"]): r for r in rows}
    whose = [f"{name} ({value[TRAINING, name, metrics[0]]['settings'].get('error', 'finished')})" for name in runs]
    top = [[m, *(figure(value[TRAINING, n, m]["value"]) for n in runs), value[TRAINING, runs[0], m]["unit"]] for m in metrics]
    lines = []
    for case in dict.fromkeys(r["case"] for r in rest):
        line = [case, *(_two(value.get((case, name, "BLEU"))) for name in runs)]
        for name in runs[1:]:
            found = value.get((case, name, f"BLEU over {runs[0]}"))
            p = found["settings"].get("p") if found else None
            line += [_two(found, "+.2f"), "" if p is None else f"{p:.3f}"]
        lines.append(
            [*line, next((r["settings"]["error"] for r in rest if r["case"] == case and "error" in r["settings"]), "")]
        )
    header = ["BLEU", *runs, *(word for name in runs[1:] for word in (f"{name} over {runs[0]}", "p")), "missing"]
    parts = [table_text(["", *whose, "unit"], top)]
    if lines:
        parts.append(table_text(header, lines))
        parts.append("p: paired bootstrap over test sentences, two-sided, one seed each; not corrected for the number of rows.")
    return "\n\n".join(parts)


def _opened(run: Path) -> Trained:
    try:
        return Trained(run, "", run_table(run))
    except MnmtError as error:
        return Trained(run, run.name, {}, f"{error.what} ({run.name})")


def _named(trained: list[Trained]) -> list[Trained]:
    """By method where that tells them apart, else by directory, or by the whole path."""
    methods = [
        label(settings.validate(MethodConfig, t.table.get("method", {}), str(t.path))) if t.error is None else t.name
        for t in trained
    ]
    for names in (methods, [t.path.name for t in trained]):
        if len(set(names)) == len(names):
            break
    else:
        names = [str(t.path) for t in trained]
    return [Trained(t.path, name, t.table, t.error) for t, name in zip(trained, names, strict=True)]


def _training_rows(one: Trained) -> Iterator[Row]:
    """What the training came to by its own log, up to now where it did not come to its end."""
    mark, logged = _json(one.path / TRAINING_MARK), _logged(one.path)
    steps, seconds = logged["train"][-1] if logged["train"] else {}, sum(line["seconds"] for line in logged["train"])
    error = one.error or (None if mark else "the training did not come to its end")
    more = {"error": error} if error else {"stopped": mark["stopped"], "max_minutes": one.table["train"].get("max_minutes")}
    best = [line["loss"] for line in logged["valid"] if line.get("loss") is not None]
    values = (
        ("updates", steps.get("step"), "steps"),
        ("target tokens", steps.get("tokens"), "tokens"),
        ("time in steps", round(seconds, 1) if steps else None, "s"),
        ("target tokens per second", steps["tokens"] / seconds if steps and seconds else None, "tokens/s"),
        ("dev loss", min(best) if best else None, "nats/token"),
    )
    for metric, value, unit in values:
        missing = {} if value is not None or error else {"error": "not in the training's log"}
        yield row("quality", TRAINING, one.name, metric, value, unit, **more, **missing)


def _scores(
    trained: Sequence[Trained], stem: str, direction: str, config: EvaluationConfig, number: int
) -> tuple[Scores, str | None]:
    """BLEU of the runs that have the direction, together where they have the same lines, else by themselves; and what is
    wrong."""
    folders = {(t.name, _SEED): t.path / "eval" for t in trained if t.error is None and t.has(stem, direction)}
    missing = [t.name for t in trained if (t.name, _SEED) not in folders]
    error = f"not evaluated: {', '.join(missing)}" if missing else None
    if not folders:
        return {}, error
    try:
        return direction_scores(folders, stem, direction, config, number), error
    except MnmtError as first:
        scores: Scores = {}
        for key, folder in folders.items():
            try:
                scores |= direction_scores({key: folder}, stem, direction, config, number)
            except MnmtError:
                continue  # ``first`` says it
        return scores, error or first.what


def _direction_rows(
    direction: str, trained: Sequence[Trained], scores: Scores, error: str | None, lines: int | None
) -> Iterator[Row]:
    baseline = trained[0].name
    for one in trained:
        found = scores.get((one.name, _SEED))
        missing = {} if found else {"error": error or "not evaluated"}
        yield row("quality", direction, one.name, "BLEU", found[0] if found else None, "BLEU", lines=lines, **missing)
    for one in trained[1:]:
        test = paired_test(scores, one.name, baseline) if error is None else None
        yield _difference(direction, one.name, baseline, test, error, lines=lines)


def _mean_rows(case: str, trained: Sequence[Trained], found: Sequence[Scores], asked: int) -> Iterator[Row]:
    """Macro averages over directions, and the bootstrap of their difference."""
    total: Scores = {}
    for scores in found:
        add_scores(total, scores)
    count = {"directions": len(found), "asked": asked}
    for one in trained:
        yield row("quality", case, one.name, "BLEU", total[one.name, _SEED][0] / len(found), "BLEU", **count)
    for one in trained[1:]:
        test = paired_test(total, one.name, trained[0].name, len(found))
        yield _difference(case, one.name, trained[0].name, test, None, **count)


def _difference(case: str, name: str, baseline: str, test: dict[str, Any] | None, error: str | None, **more: Any) -> Row:
    metric = f"BLEU over {baseline}"
    if test is None:
        return row("quality", case, name, metric, None, "BLEU", error=error or "not evaluated", **more)
    about = {key: test[key] for key in ("low", "high", "p", "resamples")}
    return row("quality", case, name, metric, test["difference"], "BLEU", **about, **more)


def _same_scoring(trained: Sequence[Trained]) -> EvaluationConfig:
    """The settings of decoding and scoring; E603 where the runs' differ: one table must mean one thing."""
    first = trained[0].evaluation
    for other in trained[1:]:
        changed = [key for key, value in other.evaluation.model_dump().items() if value != getattr(first, key)]
        changed = [key for key in changed if key not in ("classes", "zero_shot", "batch_tokens", "low_below", "high_from")]
        if changed:
            what = f"{trained[0].path} and {other.path} are not evaluated alike: evaluation.{changed[0]} differs"
            raise MnmtError("E603", what, where=str(other.path), remedy="train them with the same [evaluation]")
    return first


def _lines(trained: Sequence[Trained], stem: str, direction: str) -> int | None:
    for one in trained:
        if one.has(stem, direction):
            return (one.path / "eval" / f"{stem}.{direction}.hyp").read_bytes().count(b"\n")
    return None


def _logged(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of the run's log about training and validation; a torn last line is left out."""
    found: dict[str, list[dict[str, Any]]] = {"train": [], "valid": []}
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("kind") in found:
            found[record["kind"]].append(record)
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _two(found: Row | None, form: str = ".2f") -> str:
    return "" if found is None or found["value"] is None else format(found["value"], form)
