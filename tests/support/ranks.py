"""Ranks for tests: real processes of one gloo group, forked from a server that has imported torch and DeepSpeed once.

    pool = RankPool(2)                                                 # lives through many cases
    results = pool.run("tests.support.engine_cases:train", steps=3)    # one result per rank

    launch(2, "tests.support.killed:save", {"MNMT_FAULT": "..."})      # a group of its own, which may die; exit codes

A case is a module-level function ``f(world, **arguments)``. What it raises comes back as ``RankFailure`` with the
traceback of every rank; after a failure or a timeout the processes are ended and the next case starts fresh ones.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing as mp
import os
import socket
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PRELOAD = ["tests.support.warm"]


def _context() -> Any:
    """Processes are forked from a server without threads: starting one costs 0.1 s instead of the 5 s of the imports."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{kept}" if kept else str(ROOT)  # the server takes no sys.path before 3.13
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        forkserver.ensure_running()
    finally:
        if kept is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = kept
    return context


class RankFailure(AssertionError):
    """Some rank raised, died or did not answer in time; the text says which and why."""


class RankPool:
    """``size`` processes in one gloo group, started at the first case."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._pipes: list[Any] = []

    def run(self, case: str, timeout_seconds: float = 120.0, **arguments: Any) -> list[Any]:
        """Runs ``module:function`` on all ranks; returns their results by rank (anything that pickles)."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((case, arguments))
        deadline = time.monotonic() + timeout_seconds + 60.0
        answers: list[tuple[str, Any]] = []
        for rank in range(self.size):
            # A rank that failed leaves the others waiting in a collective: they get little time to answer.
            failed = any(kind != "ok" for kind, _ in answers)
            patience = 2.0 if failed else max(0.0, deadline - time.monotonic())
            answers.append(self._answer(rank, patience))
        if all(kind == "ok" for kind, _ in answers):
            return [value for _, value in answers]
        self.close()
        text = "\n".join(f"--- rank {r}: {kind}\n{value}" for r, (kind, value) in enumerate(answers))
        raise RankFailure(f"{case} {arguments}\n{text}")

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
        for process in self._processes:
            process.join(0.2)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context, port = _context(), _free_port()
        for rank in range(self.size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(mine)

    def _answer(self, rank: int, patience: float) -> tuple[str, Any]:
        pipe, process = self._pipes[rank], self._processes[rank]
        try:
            if pipe.poll(patience):
                return pipe.recv()
        except (EOFError, ConnectionError):
            process.join(5.0)
            return "died", f"exit code {process.exitcode}"
        return "no answer", f"after {patience:.0f} s"


def launch(
    size: int, case: str, environment: dict[str, str] | None = None, timeout_seconds: float = 120.0, **arguments: Any
) -> list[int]:
    """Runs ``module:function`` (called without a world) in ``size`` fresh processes with the variables of a launcher.

    Returns:
        Exit codes by rank, negative for a signal; a process that outlives the timeout is killed (-9). When a rank dies,
        the others get ten seconds, as a launcher would give them.
    """
    context, port = _context(), _free_port()
    processes = []
    for rank in range(size):
        variables = {**_variables(rank, size, port), **(environment or {})}
        process = context.Process(target=_launched, args=(variables, case, arguments), daemon=True)
        process.start()
        processes.append(process)
    deadline = time.monotonic() + timeout_seconds
    while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
        if any(not p.is_alive() and p.exitcode != 0 for p in processes):
            deadline = min(deadline, time.monotonic() + 10.0)
        time.sleep(0.02)
    for p in processes:
        if p.is_alive():
            p.kill()
        p.join()
    return [p.exitcode for p in processes]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _variables(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "MNMT_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def _function(case: str) -> Any:
    module, name = case.split(":")
    return getattr(importlib.import_module(module), name)


def _prepare(variables: dict[str, str]) -> None:
    os.environ.update(variables)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)


def _launched(variables: dict[str, str], case: str, arguments: dict[str, Any]) -> None:
    _prepare(variables)
    _function(case)(**arguments)


def _serve(rank: int, size: int, port: int, pipe: Any) -> None:
    """A rank's life: join the group, run what the pipe asks for, until the pipe is closed."""
    _prepare(_variables(rank, size, port))
    from mnmt_scale.dist import join, leave

    world = join()
    while True:
        try:
            case, arguments = pipe.recv()
        except (EOFError, OSError):
            break
        try:
            pipe.send(("ok", _function(case)(world, **arguments)))
        except BaseException:
            pipe.send(("raised", traceback.format_exc()))
    leave()
