"""``mnmt cluster``: from a probe file to a groups file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, emit

Method = Annotated[
    str, typer.Argument(metavar="METHOD", help="ftac, htac, average, lec, linguistic, random, bilingual or universal.")
]
Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="SOURCE...",
        help="Probe files, or run directories (their newest probe): affinity for ftac, htac, average (several are pooled), "
        "vectors for lec. A groups file for random. A run, settings, probe or groups file for the others.",
    ),
]
Clusters = Annotated[
    int | None, typer.Option(metavar="K", help="ftac, htac: at most K; lec, average: exactly K (default: the elbow).")
]
Tolerance = Annotated[
    float | None, typer.Option(min=0.0, help="ftac, htac: the relative gain that is none, and the width of a tie; 1e-9.")
]
Families = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Families of the languages, to print agreement with: code = family, a truth.json; 'table': by common codes.",
    ),
]
Tasks = Annotated[
    Path | None, typer.Option(metavar="CONFIG_OR_RUN", help="Refuse a source that does not cover these directions.")
]


def cluster(
    method: Method,
    sources: Sources,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The groups file.")] = Path("groups.json"),
    clusters: Clusters = None,
    at_least: Annotated[int | None, typer.Option(metavar="K", help="ftac, htac: stop at K clusters.")] = None,
    since: Annotated[int | None, typer.Option(metavar="STEP", help="Only windows that begin at STEP or later.")] = None,
    statistic: Annotated[str | None, typer.Option(help="Of the measurements of a cell: mean or sum.")] = None,
    min_count: Annotated[
        int | None, typer.Option(min=0, help="Fewest measurements of a cell; default 2, with 0 unmeasured cells are 0.")
    ] = None,
    tolerance: Tolerance = None,
    helpers: Annotated[
        str | None, typer.Option(help="fuzzy (those that help all of a cluster), random (as many), none.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of what is random.")] = None,
    linkage: Annotated[str | None, typer.Option(help="lec: ward, average, complete or single.")] = None,
    families: Families = None,
    tasks: Tasks = None,
    as_json: Json = False,
) -> None:
    """Decide which directions train together, and which only help: writes a groups file that a training reads.

    Affinity has the trained direction as row and the affected one as column. What to be careful about is said on standard
    error and kept in the file.

    Example: mnmt cluster ftac runs/universal --clusters 10 --since 20000 --out groups.json
    """
    from ..groups import write_groups
    from ..methods.affinity.decide import Options, decide

    options = Options(
        clusters=clusters,
        at_least=at_least,
        since=since,
        statistic=_one_of("--statistic", statistic, ("mean", "sum")),
        min_count=min_count,
        tolerance=tolerance,
        helpers=_one_of("--helpers", helpers, ("fuzzy", "random", "none")),
        seed=seed,
        linkage=_one_of("--linkage", linkage, ("ward", "average", "complete", "single")),
        families=families,
        tasks=tasks,
    )
    decision = decide(method, sources, options)
    write_groups(out, decision.grouping, decision.about)
    for warning in decision.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    grouping = decision.grouping
    result = {"file": str(out), "method": method, "clusters": grouping.clusters, "helpers": grouping.helpers, **decision.about}
    emit(result, as_json, "\n".join([*_table(result), *_agreement(result), f"written: {out}"]))


def _one_of(option: str, value: Any, known: tuple[str, ...]) -> Any:
    from ..errors import MnmtError, nearest

    if value is not None and value not in known:
        raise MnmtError("E608", f"no such choice: {value!r}", where=option, remedy=nearest(value, known) or ", ".join(known))
    return value


def _table(result: dict[str, Any]) -> list[str]:
    """A line per cluster: number, score where there is one, directions, and behind ``+`` its helpers."""
    scores = result.get("scores")
    lines = [f"{sum(map(len, result['clusters']))} directions in {len(result['clusters'])} clusters"]
    if scores is not None:
        lines[0] += f", overall affinity {result['overall']:.4g}"
    for k, (directions, helpers) in enumerate(zip(result["clusters"], result["helpers"], strict=True)):
        number = f"{k:>3}" + ("" if scores is None else f" {scores[k]:>10.4g}")
        lines.append(f"{number}  {' '.join(directions)}" + (f"  + {' '.join(helpers)}" if helpers else ""))
    return lines


def _agreement(result: dict[str, Any]) -> list[str]:
    found = result.get("agreement")
    if found is None:
        return []
    lines = [f"against families: adjusted Rand index {found['adjusted_rand']:.3f}"]
    if found["effect"] is not None:
        e = found["effect"]
        lines.append(
            f"affinity within families {e['within']:.4g}, across {e['across']:.4g}: effect size "
            f"{'-' if e['size'] is None else format(e['size'], '.2f')}, "
            f"p = {e['p']:.2g} ({e['permutations']} permutations of the families)"
        )
    return lines
