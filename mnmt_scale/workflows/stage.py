"""One stage of a workflow: one ``mnmt`` verb as a process, with its log, its GPUs, and a note of how it went.

Every rule of a workflow's Snakefile calls this and nothing else, in the workflow's directory OUT, here or in a job of Slurm:

    python -m mnmt_scale.workflows.stage --name t1.seed-1.train --log logs/t1.seed-1.train.log --gpus 0 -- train ...

The verb runs in the directory that ``mnmt workflow`` was started in, so that paths in settings mean what they mean there.
``OUT/locks/NAME/stage.json`` says how the stage is; ``OUT/locks/stop`` asks all stages to save and end. A stage that is told
to stop, by that file, by a signal or by the end of its workflow's process, tells its verb (SIGTERM), waits for it, and ends
with 75. Nothing that was started here outlives it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MnmtError
from ..runlog import RunLock, write_atomically

STOPPED = 75
"""Exit code of a verb, and of a stage, that was told to stop and has saved; the same workflow goes on later."""
WORKFLOW, STOP = Path("locks/workflow.json"), Path("locks/stop")
POLL_SECONDS = 0.3
_LONG_VERBS = ("train",)
"""Verbs of which several ranks share the work when there are several GPUs."""


def command(name: str, words: Sequence[str], gpus: int = 0, log: str | None = None) -> str:
    """The shell command of a rule. ``exec``: the stage takes the shell's place, so that signals reach it.

    Args:
        name: of the stage, used as a file name: letters, digits, dots, dashes and underscores.
        words: the verb and its arguments; relative paths are relative to where the workflow was started.
        gpus: how many the stage needs; 0 leaves the choice of the device to the verb.
        log: relative to OUT; default logs/NAME.log.
    """
    program = [sys.executable, "-m", "mnmt_scale.workflows.stage", "--name", name, "--log", log or f"logs/{name}.log"]
    return "exec " + shlex.join([*program, "--gpus", str(gpus), "--", *words])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stage; the exit code is that of the verb, or 75 when it was stopped."""
    parser = argparse.ArgumentParser(prog="stage", description="One stage of a workflow; started by its Snakefile.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--log", required=True, type=Path)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("words", nargs="+", metavar="VERB ...")
    asked = parser.parse_args(arguments)
    out = Path.cwd()
    workflow = json.loads((out / WORKFLOW).read_text(encoding="utf-8"))
    stop = Stop(out, workflow)
    folder = out / "locks" / asked.name
    before = read_status(folder)
    if before.get("workflow") == workflow["id"] and before.get("state") == "failed":
        return int(before["code"])  # where Snakemake is told to try again (--retries): that is for what was stopped
    if stop():
        return STOPPED
    try:
        lock = RunLock(folder)
    except MnmtError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    held = {lock: ""}
    try:
        held |= {} if workflow["slurm"] else take_gpus(out, asked.gpus, workflow["devices"], stop)
        return _run(asked, out, workflow, stop, held)
    finally:
        for lock in held:
            lock.release()


def _run(asked: argparse.Namespace, out: Path, workflow: dict[str, Any], stop: Stop, held: dict[RunLock, str]) -> int:
    """Runs the verb; ``held`` are the stage's locks, those on GPUs with the device."""
    log, folder = out / asked.log, out / "locks" / asked.name
    status = {
        "name": asked.name,
        "workflow": workflow["id"],
        "log": str(log),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": time.time(),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    _note(folder, status, "running")
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120", **os.environ}  # torchrun gives 30 s for saving and then kills
    if any(held.values()):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(filter(None, held.values()))
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ mnmt {shlex.join(asked.words)}\n")
        file.flush()
        begin = file.tell()
        child = subprocess.Popen(
            program(asked.words, asked.gpus),
            cwd=workflow["directory"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
            pass_fds=[lock.fileno() for lock in held],  # the verb holds them too, should this stage be killed
        )
        told = False
        while True:
            try:
                code = child.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if not told and stop():
                    told = True
                    child.terminate()
    if code == 0:
        return _note(folder, status, "done", 0)
    saved = code == STOPPED or _saved(log, begin)
    if told or saved:
        _note(folder, status, "stopped", STOPPED, "told to stop, and saved" if saved else "told to stop")
        if not workflow["slurm"]:
            (out / STOP).touch()  # one machine is told to stop as a whole: nothing else is begun
        elif not (out / STOP).exists():  # pre-empted, or its time is up: the same job goes on later
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        return STOPPED
    why = last_complaint(log, begin) if code > 0 else f"killed by signal {-code}"
    print(f"{asked.name}: {why}", file=sys.stderr, flush=True)
    return _note(folder, status, "failed", code if code > 0 else 128 - code, why)


class Stop:
    """Whether the stage has been told to stop: a signal, the workflow's stop file, or the workflow's end without one."""

    def __init__(self, out: Path, workflow: dict[str, Any]) -> None:
        self._file, self._signalled = out / STOP, False
        here = workflow["host"] == socket.gethostname() and not workflow["slurm"]
        self._pid, self._parent = (workflow["pid"] if here else None), os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._receive)

    def __call__(self) -> bool:
        return self._signalled or self._file.exists() or (self._pid is not None and self._left_alone())

    def _left_alone(self) -> bool:
        assert self._pid is not None
        return os.getppid() != self._parent or not alive(self._pid)

    def _receive(self, number: int, frame: Any) -> None:
        self._signalled = True


def program(words: Sequence[str], gpus: int) -> list[str]:
    """The verb as a program: alone, or as one rank per GPU under torchrun."""
    if gpus > 1 and words[0] in _LONG_VERBS:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
        return [*launcher, "-m", "mnmt_scale", *words]
    return [sys.executable, "-m", "mnmt_scale", *words]


def take_gpus(out: Path, count: int, devices: Sequence[str], stop: Stop) -> dict[RunLock, str]:
    """Locks on ``count`` GPUs of this machine, each with its device; waits where a stage still holds some."""
    held: dict[RunLock, str] = {}
    while len(held) < count and not stop():
        for device in devices:
            if len(held) < count and device not in held.values():
                try:
                    held[RunLock(out / "locks" / f"gpu-{device}")] = device
                except MnmtError as error:
                    if error.code != "E402":
                        raise
        if len(held) < count:
            time.sleep(POLL_SECONDS)
    return held


def read_status(folder: Path) -> dict[str, Any]:
    """``stage.json`` of a stage; empty where there is none."""
    try:
        return dict(json.loads((folder / "stage.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def last_complaint(log: Path, begin: int = 0) -> str:
    """The last line of a log, from byte ``begin``, that names an error, else its last line."""
    text = log.read_bytes()[begin:].decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "MNMT-E" in line]
    return (named or lines or ["no output"])[-1]


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _note(folder: Path, status: dict[str, Any], state: str, code: int | None = None, why: str | None = None) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    passed = round(time.time() - status["started"], 1) if "started" in status else 0.0
    note = {**status, "state": state, "code": code, "why": why, "seconds": passed}
    write_atomically(folder / "stage.json", json.dumps(note) + "\n")
    return code or 0


def _saved(log: Path, begin: int) -> bool:
    """Whether a rank under torchrun, which hides exit codes, says that a signal stopped the training."""
    return b"(signal), " in log.read_bytes()[begin:]


def _die_with_parent() -> None:
    """SIGTERM for the verb when this stage is killed (Linux's PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
