"""``mnmt report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Json, emit


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Runs, bundles, or one workflow directory; the first run is the baseline.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; default RUN/report.html, with several runs report.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One self-contained page: losses, scores, sampling, weights of the directions, gradients, curvature and affinity where
    they were measured, clusters, speed, settings; several runs side by side. Of a workflow directory the table of its systems,
    their clusters, and the runs of the bundle that it serves.

    Writes FILE and, with all its numbers, the same name with .json and (the table per direction) .csv.

    Example: mnmt report runs/first runs/second --out compare.html
    """
    from ..report.page import write_report

    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    write_report(runs, page)
    files = {"html": str(page), "json": str(page.with_suffix(".json")), "csv": str(page.with_suffix(".csv"))}
    emit({"runs": [str(run) for run in runs], **files}, as_json, str(page))
