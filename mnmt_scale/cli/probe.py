"""``mnmt probe``: gradients and curvature by direction, into a probe file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, Set, emit

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Measure the gradients or the curvature of every direction at a run's weights, or at fresh ones of a settings file.",
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


def _probe(kind: Any, source: Path, overrides: list[str], weights: str, out: Path | None, as_json: bool) -> None:
    from .. import dist
    from ..train.probe_run import probe

    found = probe(kind, source, overrides, weights=weights, out=out, say=_tell)
    dist.leave()
    if found.rank == 0:
        result = {"file": str(found.path), **found.about, **found.summary}
        lines = (
            table_of_groups(found.summary["groups"])
            if kind == "gradients"
            else table_of_directions(found.summary["directions"])
        )
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
