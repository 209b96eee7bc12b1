"""A comparison of methods: every settings file trained with every seed, one after another, then one table.

Each training and each evaluation is a process of its own (``mnmt train``, ``mnmt evaluate``). What is finished is not done
again, so an interrupted comparison goes on where it was, and several processes may work on one: each run is held by a lock,
and one that is held is left to its holder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.store import SPLITS, TokenStore
from ..errors import MnmtError, nearest
from ..runlog import RunLock, write_atomically
from ..settings import user_path
from .plan import MARK, Job, choose_baseline, command, is_evaluated, is_trained, make_plan, read_entries
from .results import collect
from .tables import write_tables

INTERRUPTED = 75
"""Exit code of a training that was told to stop and has saved."""

State = Literal["finished", "to evaluate", "to train"]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What a comparison is asked to do.

    Attributes:
        seeds: of ``train.seed``.
        baseline: name of the settings file that the others are compared with; None: ``plan.choose_baseline``.
        split: what is translated.
        limit: the first lines of each test set only.
        overrides: ``section.key=value`` for all trainings.
        stop: end at the first training that fails.
    """

    seeds: Sequence[int] = (1, 2, 3)
    baseline: str | None = None
    split: str = "test"
    limit: int | None = None
    overrides: Sequence[str] = ()
    stop: bool = False


@dataclass
class Outcome:
    """What became of the jobs: names of those done now, found finished, held by another process, and failed with why."""

    done: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def plan_comparison(configs: Sequence[Path], out: Path, options: Options) -> list[tuple[Job, State]]:
    """The jobs of a comparison and how far each is; writes nothing.

    Raises:
        MnmtError: E101 to E104 bad settings, E603 settings or runs that cannot be compared.
    """
    entries = read_entries(configs, options.overrides)
    choose_baseline(entries, options.baseline)
    jobs = make_plan(entries, options.seeds, out)
    return [(job, state_of(job, options)) for job in jobs]


def run_comparison(configs: Sequence[Path], out: Path, options: Options, say: Say) -> dict[str, Any]:
    """Trains and evaluates what is not finished, then tabulates what there is: OUT/compare.{md,csv,json}.

    Returns:
        What ``compare.json`` holds (None as ``table`` where no run is finished), and ``outcome``.

    Raises:
        MnmtError: E303 no token store, E603, E604 when a training or evaluation failed (after the others and the table).
    """
    planned = plan_comparison(configs, out, options)
    entries = list(dict.fromkeys(job.entry.path for job, _ in planned))
    by_path = {job.entry.path: job.entry for job, _ in planned}
    baseline = choose_baseline([by_path[path] for path in entries], options.baseline)
    TokenStore.open(user_path(baseline.config.data.store))
    if options.split not in SPLITS[1:]:
        raise MnmtError("E105", f"no test lines in split {options.split!r}", remedy=nearest(options.split, SPLITS[1:]))
    outcome = Outcome()
    for number, (job, _) in enumerate(planned, 1):
        _run(job, f"[{number}/{len(planned)}] {job.name}", options, out, outcome, say)
        if outcome.interrupted or (options.stop and outcome.failed):
            break
    table = collect([job for job, _ in planned], baseline, options.split, options.limit)
    if table is not None:
        write_tables(table, out)
    if outcome.failed:
        first, why = next(iter(outcome.failed.items()))
        more = f" and {len(outcome.failed) - 1} more" if len(outcome.failed) > 1 else ""
        remedy = "read the log; the same command goes on with what is not finished"
        raise MnmtError("E604", f"{first}{more} failed", where=why, remedy=remedy)
    return {"out": str(out), "table": table, "outcome": outcome.__dict__}


def state_of(job: Job, options: Options) -> State:
    """How far a job is, by its files."""
    if not is_trained(job):
        return "to train"
    return "finished" if is_evaluated(job, options.split, options.limit) else "to evaluate"


def _run(job: Job, title: str, options: Options, out: Path, outcome: Outcome, say: Say) -> None:
    try:
        lock = RunLock(out / "locks" / f"{job.run.parent.name}.{job.run.name}")
    except MnmtError as error:
        if error.code != "E402":
            raise
        say(f"{title}: left to {error.what.removeprefix('run directory in use by ')}")
        outcome.busy.append(job.name)
        return
    try:
        state = state_of(job, options)  # again: another process may have finished it since
        if state == "finished":
            say(f"{title}: finished before")
            outcome.finished.append(job.name)
            return
        job.log.parent.mkdir(parents=True, exist_ok=True)
        if state == "to train":
            say(f"{title}: training, log in {job.log}")
            if not _train(job, options, outcome, say):
                return
        say(f"{title}: evaluation")
        program = [sys.executable, "-m", "mnmt_scale", "evaluate", str(job.run), "--split", options.split]
        program += [] if options.limit is None else ["--limit", str(options.limit)]
        if _call(program, job.log) != 0 or not is_evaluated(job, options.split, options.limit):
            _fail(job, outcome, say)
            return
        outcome.done.append(job.name)
    finally:
        lock.release()


def _train(job: Job, options: Options, outcome: Outcome, say: Say) -> bool:
    """True when the training came to its end."""
    code = _call(command(job, options.overrides), job.log)
    if code == INTERRUPTED:
        say(f"{job.name}: stopped by a signal and saved; the same command goes on")
        outcome.interrupted = True
        return False
    end = last_object(job.log) if code == 0 else None
    if end is None:
        _fail(job, outcome, say)
        return False
    write_atomically(job.run / MARK, json.dumps(end) + "\n")
    return True


def _fail(job: Job, outcome: Outcome, say: Say) -> None:
    outcome.failed[job.name] = str(job.log)
    say(f"{job.name}: failed: {last_complaint(job.log)}")


def _call(program: Sequence[str], log: Path) -> int:
    """Runs a program with all its output appended to ``log``; it does not outlive this process."""
    with open(log, "a", encoding="utf-8") as file:
        child = subprocess.Popen(list(program), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            return child.wait()
        except BaseException:  # an interrupt of ours is one of the child's: it saves and ends
            child.terminate()
            child.wait()
            raise


def last_object(log: Path) -> dict[str, Any] | None:
    """The last line of a log that is a JSON object with the end of a training in it."""
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and "stopped" in found:
                return found
    return None


def last_complaint(log: Path) -> str:
    """The last line of a log that names an error, else its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if "MNMT-E" in line]
    return (named or lines or ["no output"])[-1]
