"""The ``ftac`` workflow: what it writes before Snakemake begins (``ftac.smk``), and the table after it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import settings
from ..data.synthetic import SyntheticConfig, generate
from ..errors import MnmtError
from ..groups import write_groups
from ..runlog import write_atomically
from ..settings import user_path
from ..train.config import RunConfig
from .config import KINDS, Workflow
from .ftac_plan import check_bounds, stage_config, trivial_groups, workflow_table
from .ftac_stages import KIND_OF
from .ftac_stale import REPORT, take_away
from .plan import read_json
from .snake import Resources, Result, Say, check_installed, hold, run_snakemake

TABLE = "ftac"
"""Name of the table's files in OUT."""


def construct_languages(workflow: Workflow, say: Say) -> None:
    """Writes the constructed languages of a workflow that asks for some, where they are not there yet."""
    asked = workflow.config.constructed
    if asked is None or (user_path(asked.out) / "truth.json").is_file():
        return
    truth = generate(settings.load(SyntheticConfig, workflow.path.parent / asked.settings), user_path(asked.out))
    say(f"{asked.out}: {len(truth.languages)} constructed languages, {sum(truth.sizes.values()):,} training pairs")


def run_ftac(
    workflow: Workflow,
    tasks: Sequence[str],
    out: Path,
    resources: Resources,
    say: Say,
) -> dict[str, Any]:
    """Does what is not done yet, then tabulates what there is: OUT/ftac.{md,csv,json}.

    Args:
        tasks: names of the directions (``ftac_plan.tasks_of``).
        resources: of this machine or of Slurm.

    Returns:
        ``table`` (None where nothing is evaluated), ``interrupted``.

    Raises:
        MnmtError: E801 without Snakemake or what its options need, E402 when another workflow is at work in OUT, E603 when
            what lies in OUT was made otherwise, E604 when a stage failed (after the others and the table).
    """
    check_installed(resources.options)
    check_bounds(workflow, tasks)
    lock = hold(out)
    try:
        check_same(workflow, tasks, out)
        begin(workflow, tasks, out)
        result = run_snakemake(
            "ftac.smk",
            out,
            stage_config(workflow, tasks, out, resources),
            cores=resources.cores,
            gpus=resources.gpus,
            options=resources.options,
            say=say,
            lock=lock,
        )
        table = _table_of(result, out, say)
    finally:
        lock.release()
    if result.failed:
        first, why = next(iter(result.failed.items()))
        more = f" and {len(result.failed) - 1} more" if len(result.failed) > 1 else ""
        remedy = f"read {result.logs.get(first, out / 'logs')}; the same command goes on with what is not finished"
        raise MnmtError("E604", f"{first}{more} failed: {why}", where=str(out), remedy=remedy)
    return {"out": str(out), "table": table, "interrupted": result.interrupted}


def begin(workflow: Workflow, tasks: Sequence[str], out: Path) -> None:
    """Writes what Snakemake starts from, and takes away what says that something is done which is not."""
    (out / "settings").mkdir(parents=True, exist_ok=True)
    for kind, config in workflow.trainings.items():
        write_atomically(settings_file(out, kind), settings.dump(config))
    for system, grouping in trivial_groups(tasks).items():
        for seed in workflow.config.seeds:
            path = out / system / f"seed-{seed}" / "groups.json"
            if not path.is_file():  # a newer file would have everything behind it done again
                write_groups(path, grouping, {"sources": []})
    table = workflow_table(workflow, tasks)
    if read_json(out / "workflow.json") != table:
        (out / REPORT).unlink(missing_ok=True)
    write_atomically(out / "workflow.json", json.dumps(table, indent=1) + "\n")
    take_away(workflow, out)


def check_same(workflow: Workflow, tasks: Sequence[str], out: Path) -> None:
    """E603, naming the first difference, when trainings in OUT have other settings, or groups were decided otherwise."""
    had = read_json(out / "workflow.json")
    if had is None:
        return
    remedy = "give another --out, or remove what was made with it"
    if had.get("tasks") != list(tasks):
        differing = sorted(set(had.get("tasks") or ()) ^ set(tasks))
        raise MnmtError("E603", f"other directions than before: {', '.join(differing[:5])}", where=str(out), remedy=remedy)
    for kind in KINDS:
        path = settings_file(out, kind)
        if not path.is_file() or not any(_runs(out, kind)):
            continue
        before = settings.load(RunConfig, path).model_dump(mode="json")
        for key, was, now in _differences(before, workflow.trainings[kind].model_dump(mode="json")):
            what = f"the {kind} trainings there have {key} = {was!r}, this workflow {now!r}"
            raise MnmtError("E603", what, where=str(out), remedy=remedy)
    decided = [p for p in out.glob("*/seed-*/groups.json") if p.parent.parent.name not in KIND_OF]
    for key, was, now in _differences(had.get("clustering") or {}, workflow.config.clustering.model_dump()):
        if decided:
            what = f"groups were decided with clustering.{key} = {was!r}, this workflow has {now!r}"
            raise MnmtError("E603", what, where=str(decided[0]), remedy=remedy)
    was, now = had.get("families"), workflow_table(workflow, tasks)["families"]
    by_families = [p for p in decided if p.parent.parent.name == "linguistic"]
    if by_families and was != now:
        what = f"groups were decided with families = {was!r}, this workflow has {now!r}"
        raise MnmtError("E603", what, where=str(by_families[0]), remedy=remedy)


def _table_of(result: Result, out: Path, say: Say) -> dict[str, Any] | None:
    """The table; that there can be none does not hide what failed."""
    try:
        return write_table(out)
    except MnmtError as error:
        if result.ok:
            raise
        say(f"no table: {error}")
        return None


def write_table(out: Path) -> dict[str, Any] | None:
    """OUT/ftac.{md,csv,json} from the systems that are evaluated; None where none is."""
    from ..report.systems import collect_systems
    from ..report.systems_text import systems_csv, systems_markdown

    table = collect_systems(out, read_json(out / "workflow.json") or {})
    if table is not None:
        write_atomically(out / f"{TABLE}.md", systems_markdown(table))
        write_atomically(out / f"{TABLE}.csv", systems_csv(table))
        write_atomically(out / f"{TABLE}.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    return table


def settings_file(out: Path, kind: str) -> Path:
    """Where the resolved settings of a kind of training lie."""
    return out / "settings" / f"{kind}.toml"


def _runs(out: Path, kind: str) -> Iterator[Path]:
    """Run directories of a kind that were begun."""
    for path in out.glob("*/seed-*/cluster-*/config.toml"):
        if KIND_OF.get(path.parents[2].name, "clusters") == kind:
            yield path.parent


def _differences(had: dict[str, Any], want: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value there, value asked for) of the settings that differ."""
    for key in sorted(had.keys() | want.keys()):
        one, other = had.get(key), want.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key}", one, other
