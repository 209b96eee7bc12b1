"""``mnmt probe``: gradients, curvature and affinity by direction, into a probe file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .common import Json, Set, emit

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Measure the gradients or the curvature of every direction, or how directions affect each other in training.",
)

Source = Annotated[Path, typer.Argument(metavar="CONFIG_OR_RUN", help="A run directory, or a settings file (fresh weights).")]
Weights = Annotated[str, typer.Option(help="Of a run: best, last or step-N.")]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The probe file; default RUN/probes/KIND-step-NNNNNN.safetensors.")
]


@app.command()
def gradients(
    source: Source,
    set_: Set = [],  # noqa: B006 (typer reads it)
    weights: Weights = "best",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Cosine and magnitude similarity of the gradients of all pairs of directions, per group of parameters.

    Alone it is one process; under deepspeed, torchrun, srun or mpirun it is one rank, at any ZeRO stage.

    Example: mnmt probe gradients runs/first --weights last --set probe.sentences=256
    """
    _probe("gradients", source, set_, weights, out, as_json)


@app.command()
def curvature(
    source: Source,
    set_: Set = [],  # noqa: B006 (typer reads it)
    weights: Weights = "best",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Largest, smallest and top (largest magnitude, signed) Hessian eigenvalue of every direction, and the trace.

    Alone it is one process; under deepspeed, torchrun, srun or mpirun it is one rank, at any ZeRO stage.

    Example: mnmt probe curvature runs/first --weights step-1000 --set probe.lanczos_steps=60
    """
    _probe("curvature", source, set_, weights, out, as_json)


@app.command()
def vectors(
    source: Source,
    set_: Set = [],  # noqa: B006 (typer reads it)
    weights: Weights = "best",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Language vectors: the embedding of every language's tag, which mnmt cluster lec groups the languages by.

    Example: mnmt probe vectors runs/universal
    """
    _probe("vectors", source, set_, weights, out, as_json)


@app.command()
def affinity(
    source: Annotated[
        Path, typer.Argument(metavar="CONFIG_OR_RUN", help="Settings of a training, or the directory of one that goes on.")
    ],
    set_: Set = [],  # noqa: B006 (typer reads it)
    run_dir: Annotated[Path | None, typer.Option(help="Of settings: run directory; default runs/NAME.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of a run: updates to measure on from its newest checkpoint; default 1000.")
    ] = None,
    resume: Annotated[
        Literal["auto", "required", "never"],
        typer.Option(help="auto: go on where measuring was stopped; required: fail if it was not; never: begin anew."),
    ] = "auto",
    as_json: Json = False,
) -> None:
    """How training one direction changes the loss of the others: a joint training with steps of single directions between.

    Of settings it is the training itself, with the run directory that mnmt train would make; of a run it goes on in
    RUN/probes/affinity-run and leaves the run as it is. In the table the row is the direction that was trained, the column
    the one that was affected. Exit code 75: stopped by a signal, saved, ready to go on.

    Example: mnmt probe affinity configs/lafand.toml --set method.affinity.estimate_every=10
    """
    from .. import dist
    from ..train.loop import REQUEUE_EXIT_CODE
    from ..train.probe_affinity import probe_affinity

    found = probe_affinity(source, set_, run_dir=run_dir, steps=steps, resume=resume)
    dist.leave()
    if found.trained.rank == 0:
        file = None if found.path is None else str(found.path)
        result = {"file": file, "stopped": found.trained.stopped, **found.about, **found.summary}
        emit(
            result,
            as_json,
            "\n".join(lines_of_affinity(found.summary) + [f"written: {file}" if file else "nothing measured yet"]),
        )
    if found.trained.stopped == "signal":
        raise typer.Exit(REQUEUE_EXIT_CODE)


def lines_of_affinity(summary: dict[str, Any]) -> list[str]:
    """The table of affinity in a few lines."""
    if not summary:
        return []
    low, high = summary["counts"]
    rows = [["trained", "affected", "affinity", "+-"]]
    rows += [[j, i, _number(mean), _number(error)] for j, i, mean, error in summary["strongest"]]
    return [
        f"{low} to {high} measurements of each pair; mean affinity {_number(summary['mean_on_itself'])} of a direction on "
        f"itself, {_number(summary['mean_on_others'])} on others; {summary['beyond_standard_error']} of "
        f"{summary['cells_on_others']} pairs beyond their standard error",
        *_aligned(rows),
    ]


def _probe(kind: Any, source: Path, overrides: list[str], weights: str, out: Path | None, as_json: bool) -> None:
    from .. import dist
    from ..train.probe_run import probe

    found = probe(kind, source, overrides, weights=weights, out=out, say=_tell)
    dist.leave()
    if found.rank == 0:
        result = {"file": str(found.path), **found.about, **found.summary}
        table, key = {
            "gradients": (table_of_groups, "groups"),
            "curvature": (table_of_directions, "directions"),
            "vectors": (table_of_languages, "languages"),
        }[kind]
        lines = table(found.summary[key])
        emit(result, as_json, "\n".join([*lines, f"written: {found.path}"]))


def table_of_groups(groups: dict[str, Any]) -> list[str]:
    """Per group of parameters the mean cosine and gamma of each pair of classes."""
    pairs = sorted({pair for row in groups.values() for means in row.values() for pair in means})
    if not pairs:
        return ["one direction: no pairs to compare"]
    header = ["group", *(f"cos {p}" for p in pairs), *(f"gamma {p}" for p in pairs)]
    body = [
        [group, *(_number(row[name].get(pair)) for name in ("cosine", "magnitude") for pair in pairs)]
        for group, row in groups.items()
    ]
    return _aligned([header, *body])


def table_of_directions(directions: dict[str, Any]) -> list[str]:
    """Per direction the ends of the Hessian's spectrum and its trace."""
    keys = ("top", "largest", "smallest", "trace")
    return _aligned([["direction", *keys], *([name, *(_number(row[k]) for k in keys)] for name, row in directions.items())])


def table_of_languages(languages: dict[str, Any]) -> list[str]:
    """Per language the nearest one by the cosine of their vectors."""
    rows = [[code, _number(row["norm"]), row["nearest"], _number(row["cosine"])] for code, row in languages.items()]
    return _aligned([["language", "norm", "nearest", "cosine"], *rows])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
