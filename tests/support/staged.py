"""A stage whose verb is a shell script: ``python -m tests.support.staged --name ... -- SCRIPT``, without any ``mnmt``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mnmt_scale.workflows import stage

ROOT = Path(__file__).resolve().parents[2]

SAVES = "trap 'echo saved; exit 75' TERM; echo training; while :; do read -t 0.02 <> <(:); done"
"""A training that goes on until it is told to stop, and saves."""


def command(name: str, script: str) -> str:
    """What a rule runs, as ``stage.command``."""
    program = [sys.executable, "-m", "tests.support.staged", "--name", name, "--log", f"logs/{name}.log"]
    return f"export PYTHONPATH={shlex.quote(str(ROOT))}; exec " + shlex.join([*program, "--", script])


def run_script(words: Sequence[str], gpus: int) -> list[str]:
    """Takes the place of ``stage.program``."""
    return ["bash", "-c", words[0]]


if __name__ == "__main__":
    stage.program = run_script
    sys.exit(stage.main())
