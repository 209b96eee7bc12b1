"""``mnmt doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Json, emit


def doctor(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where runs will be written.")] = Path("."),
    trial: Annotated[bool, typer.Option(help="Train three steps of a very small model through the engine.")] = True,
    as_json: Json = False,
) -> None:
    """What this machine offers, a line each (ok, warn, fail) with the remedy; exit code 1 if training cannot work.

    Example: mnmt doctor --dir /scratch/runs
    """
    from ..bench.machine_checks import examine

    checks = examine(directory, trial=trial)
    works = all(check.status != "fail" for check in checks)
    lines = [line for check in checks for line in check.lines()]
    warnings = sum(check.status == "warn" for check in checks)
    verdict = "training can work here" if works else "training cannot work here"
    lines.append(f"{verdict} ({warnings} warning{'' if warnings == 1 else 's'})")
    emit({"training_works": works, "checks": [check.as_dict() for check in checks]}, as_json, "\n".join(lines))
    if not works:
        raise typer.Exit(1)
