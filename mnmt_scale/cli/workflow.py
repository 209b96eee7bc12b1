"""``mnmt workflow``: work that takes several trainings."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .common import Json, Set, emit

if TYPE_CHECKING:
    from ..workflows.snake import Resources

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Work that takes several trainings, and its tables.")

Cores = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Cores of this machine in use at a time; default: all that are there.")
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of each training: CORES / N run at a time.")]
Gpus = Annotated[int, typer.Option(min=0, metavar="N", help="GPUs of this machine to share out; 0: each takes the first.")]
GpusPerTraining = Annotated[int, typer.Option(min=1, metavar="N", help="GPUs of each training, under torchrun if several.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the trainings and how far each is; do nothing.")]

INTERRUPTED = 75
"""Exit code of a workflow that was stopped and that the same command goes on with."""


class PassThrough(TyperCommand):
    """A command that leaves what stands after ``--`` to Snakemake (``resources_of`` finds it)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments up to ``--``."""
        own, rest = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
        ctx.meta["snakemake"] = rest
        return super().parse_args(ctx, own)


@app.command(cls=PassThrough)
def compare(
    ctx: typer.Context,
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Settings files, one a row of the table.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Runs and tables.")] = Path("runs/compare"),
    seeds: Annotated[
        str, typer.Option(metavar="A,B,C", help="Values of train.seed; every file is trained with each.")
    ] = "1,2,3",
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="File to compare with, without .toml; default: the first joint one.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or dev.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first lines of each test set.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Begin nothing new once a training has failed.")] = False,
    dry_run: DryRun = False,
    cores: Cores = None,
    threads: Threads = None,
    gpus: Gpus = 0,
    gpus_per_training: GpusPerTraining = 1,
    set_: Set = [],  # noqa: B006 (typer reads it)
    as_json: Json = False,
) -> None:
    """Train every file with every seed, evaluate, and tabulate BLEU by resource class with intervals and p.

    What is finished in DIR is not done again, so the same command goes on after an interruption (exit code 75). Writes
    DIR/NAME/seed-S (runs) and DIR/compare.{md,csv,json}. A training that fails does not keep the others from running (exit
    code 2 at the end). Trainings run one after another unless --threads or --gpus lets several run at a time. Options after
    -- are Snakemake's, as in -- --profile launchers/slurm/profile.

    Example: mnmt workflow compare configs/compare/cats-t1.toml configs/compare/cats-cats.toml --seeds 1,2,3 --out runs/cats
    """
    from ..workflows.compare import Options, plan_comparison, run_comparison
    from ..workflows.plan import command

    resources = resources_of(ctx, cores, threads, gpus, gpus_per_training)
    options = Options(numbers(seeds), baseline, split, limit, tuple(set_), stop, resources)
    if dry_run:
        jobs = [
            {
                "name": job.name,
                "label": job.entry.label,
                "state": state,
                "run": str(job.run),
                "command": [sys.executable, "-m", "mnmt_scale", *command(job, set_)],
            }
            for job, state in plan_comparison(configs, out, options)
        ]
        emit({"jobs": jobs}, as_json, "\n".join(f"{j['name']}: {j['state']} ({j['label']}; {j['run']})" for j in jobs))
        return
    result = interruptible(lambda: run_comparison(configs, out, options, say=say))
    emit(result, as_json, _text(result, out))
    if result["outcome"]["interrupted"]:
        raise typer.Exit(INTERRUPTED)


@app.command(cls=PassThrough)
def ftac(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings of a workflow, a file of configs/ftac/.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Everything it makes; default runs/NAME.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List every training with its estimated hours; do nothing.")
    ] = False,
    cores: Cores = None,
    threads: Threads = None,
    gpus: Gpus = 0,
    gpus_per_training: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="GPUs of each training; default: as CONFIG says.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="KIND", help="Device of the estimate, as in mnmt estimate.")] = None,
    set_: Set = [],  # noqa: B006 (typer reads it)
    as_json: Json = False,
) -> None:
    """The FTAC paper's chain: universal model with affinities, clusters with helpers, a model for each, and one table.

    What is finished in DIR is not done again, so the same command goes on after an interruption (exit code 75). Writes
    DIR/SYSTEM/seed-S (groups.json, a run per cluster, translations), DIR/ftac.{md,csv,json} and DIR/report.html; DIR itself
    translates, with the models that CONFIG serves. Changes to all trainings: --set all.SECTION.KEY=VALUE. A stage that fails
    blocks only what needs it (exit code 2 at the end). Options after -- are Snakemake's, as in -- --profile
    launchers/slurm/profile.

    Example: mnmt workflow ftac configs/ftac/synthetic.toml
    """
    from ..workflows.config import read_workflow
    from ..workflows.ftac import construct_languages, run_ftac
    from ..workflows.ftac_plan import tasks_of
    from .workflow_plan import estimated, render, render_table

    workflow = read_workflow(config, set_)
    out = out or Path("runs") / workflow.config.name
    own = workflow.config.resources
    if dry_run:
        each = gpus_per_training or own.gpus or min(gpus, 1)
        found = estimated(workflow, tasks_of(workflow), out, gpu, each, threads or own.threads)
        emit(found, as_json, render(found))
        return
    gpus = gpus or gpus_per_training or own.gpus  # what the estimate is for, and Slurm is asked for
    resources = resources_of(ctx, cores, threads or own.threads, gpus, gpus_per_training or own.gpus or 1)
    construct_languages(workflow, say)
    result = interruptible(lambda: run_ftac(workflow, tasks_of(workflow), out, resources, say))
    emit(result, as_json, render_table(result, out))
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)


def resources_of(ctx: typer.Context, cores: int | None, threads: int | None, gpus: int, gpus_per_training: int) -> Resources:
    """What a workflow may use, by its options; by default trainings run one after another, or one per GPU.

    Raises:
        MnmtError: E104 for more threads or GPUs a training than there are.
    """
    from ..errors import MnmtError
    from ..workflows.snake import Resources

    cores = cores or len(os.sched_getaffinity(0))
    at_once = max(1, gpus // gpus_per_training) if gpus else 1
    each = threads or max(1, cores // at_once)
    for name, one, all_ in (("--threads", each, cores), ("--gpus-per-training", gpus_per_training, gpus or gpus_per_training)):
        if one > all_:
            whole = "--cores" if name == "--threads" else "--gpus"
            raise MnmtError("E104", f"{name} {one} is more than {whole} {all_}", where="the command line")
    return Resources(cores, each, gpus, gpus_per_training if gpus else 0, tuple(ctx.meta["snakemake"]))


def interruptible(call: Callable[[], Any]) -> Any:
    """Calls with SIGTERM made a KeyboardInterrupt, so that trainings under way are told to save before this process ends."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return call()
    finally:
        signal.signal(signal.SIGTERM, before)


def say(line: str) -> None:
    """A line for people, while a workflow runs."""
    print(line, file=sys.stderr, flush=True)


def numbers(text: str) -> tuple[int, ...]:
    """``"1,2,3"`` -> (1, 2, 3); E102 for anything that is no list of different whole numbers."""
    from ..errors import MnmtError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(map(int, words))) < len(words):
        raise MnmtError("E102", f"{text!r} is no list of different whole numbers", where="--seeds", remedy="write 1,2,3")
    return tuple(map(int, words))


def _text(result: dict[str, Any], out: Path) -> str:
    from ..workflows.tables import markdown

    if result["table"] is None:
        return "no run is finished, so there is no table yet"
    return f"{markdown(result['table'])}\nwritten: {out}/compare.md, compare.csv, compare.json"


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
