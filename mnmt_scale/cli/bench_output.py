"""What the verbs of ``mnmt bench`` share: options, and where measured rows go."""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import emit

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where NAME.json, NAME.csv and NAME.md go.")]
OUT = Path("bench-results")


def check_names(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    """E102 for the first of the names that ``option`` does not know, with the nearest that it does."""
    from ..errors import MnmtError, nearest

    for name in names:
        if name not in known:
            remedy = nearest(name, list(known)) or f"known: {', '.join(known)}"
            raise MnmtError("E102", f"{option} {name!r} is unknown", where=f"--{option}", remedy=remedy)


def gather(measured: Iterable[Any], out: Path, as_json: bool, body: Callable[[Sequence[Any]], str] | None = None) -> None:
    """Writes the rows once all are there; after a Ctrl-C, SIGTERM (``timeout``) or an error, those that there are.

    A process that hangs in a kernel or is killed writes nothing more: until then each row is also in a journal, and SIGTERM
    shows where it was.
    """
    from ..bench.table import JOURNAL

    rows: list[Any] = []
    journal = out / JOURNAL
    out.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    faulthandler.register(signal.SIGTERM, file=sys.__stderr__, chain=True)
    try:
        with journal.open("w", encoding="utf-8") as lines:
            for one in measured:
                rows.append(one)
                print(json.dumps(one), file=lines, flush=True)
    finally:
        faulthandler.unregister(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
        if rows:
            _write(rows, out, as_json, body=body(rows) if body else None)
        journal.unlink()


def _write(rows: Sequence[Any], out: Path, as_json: bool, body: str | None = None) -> None:
    from ..bench.table import describe_machine, machine, markdown, write_tables

    paths = write_tables(rows, out, body=body)
    text = f"{describe_machine(machine())}\n{body or markdown(rows)}\n\nwritten: {', '.join(paths.values())}"
    emit({"rows": list(rows), "files": paths}, as_json, text)


def tell(line: str) -> None:
    """Progress, on standard error: standard output is for the result."""
    print(line, file=sys.stderr, flush=True)
