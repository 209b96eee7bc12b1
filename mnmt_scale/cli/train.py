"""``mnmt train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import Json, Set, emit


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings, a TOML file of configs/.")],
    set_: Set = [],  # noqa: B006 (typer reads it)
    run_dir: Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME.")] = None,
    resume: Annotated[
        Literal["auto", "required", "never"],
        typer.Option(help="auto: go on if there is a checkpoint; required: fail if there is none; never: begin anew."),
    ] = "auto",
    profile: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="Profile these steps; the trace goes to RUN/profile/."),
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and leave.")] = False,
    help_settings: Annotated[bool, typer.Option("--help-settings", help="List every setting and leave.")] = False,
    as_json: Json = False,
) -> None:
    """Train one model. Alone it is one process; under deepspeed, torchrun, srun or mpirun it is one rank.

    Exit codes: 0 done, 2 an error of the settings or data, 75 saved after SIGTERM or SIGUSR1 and ready to go on.

    Example: mnmt train configs/lafand.toml --set engine.zero_stage=2 --run-dir runs/first
    """
    from .. import settings
    from ..train.config import RunConfig

    resolved = settings.load(RunConfig, config, set_)
    if help_settings:
        for name, default, text in settings.reference(RunConfig):
            print(f"{name} = {default}\n    {text}" if text else f"{name} = {default}")
        return
    if print_config:
        print(settings.dump(resolved), end="")
        return
    from .. import dist
    from ..train.loop import REQUEUE_EXIT_CODE
    from ..train.train import train as run_training

    result = run_training(resolved, run_dir or Path("runs") / resolved.name, resume, profile=profile)
    dist.leave()
    best = f", best dev nll {result.best_nll:.4f}" if result.best_nll is not None else ""
    if result.rank == 0:
        emit(
            result.summary(),
            as_json,
            f"{result.run}: {result.steps} steps, {result.tokens:,} target tokens{best} ({result.stopped})",
        )
    if result.stopped == "signal":
        raise typer.Exit(REQUEUE_EXIT_CODE)
