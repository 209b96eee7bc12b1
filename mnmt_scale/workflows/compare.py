"""A comparison of methods: every settings file trained with every seed, then one table.

Each training and each evaluation is a stage of ``compare.smk``, run by Snakemake. What is finished is not done again, so an
interrupted comparison goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.store import SPLITS, TokenStore
from ..errors import MnmtError, nearest
from ..runlog import TRAINING_MARK, RunLock
from ..settings import user_path
from .follow import SNAKEMAKE, Say
from .plan import Entry, Job, choose_baseline, command, is_evaluated, is_trained, make_plan, read_entries
from .results import collect
from .snake import Resources, hold, run_snakemake
from .tables import write_tables

State = Literal["finished", "to evaluate", "to train"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a comparison is asked to do.

    Attributes:
        seeds: of ``train.seed``.
        baseline: name of the settings file that the others are compared with; None: ``plan.choose_baseline``.
        split: what is translated.
        limit: the first lines of each test set only.
        overrides: ``section.key=value`` for all trainings.
        stop: begin nothing new once a training has failed.
        resources: of this machine or of Slurm.
    """

    seeds: Sequence[int] = (1, 2, 3)
    baseline: str | None = None
    split: str = "test"
    limit: int | None = None
    overrides: Sequence[str] = ()
    stop: bool = False
    resources: Resources = field(default_factory=Resources)


@dataclass
class Outcome:
    """What became of the jobs: names of those done now, found finished, and failed with where to read why."""

    done: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
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
    lock = hold(out)
    try:
        return _run([job for job, _ in planned], baseline, options, out, lock, say)
    finally:
        lock.release()


def _run(jobs: Sequence[Job], baseline: Entry, options: Options, out: Path, lock: RunLock, say: Say) -> dict[str, Any]:
    states = {job.name: state_of(job, options) for job in jobs}
    outcome = Outcome(finished=[name for name, state in states.items() if state == "finished"])
    if len(outcome.finished) < len(jobs):
        _work(jobs, states, options, out, lock, outcome, say)
    table = collect(jobs, baseline, options.split, options.limit)
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


def _work(
    jobs: Sequence[Job], states: dict[str, State], options: Options, out: Path, lock: RunLock, outcome: Outcome, say: Say
) -> None:
    """Does what is not finished, and sorts what became of it into ``outcome``."""
    todo = [job for job in jobs if states[job.name] != "finished"]
    resources = options.resources
    result = run_snakemake(
        "compare.smk",
        out,
        {"jobs": [_stages(job, states[job.name], options, out) for job in todo], **resources.config()},
        cores=resources.cores,
        gpus=resources.gpus,
        keep_going=not options.stop,
        # an evaluation that is there is one of other lines or another decoding
        options=[*resources.options, "--forcerun", *(f"evaluate_{number}" for number in range(len(todo)))],
        say=say,
        lock=lock,
    )
    outcome.interrupted = result.interrupted
    for job in todo:
        stages = _names(job).values()
        if any(name in result.failed for name in stages):
            outcome.failed[job.name] = str(job.log)
        elif state_of(job, options) == "finished":
            outcome.done.append(job.name)
        elif all(name in result.logs for name in stages) and not result.interrupted:
            say(f"{job.name}: failed: that is not the evaluation that was asked for")
            outcome.failed[job.name] = str(job.log)
    if SNAKEMAKE in result.failed:
        outcome.failed[f"{SNAKEMAKE} ({result.failed[SNAKEMAKE]})"] = result.logs[SNAKEMAKE]


def _names(job: Job) -> dict[str, str]:
    """The stages of a job."""
    stem = f"{job.run.parent.name}.{job.run.name}"
    return {"train": f"{stem}.train", "evaluate": f"{stem}.evaluate"}


def _stages(job: Job, state: State, options: Options, out: Path) -> dict[str, Any]:
    """What ``compare.smk`` is told of a job: its stages with their words, and the files that say that they are done."""
    evaluate = ["evaluate", str(job.run), "--split", options.split]
    evaluate += [] if options.limit is None else ["--limit", str(options.limit)]
    marks = {"train": job.run / TRAINING_MARK, "evaluate": job.run / "eval" / f"{options.split}.json"}
    words = {"train": command(job, options.overrides), "evaluate": evaluate}
    return {
        verb: {
            "name": name,
            "words": words[verb],
            "mark": str(marks[verb].relative_to(out)),
            "log": str(job.log.relative_to(out)),
        }
        for verb, name in _names(job).items()
        if verb == "evaluate" or state == "to train"
    }
