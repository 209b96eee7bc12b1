"""The run directory: who holds it, and what is written there while a training goes on.

    RUN/ config.toml environment.json metrics.jsonl tensorboard/ log.txt checkpoints/ training.json eval/ ...

Only rank 0 writes. Metrics are JSON lines with a ``kind`` (plan, train, valid, checkpoint, event); TensorBoard gets the
same scalars. On a terminal a progress display stands at the bottom; elsewhere there is one line per interval.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from .errors import MnmtError

_PACKAGES = ("torch", "deepspeed", "triton", "numpy", "sentencepiece", "sacrebleu", "pydantic", "transformers", "ctranslate2")

TRAINING_MARK = "training.json"
"""In a run directory whose training came to its end: how, as ``mnmt train --json`` says it. What workflows wait for."""


class RunLock:
    """Exclusive hold on a run directory, released by the kernel when the process ends, however it ends.

    Raises:
        MnmtError: E401 when the directory cannot be written, E402 when a living process holds it.
    """

    def __init__(self, run: Path) -> None:
        try:
            run.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = open(run / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held for the process' life)
        except OSError as error:
            raise MnmtError("E401", f"cannot write the run directory: {error.strerror}", where=str(run)) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise MnmtError(
                "E402", f"run directory in use by {holder}", where=str(run), remedy="wait, or give another --run-dir"
            ) from None
        except OSError as error:
            self._file.close()
            raise MnmtError(
                "E401",
                f"this file system cannot lock files: {error.strerror}",
                where=str(run),
                remedy="put runs on one that can (Lustre: mount -o flock)",
            ) from None
        self._file.seek(0)
        self._file.truncate()
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {started}\n")
        self._file.flush()

    def fileno(self) -> int:
        """The descriptor; a process that inherits it holds the directory too, until it ends."""
        return self._file.fileno()

    def leave(self) -> None:
        """Leave the directory to the processes that have inherited the descriptor."""
        self._file.close()

    def release(self) -> None:
        """Let go of the directory."""
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()


def write_atomically(path: Path, text: str) -> None:
    """Whole file or none: written aside, synced, renamed."""
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, path)


def environment(world_size: int = 1) -> dict[str, Any]:
    """Machine, versions, command and commit: what one needs to judge a number later."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "command": sys.argv,
        "directory": os.getcwd(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "world_size": world_size,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": versions,
        "commit": _commit(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        out = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()


class RunLog:
    """Writes metrics, log lines and the progress display of one run; silent on other ranks.

    Args:
        run: the run directory.
        active: False on ranks other than 0: every call does nothing.
        total_steps: of the progress display; 0 leaves it out.
        resumed_at: drop what was logged after this step by a process that then died.
        max_seconds: when the training will be stopped at the latest, for the time left.
    """

    def __init__(
        self,
        run: Path,
        *,
        active: bool = True,
        total_steps: int = 0,
        resumed_at: int | None = None,
        max_seconds: float | None = None,
    ) -> None:
        self.active = active
        self._progress = None
        if not active:
            return
        run.mkdir(parents=True, exist_ok=True)
        metrics = run / "metrics.jsonl"
        if metrics.exists():
            _drop_after(metrics, resumed_at)
        self._metrics = open(metrics, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self._text = open(run / "log.txt", "a", encoding="utf-8")  # noqa: SIM115
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=0 if resumed_at is None else resumed_at + 1)
        if sys.stderr.isatty() and total_steps:
            self._progress = _Display(total_steps, resumed_at or 0, max_seconds)

    def record(self, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl; numbers go to TensorBoard as well (per-task tables as ``kind/name/task``)."""
        if not self.active:
            return
        self._metrics.write(json.dumps({"kind": kind, "time": round(time.time(), 3), **values}) + "\n")
        self._metrics.flush()
        step = values.get("step", 0)
        for name, value in values.items():
            if isinstance(value, bool) or name == "step":
                continue
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)
            elif name == "tasks" and isinstance(value, dict):
                for task, row in value.items():
                    for key in ("loss", "nll"):
                        if row.get(key) is not None:
                            self._board.add_scalar(f"{kind}_{key}/{task}", row[key], step)

    def say(self, text: str) -> None:
        """A line for people: standard error and log.txt."""
        if not self.active:
            return
        stamp = datetime.datetime.now().strftime("%H:%M:%S")
        self._text.write(f"{stamp} {text}\n")
        self._text.flush()
        if self._progress is not None:
            self._progress.print(text)
        else:
            print(f"{stamp} {text}", file=sys.stderr, flush=True)

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Move the progress display, where there is one."""
        if self._progress is not None:
            self._progress.update(step, loss, tokens_per_second)

    def close(self) -> None:
        """Close the files and the display."""
        if not self.active:
            return
        if self._progress is not None:
            self._progress.stop()
        self._board.close()
        self._metrics.close()
        self._text.close()


def _drop_after(metrics: Path, step: int | None) -> None:
    """Keep what a resumed run builds on: lines up to ``step`` (None: a fresh start keeps nothing)."""
    kept = []
    for line in metrics.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):  # the last line of a killed process may be half written
            if line and step is not None and json.loads(line).get("step", 0) <= step:
                kept.append(line)
    write_atomically(metrics, "".join(line + "\n" for line in kept))


class _Display:
    """Progress on a terminal: bar, tokens per second, loss, time left (to the last step or the time limit)."""

    def __init__(self, total_steps: int, done: int, max_seconds: float | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("train", total=total_steps, completed=done, loss=float("nan"), rate=0.0, left="-:--:--")
        self._total, self._first, self._began, self._limit = total_steps, done, time.monotonic(), max_seconds
        self._bar.start()

    def update(self, step: int, loss: float, rate: float) -> None:
        passed = time.monotonic() - self._began
        left = time_left(passed, step - self._first, self._total - step, self._limit)
        self._bar.update(self._task, completed=step, loss=loss, rate=rate, left=datetime.timedelta(seconds=round(left)))

    def print(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._bar.stop()


def time_left(passed_seconds: float, done_steps: int, left_steps: int, max_seconds: float | None) -> float:
    """Seconds to the last step at the speed so far, or to the time limit where that comes first."""
    by_steps = passed_seconds / max(done_steps, 1) * left_steps
    return by_steps if max_seconds is None else min(by_steps, max(0.0, max_seconds - passed_seconds))


def training_cost(run: Path) -> tuple[int | None, float | None]:
    """Target tokens trained on, and seconds of training steps (validation and checkpoints left out), by the run's metrics."""
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None, None
    rows = [line for line in lines if line.get("kind") == "train"]
    if not rows:
        return None, None
    return int(rows[-1]["tokens"]), round(sum(row["seconds"] for row in rows), 1)
