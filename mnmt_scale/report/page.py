"""The report: one self-contained page about runs, a bundle of cluster models or a workflow of them, and the same numbers as
JSON and CSV beside it.

No script, nothing fetched, every string escaped: the page can be mailed and opened anywhere.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MnmtError
from ..groups import GroupsFile
from . import scores, sections, sections_affinity, sections_method, sections_workflow, tables
from .canvas import color_of
from .html import headline, notes, page, paragraph, section, swatch
from .numbers import finite, probe_numbers
from .read import RunData
from .systems_text import systems_csv
from .workflow import WorkflowData, expanded, is_workflow, read_workflow


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Write the page about what lies at ``paths`` to ``out``, and OUT's name with .json and .csv beside it.

    Args:
        paths: run directories and bundles; one workflow directory alone makes a page about its systems, among others it stands
            for the bundle that it serves.

    Returns:
        ``out``.

    Raises:
        MnmtError: E407 when a path is none of these, E401 when ``out`` cannot be written.
    """
    from ..runlog import write_atomically

    workflow = read_workflow(paths[0]) if len(paths) == 1 and is_workflow(paths[0]) else None
    runs = expanded(paths) if workflow is None else workflow.runs
    files = {
        ".html": render(runs, out.stem, workflow),
        ".json": json.dumps(as_json(runs, workflow), indent=1, allow_nan=False) + "\n",
        ".csv": as_csv(runs) if workflow is None or workflow.table is None else systems_csv(workflow.table),
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in files.items():
            write_atomically(out if suffix == ".html" else out.with_suffix(suffix), content)
    except OSError as error:
        raise MnmtError("E401", f"cannot write the report: {error.strerror}", where=str(out)) from None
    return out


def render(runs: Sequence[RunData], stem: str = "report", workflow: WorkflowData | None = None) -> str:
    """The page as one string; ``stem`` names the files that its links save."""
    draw = sections.Drawing()
    title = "Training report: " + ", ".join(run.name for run in runs)
    if workflow is not None:
        title = f"Workflow report: {workflow.about.get('name') or workflow.path.resolve().name}"
    names = " &nbsp; ".join(
        swatch(color_of(i), run.name if run.method in ("joint", run.name) else f"{run.name} ({run.method})")
        for i, run in enumerate(runs)
    )
    written = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    gaps = [f"{run.name}: {line}" if len(runs) > 1 else line for run in runs for line in run.missing]
    if workflow is None:
        first = {
            "summary": ("Summary", sections.summary(runs)),
            "scores": ("Translation quality", sections.scores(runs, draw, as_csv(runs), stem)),
            "clusters": ("Clusters", sections_affinity.clusters(runs)),
            "affinity": ("Affinity of the directions", sections_affinity.affinity(runs, draw)),
        }
    else:  # the scores are the bundles', so that runs have none of their own
        gaps = [*workflow.missing, *(line for line in gaps if "No evaluation" not in line)]
        first = {
            "scores": ("Translation quality", sections_workflow.systems(workflow, draw)),
            "clusters": ("Clusters", sections_workflow.clusters(workflow)),
            "affinity": ("Affinity of the directions", sections_workflow.affinities(workflow, draw)),
            "summary": (f"The runs of {'/seed-'.join(map(str, workflow.serve))}", sections.summary(runs) if runs else ""),
        }
    parts = {**first, **(_training(runs, draw) if runs else {})}
    parts = {anchor: part for anchor, part in parts.items() if part[1]}
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, (name, _) in parts.items())
    head = f'<header>\n{headline(title)}\n<p class="soft">{names}</p>\n<nav>{links}</nav>\n</header>'
    foot = paragraph(f"Written {written}. All numbers of this page are in {stem}.json beside it.", "soft")
    body = "\n".join([head, notes(gaps), *(section(anchor, name, content) for anchor, (name, content) in parts.items()), foot])
    return page(title, body)


def _training(runs: Sequence[RunData], draw: sections.Drawing) -> dict[str, tuple[str, str]]:
    """The parts about how the runs were trained."""
    return {
        "losses": ("Losses", sections.losses(runs, draw)),
        "weights": ("Weights of the directions", sections_method.weights(runs, draw)),
        "geometry": ("Gradients and curvature", sections_method.geometry(runs, draw)),
        "sampling": ("Sampling", sections.sampling(runs, draw)),
        "optimisation": ("Speed and optimisation", sections.optimisation(runs, draw)),
        "settings": ("Settings and environment", sections.settings(runs)),
    }


def as_json(runs: Sequence[RunData], workflow: WorkflowData | None = None) -> dict[str, Any]:
    """Everything that the page shows, and the curves in full; a number that is not finite is null."""
    split = scores.main_split(runs)
    content = {
        "split": split,
        "runs": [_run(run) for run in runs],
        "directions": tables.direction_rows(runs, split),
        "averages": scores.average_rows(runs, split),
        "tokens_to_reach": tables.reach_rows(runs),
    }
    if workflow is not None:
        content["workflow"] = {
            **workflow.about,
            "systems": workflow.table,
            "groups": {f"{system}/seed-{seed}": _groups(found) for (system, seed), found in workflow.groups.items()},
            "affinity": {
                str(seed): probe_numbers(run, run.probes["affinity"])
                for seed, run in workflow.universal.items()
                if "affinity" in run.probes
            },
            "seeds_agree": sections_workflow.seed_agreement(workflow),
            "missing": workflow.missing,
        }
    return finite(content)


def _run(run: RunData) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "missing": run.missing,
        "summary": tables.summary_row(run),
        "settings": run.config,
        "environment": run.environment,
        "plan": run.plan,
        "train": run.train,
        "valid": run.valid,
        "checkpoints": run.checkpoints,
        "events": run.events,
        "evaluations": run.evaluations,
        "method": {"label": run.method, "lines": run.observed},
        "class_losses": tables.class_losses(run),
        "gradients": run.gradients,
        "curvature": run.curvature,
        "probes": {kind: probe_numbers(run, probe) for kind, probe in run.probes.items()},
        "groups": None if run.groups is None else _groups(run.groups),
    }


def _groups(found: GroupsFile) -> dict[str, Any]:
    grouping = found.grouping
    return {"method": grouping.method, "clusters": grouping.clusters, "helpers": grouping.helpers, "about": found.about}


def as_csv(runs: Sequence[RunData]) -> str:
    """The table per direction, one line a direction and run."""
    rows = tables.direction_rows(runs, scores.main_split(runs))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(tables.DIRECTION_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _inert(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def _inert(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula, quoted."""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
