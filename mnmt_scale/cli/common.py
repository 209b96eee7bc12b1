"""What every verb shares: printing a result, printing an error as one line, the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..errors import MnmtError

Set = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as in --set engine.zero_stage=2.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")]


def emit(result: dict[str, Any], as_json: bool, text: str) -> None:
    """The result on standard output: JSON, or text for people."""
    print(json.dumps(result, default=str) if as_json else text)


def run_verb(call: Callable[[], Any], debug: bool) -> int:
    """Exit code of a verb; a user's error is one line, a bug is a line that says so (``--debug``: the traceback)."""
    try:
        call()
    except MnmtError as error:
        if debug:
            raise
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, as in `mnmt translate ... | head`
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except Exception as error:  # a bug of ours: say so in one line
        if debug:
            raise
        _complain(f"internal error: {type(error).__name__}: {error}; run again with --debug and report it")
        return 70
    return 0


def _complain(text: str) -> None:
    import os

    rank = os.environ.get("RANK") or os.environ.get("OMPI_COMM_WORLD_RANK")
    size = os.environ.get("WORLD_SIZE") or os.environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    prefix = f"[rank {rank}] " if rank is not None and size != "1" else ""
    print(prefix + " ".join(text.split()), file=sys.stderr, flush=True)
