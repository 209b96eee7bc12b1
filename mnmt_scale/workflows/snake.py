"""Workflows are run by Snakemake, as a process of its own: which stages there are stands in ``*.smk`` beside this file.

Snakemake decides what is to be done from marker files, starts it locally or through Slurm, and is told here what all our
workflows share: one workflow in a directory at a time, what a stage is, how to stop, what to say.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MnmtError
from ..runlog import RunLock, write_atomically
from .follow import SCHEDULER, Follower, Result, Say, await_stages
from .stage import WORKFLOW


@dataclass(frozen=True)
class Resources:
    """What a workflow may use.

    Attributes:
        cores: of this machine, in use at a time.
        threads: of each training.
        gpus: of this machine; 0 leaves the choice of a device to each training, as if it were alone.
        gpus_per_training: ranks of each training, where there are GPUs.
        options: Snakemake's own.
    """

    cores: int = 1
    threads: int = 1
    gpus: int = 0
    gpus_per_training: int = 0
    options: Sequence[str] = ()

    def config(self) -> dict[str, int]:
        """What Snakefiles are told of it."""
        return {"threads": self.threads, "gpus_per_training": self.gpus_per_training}


def hold(out: Path) -> RunLock:
    """Exclusive hold on a workflow's directory; E402 names the holder, E401 where it cannot be written."""
    try:
        return RunLock(out)
    except MnmtError as error:
        if error.code != "E402":
            raise
        what = error.what.replace("run directory", "workflow directory")
        raise MnmtError("E402", what, where=str(out), remedy="wait for it, or give another --out") from None


def run_snakemake(
    snakefile: str,
    out: Path,
    config: dict[str, Any],
    *,
    cores: int,
    gpus: int = 0,
    keep_going: bool = True,
    options: Sequence[str] = (),
    say: Say,
    lock: RunLock | None = None,
) -> Result:
    """Runs what is not there yet of a workflow.

    Args:
        snakefile: name of a file in this package, or an absolute path. Its rules' outputs are marker files, relative to
            ``out``; never a run directory, since Snakemake deletes the outputs of what failed. Its commands are those of
            ``stage.command``.
        out: the workflow's directory, in which Snakemake works.
        config: what the Snakefile finds as ``config``.
        cores: of this machine that may be in use at a time.
        gpus: of this machine that stages may take; rules ask for them by the resource ``gpu``.
        keep_going: a stage that fails keeps only those from running that need it; else nothing new is begun.
        options: Snakemake's own, given to it as they are.
        lock: the hold on ``out``, where the caller has it already; it is kept.

    Raises:
        MnmtError: E801 without Snakemake, its Slurm plugin or Slurm; E401, E402 as ``hold``; E104 more GPUs than this
            process may see.
    """
    slurm, out = check_installed(options), out.absolute()
    own = hold(out) if lock is None else None
    try:
        workflow = _describe(gpus, slurm)
        await_stages(out, "of an earlier start ", say)
        write_atomically(out / WORKFLOW, json.dumps(workflow) + "\n")
        settings = out / "locks" / "config.json"
        write_atomically(settings, json.dumps(config) + "\n")
        file = Path(__file__).parent / snakefile
        program = [sys.executable, "-m", "snakemake", "--snakefile", str(file), "--directory", str(out)]
        program += ["--configfile", str(settings), "--nolock", "--rerun-incomplete", "--nocolor"]
        program += ["--rerun-triggers", "mtime", "--scheduler", "greedy", "--printshellcmds"]
        program += ["--keep-going"] if keep_going else []
        program += [] if slurm else ["--cores", str(cores)]
        program += ["--resources", f"gpu={gpus}"] if gpus and not slurm else []
        return _follow([*program, *options], out, workflow, say)
    finally:
        if own is not None:
            own.release()


def check_installed(options: Sequence[str] = ()) -> bool:
    """Whether the stages go through Slurm, by Snakemake's options; E801 when something is missing for that."""
    extra = "pip install 'mnmt_scale[{}]'"
    if importlib.util.find_spec("snakemake") is None:
        raise MnmtError("E801", "workflows need Snakemake", remedy=extra.format("workflows"))
    if _executor(options) != "slurm":
        return False
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        raise MnmtError("E801", "Snakemake's plugin for Slurm is missing", remedy=extra.format("slurm"))
    if shutil.which("sbatch") is None:
        remedy = "start the workflow where Slurm's commands are (a login node), or leave the executor out"
        raise MnmtError("E801", "Slurm is missing: no sbatch on the PATH", remedy=remedy)
    return True


def _executor(options: Sequence[str]) -> str | None:
    """The executor that the options name, themselves or by a profile."""
    found, profile = None, None
    for word, following in itertools.pairwise([*options, ""]):
        key, equals, value = word.partition("=")
        value = value if equals else following
        if key in ("--executor", "-e"):
            found = value
        if key == "--profile":
            profile = value
    if found is None and profile is not None:
        import yaml

        for path in sorted(Path(profile).glob("config*.yaml")):
            found = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("executor", found)
    return found


def _describe(gpus: int, slurm: bool) -> dict[str, Any]:
    """What stages are told: who their workflow is, where its user is, which devices there are."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(gpus)]
    if gpus > len(devices) and not slurm:
        raise MnmtError("E104", f"{gpus} GPUs are more than CUDA_VISIBLE_DEVICES = {visible} has", where="--gpus")
    return {
        "id": f"{socket.gethostname()} {os.getpid()} {time.time():.3f}",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "directory": os.getcwd(),
        "devices": devices[:gpus],
        "slurm": slurm,
    }


def _follow(program: Sequence[str], out: Path, workflow: dict[str, Any], say: Say) -> Result:
    """Starts Snakemake and stays until it and all stages have ended."""
    (out / "logs").mkdir(exist_ok=True)
    log = out / "logs" / "snakemake.log"
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(log, "a", encoding="utf-8") as file:
        begin, held = file.tell(), RunLock(out / SCHEDULER)
        # a session of its own: a Ctrl-C is ours alone, and the end of all of them can be made sure of
        snakemake = subprocess.Popen(
            list(program),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
            preexec_fn=_hear_interrupts,
            pass_fds=[held.fileno()],  # it holds the lock, not this process, which may be killed alone
        )
        held.leave()
        follower = Follower(snakemake, out, workflow, say)
        while True:
            try:
                return follower.follow(log, begin)
            except KeyboardInterrupt:
                if follower.result.interrupted:  # the second one: at once
                    os.killpg(snakemake.pid, signal.SIGKILL)
                    raise
                follower.stop()


def _hear_interrupts() -> None:
    """Undoes what a shell does to what it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
