"""``mnmt prepare``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MnmtError
from .common import Json, Set, emit

_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MV2_COMM_WORLD_SIZE")


def prepare(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings, a TOML file of configs/.")],
    set_: Set = [],  # noqa: B006 (typer reads it)
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List corpora and directions, write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Corpora -> cleaned text -> tokenizer -> token store. Under mpirun the pairs are shared out over the ranks.

    Example: mpirun -n 8 mnmt prepare configs/lafand.toml --set data.store=stores/lafand
    """
    comm = mpi_communicator()
    rank, size = (0, 1) if comm is None else (comm.Get_rank(), comm.Get_size())
    try:
        result, text = _run(config, set_, dry_run, rank, size, comm)
    except Exception:
        if rank == 0:
            raise
        sys.exit(0)  # all ranks have the same error; the first one tells it and gives the exit code
    if rank == 0:
        emit(result, as_json, text)


def mpi_communicator() -> Any:
    """The world communicator where an MPI launcher started more than one process, else None.

    Raises:
        MnmtError: E801 when mpi4py is missing there.
    """
    if all(int(os.environ.get(name) or 1) == 1 for name in _MPI_SIZES):
        return None
    try:
        from mpi4py import MPI
    except ImportError:
        raise MnmtError("E801", "mpi4py is missing", remedy="pip install mpi4py, or start without mpirun") from None
    return MPI.COMM_WORLD


def report_table(report: dict[str, Any]) -> str:
    """What ``prepare`` did, a line per pair: read, kept, dropped per reason, tokens per side, dev and test, what leaks."""
    from ..data.clean import REASONS

    pairs = report["pairs"]
    reasons = [r for r in REASONS if any(r in p["dropped"] for p in pairs.values())]
    leaks = any("leaked" in p.get(split, {}) for p in pairs.values() for split in ("dev", "test"))
    header = ["pair", "read", "kept", *reasons, "tokens", "dev", "test", "cut", *(["leaked"] if leaks else [])]
    rows = []
    for pair, counts in pairs.items():
        dropped = [counts["dropped"].get(reason, 0) for reason in reasons]
        tokens = " + ".join(f"{counts['tokens'].get(language, 0):,}" for language in pair.split("-"))
        held = [counts.get(split, {}) for split in ("dev", "test")]
        sentences = [h.get("sentences", "-") for h in held]
        last = [sum(h.get(key, 0) for h in held) for key in (["cut", "leaked"] if leaks else ["cut"])]
        rows.append([pair, counts["read"], counts["kept"], *dropped, tokens, *sentences, *last])
    sums = [sum(row[i] for row in rows) for i in range(1, 3 + len(reasons))]
    total = sum(sum(counts["tokens"].values()) for counts in pairs.values())
    ends = [sum(row[i] for row in rows) for i in ((-2, -1) if leaks else (-1,))]
    rows.append(["all", *sums, f"{total:,}", "", "", *ends])
    lines = columns([header, *rows])
    if leaks:
        lines.append("leaked: drawn sentences of dev and test with a side that is training text of another pair")
    lines.append(f"{len(report['tasks'])} directions, vocabulary {report['vocabulary_size']:,}")
    return "\n".join(lines)


def _run(config: Path, overrides: list[str], dry_run: bool, rank: int, size: int, comm: Any) -> tuple[dict, str]:
    from .. import settings
    from ..data.build import prepare as run_prepare
    from ..data.ranks import Ranks
    from ..train.config import RunConfig

    data = Ranks(rank, size, comm).alike(lambda: settings.load(RunConfig, config, overrides)).data
    if dry_run:
        return _plan(data)
    report = run_prepare(data, rank=rank, size=size, comm=comm, log=lambda line: print(line, file=sys.stderr, flush=True))
    return {"store": data.store, **report}, report_table(report)


def _plan(data: Any) -> tuple[dict[str, Any], str]:
    from ..data.corpus import find_corpora, trained_tasks

    corpora = find_corpora(data)
    tasks = trained_tasks(data, corpora).names
    table: dict[str, dict[str, Any]] = {
        c.pair: {
            "use": "training" if c.trained else "evaluation",
            "bytes": {split: source.bytes for split, source in c.sources.items()},
            "files": [str(path) for source in c.sources.values() for path in source.paths],
        }
        for c in corpora
    }
    rows = [["pair", "use", "train MB", "dev MB", "test MB"]]
    for pair, entry in table.items():
        sizes = [f"{entry['bytes'][s] / 1e6:.2f}" if s in entry["bytes"] else "-" for s in ("train", "dev", "test")]
        rows.append([pair, entry["use"], *sizes])
    text = "\n".join([*columns(rows), f"{len(tasks)} directions: {' '.join(tasks)}"])
    return {"store": data.store, "pairs": table, "tasks": tasks}, text


def columns(rows: list[list[Any]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right, whole numbers with commas."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
