"""The report: one self-contained page about one or several runs, and the same numbers as JSON and CSV beside it.

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
from . import scores, sections, sections_method, tables
from .canvas import color_of
from .html import headline, notes, page, paragraph, section, swatch
from .numbers import finite, probe_numbers
from .read import RunData, read_runs


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Write the page about the runs at ``paths`` to ``out``, and OUT's name with .json and .csv beside it.

    Returns:
        ``out``.

    Raises:
        MnmtError: E407 when a path is not a run directory, E401 when ``out`` cannot be written.
    """
    from ..runlog import write_atomically

    runs = read_runs(paths)
    files = {
        ".html": render(runs, out.stem),
        ".json": json.dumps(as_json(runs), indent=1, allow_nan=False) + "\n",
        ".csv": as_csv(runs),
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in files.items():
            write_atomically(out if suffix == ".html" else out.with_suffix(suffix), content)
    except OSError as error:
        raise MnmtError("E401", f"cannot write the report: {error.strerror}", where=str(out)) from None
    return out


def render(runs: Sequence[RunData], stem: str = "report") -> str:
    """The page as one string; ``stem`` names the files that its links save."""
    draw = sections.Drawing()
    title = "Training report: " + ", ".join(run.name for run in runs)
    names = " &nbsp; ".join(
        swatch(color_of(i), run.name if run.method in ("joint", run.name) else f"{run.name} ({run.method})")
        for i, run in enumerate(runs)
    )
    written = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    gaps = [f"{run.name}: {line}" if len(runs) > 1 else line for run in runs for line in run.missing]
    parts = {
        "summary": ("Summary", sections.summary(runs)),
        "scores": ("Translation quality", sections.scores(runs, draw, as_csv(runs), stem)),
        "losses": ("Losses", sections.losses(runs, draw)),
        "weights": ("Weights of the directions", sections_method.weights(runs, draw)),
        "geometry": ("Gradients and curvature", sections_method.geometry(runs, draw)),
        "sampling": ("Sampling", sections.sampling(runs, draw)),
        "optimisation": ("Speed and optimisation", sections.optimisation(runs, draw)),
        "settings": ("Settings and environment", sections.settings(runs)),
    }
    parts = {anchor: part for anchor, part in parts.items() if part[1]}
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, (name, _) in parts.items())
    head = f'<header>\n{headline(title)}\n<p class="soft">{names}</p>\n<nav>{links}</nav>\n</header>'
    foot = paragraph(f"Written {written}. All numbers of this page are in {stem}.json beside it.", "soft")
    body = "\n".join([head, notes(gaps), *(section(anchor, name, content) for anchor, (name, content) in parts.items()), foot])
    return page(title, body)


def as_json(runs: Sequence[RunData]) -> dict[str, Any]:
    """Everything that the page shows, and the curves in full; a number that is not finite is null."""
    split = scores.main_split(runs)
    content = {
        "split": split,
        "runs": [
            {
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
            }
            for run in runs
        ],
        "directions": tables.direction_rows(runs, split),
        "averages": scores.average_rows(runs, split),
        "tokens_to_reach": tables.reach_rows(runs),
    }
    return finite(content)


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
