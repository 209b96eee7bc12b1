"""``mnmt workflow``: work that takes several trainings."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, Set, emit

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Work that takes several trainings, and its tables.")


@app.callback()
def _several() -> None:
    """Keeps ``compare`` a sub-command while it is the only one."""


@app.command()
def compare(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Settings files, one a row of the table.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Runs and tables.")] = Path("runs/compare"),
    seeds: Annotated[
        str, typer.Option(metavar="A,B,C", help="Values of train.seed; every file is trained with each.")
    ] = "1,2,3",
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="File to compare with, without .toml; default: the first joint one.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or dev.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first lines of each test set.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End at the first training that fails.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trainings and how far each is; do nothing.")] = False,
    set_: Set = [],  # noqa: B006 (typer reads it)
    as_json: Json = False,
) -> None:
    """Train every file with every seed, evaluate, and tabulate BLEU by resource class with intervals and p.

    What is finished in DIR is not done again, so the same command goes on after an interruption; several processes may run
    it at once and share the work. Writes DIR/NAME/seed-S (runs) and DIR/compare.{md,csv,json}. A training that fails does not
    keep the others from running (exit code 2 at the end).

    Example: mnmt workflow compare configs/compare/cats-t1.toml configs/compare/cats-cats.toml --seeds 1,2,3 --out runs/cats
    """
    from ..workflows.compare import INTERRUPTED, Options, plan_comparison, run_comparison
    from ..workflows.plan import command

    options = Options(numbers(seeds), baseline, split, limit, tuple(set_), stop)
    if dry_run:
        jobs = [
            {"name": job.name, "label": job.entry.label, "state": state, "run": str(job.run), "command": command(job, set_)}
            for job, state in plan_comparison(configs, out, options)
        ]
        emit({"jobs": jobs}, as_json, "\n".join(f"{j['name']}: {j['state']} ({j['label']}; {j['run']})" for j in jobs))
        return
    before = signal.signal(signal.SIGTERM, _interrupt)  # so that a training under way is told to save before this process ends
    try:
        result = run_comparison(configs, out, options, say=lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        signal.signal(signal.SIGTERM, before)
    emit(result, as_json, _text(result, out))
    if result["outcome"]["interrupted"]:
        raise typer.Exit(INTERRUPTED)


def numbers(text: str) -> tuple[int, ...]:
    """``"1,2,3"`` -> (1, 2, 3); E102 for anything that is no list of different whole numbers."""
    from ..errors import MnmtError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(map(int, words))) < len(words):
        raise MnmtError("E102", f"{text!r} is no list of different whole numbers", where="--seeds", remedy="write 1,2,3")
    return tuple(map(int, words))


def _text(result: dict[str, Any], out: Path) -> str:
    from ..workflows.tables import markdown

    if result["table"] is None:
        return "no run is finished, so there is no table yet"
    return f"{markdown(result['table'])}\nwritten: {out}/compare.md, compare.csv, compare.json"


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
