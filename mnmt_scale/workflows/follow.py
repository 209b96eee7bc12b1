"""What a workflow's stages are doing, by the notes that they leave, and their common end."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MnmtError
from ..runlog import RunLock
from .stage import POLL_SECONDS, STOP, last_complaint, read_status

Say = Callable[[str], None]
SCHEDULER = Path("locks/snakemake")
"""In a workflow's directory: held by Snakemake as long as it lives."""
SNAKEMAKE = "snakemake"
"""In ``Result.failed``, for what is no stage's failure."""


@dataclass
class Result:
    """How a workflow ended.

    Attributes:
        ok: everything that was asked for is there.
        failed: stage -> its last complaint.
        logs: stage -> log file, of all stages that were begun.
        interrupted: it was told to stop, or a training was; the same command goes on.
    """

    ok: bool
    failed: dict[str, str] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


class Follower:
    """Says how the stages are, and stops them all when one was stopped or when it is told to."""

    def __init__(self, snakemake: subprocess.Popen[bytes], out: Path, workflow: dict[str, Any], say: Say) -> None:
        self.result = Result(ok=False)
        self._snakemake, self._out, self._workflow, self._say = snakemake, out, workflow, say
        self._states: dict[str, str] = {}

    def follow(self, log: Path, begin: int) -> Result:
        """Returns when Snakemake, whose output stands in ``log`` from byte ``begin``, and all stages have ended."""
        while self._snakemake.poll() is None:
            time.sleep(POLL_SECONDS)
            self._report()
            stopped = "stopped" in self._states.values()
            if self._workflow["slurm"]:
                # its pre-empted stages are sent in again; what only waits in the queue must be cancelled
                if self.result.interrupted and "running" not in self._states.values():
                    self._snakemake.send_signal(signal.SIGINT)
                    self._snakemake.wait()
            elif stopped:
                self.stop()
        await_stages(self._out, "", self._say)
        self._report()
        result, code = self.result, self._snakemake.returncode
        result.ok = code == 0
        for name in [name for name, state in self._states.items() if state == "running" and not result.interrupted]:
            result.failed[name] = "killed"
            self._say(f"{name}: failed: killed")
        if not result.ok and not result.failed:
            result.interrupted |= "stopped" in self._states.values()
            if not result.interrupted:
                result.failed[SNAKEMAKE], result.logs[SNAKEMAKE] = complaint(log, begin, code), str(log)
        return result

    def stop(self) -> None:
        """Nothing new is begun, what is under way is told to save."""
        if not self.result.interrupted:
            self.result.interrupted = True
            self._say("stopping: what is under way is told to save; the same command goes on later")
            (self._out / STOP).touch()
            self._snakemake.send_signal(signal.SIGTERM)

    def _report(self) -> None:
        for status in _stages(self._out):
            name, state = status["name"], status["state"]
            if status["workflow"] != self._workflow["id"] or self._states.get(name) == state:
                continue
            self._states[name], self.result.logs[name] = state, status["log"]
            if state == "running":
                self._say(f"{name}: begun, log in {status['log']}")
            elif state == "failed":
                self.result.failed[name] = status["why"]
                self._say(f"{name}: failed: {status['why']}")
            else:
                self._say(f"{name}: {state} after {status['seconds']:.0f} s")


def _stages(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((out / "locks").glob("*/stage.json")):
        status = read_status(path.parent)
        if status:
            yield status


def await_stages(out: Path, whose: str, say: Say) -> None:
    """Stages that have lost their workflow, and a Snakemake that has (it would begin others), are told to save and end, and
    waited for."""
    (out / "locks").mkdir(parents=True, exist_ok=True)
    _await_snakemake(out, whose, say)
    for status in _stages(out):
        told = False
        while status["state"] == "running":
            try:
                RunLock(out / "locks" / status["name"]).release()
                break
            except MnmtError as error:
                if not told:
                    told = True
                    (out / STOP).touch()
                    say(f"{status['name']} {whose}is still there: waiting for it to save ({error.what.rpartition(' by ')[2]})")
                time.sleep(POLL_SECONDS)
    (out / STOP).unlink(missing_ok=True)


def _await_snakemake(out: Path, whose: str, say: Say) -> None:
    """Waits until no Snakemake is at work in OUT; while one is, what it begins is told to stop."""
    told = False
    while True:
        try:
            RunLock(out / SCHEDULER).release()
            return
        except MnmtError as error:
            if error.code != "E402":
                raise
            (out / STOP).touch()
            if not told:
                told = True
                say(f"Snakemake {whose}is still there: waiting for it to end")
            time.sleep(POLL_SECONDS)


def complaint(log: Path, begin: int, code: int) -> str:
    """What Snakemake itself says is wrong, in its log from byte ``begin``: the line that names an error, and the next."""
    if code < 0:
        return f"killed by signal {-code}"
    text = log.read_bytes()[begin:].decode("utf-8", errors="replace")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    named = next((i for i, line in enumerate(lines) if re.search(r"(Exception|Error)\b", line)), None)
    return last_complaint(log, begin) if named is None else " ".join(lines[named : named + 2])
