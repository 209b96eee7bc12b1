"""What ``mnmt workflow ftac`` prints: its trainings with estimated hours before it begins, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..workflows.config import Workflow
from .prepare import columns


def estimated(
    workflow: Workflow, tasks: Sequence[str], out: Path, gpu: str | None, gpus: int, threads: int | None
) -> dict[str, Any]:
    """Every training with its estimated hours; of clusters that are not decided yet, the range that their number can have.

    Args:
        gpu: kind of device as in ``mnmt estimate``; None: an A100 where trainings have GPUs, else the CPU.
        gpus: of each training; 0: the CPU.
        threads: of each training on the CPU; None: two.
    """
    from ..workflows.ftac_plan import plan, probing_cost

    each = {}
    for kind, config in workflow.trainings.items():
        found = _estimate(config, gpu, gpus, threads)
        cost = probing_cost(config, len(tasks))
        each[kind] = {
            "hours": found["hours"] * cost,
            "probing": cost,
            **{key: found[key] for key in ("steps", "tokens_per_second", "parameters")},
        }
        device = {"device": _named(found, gpus, threads), "gpus": found["gpus"], "dtype": found["dtype"]}
    rows = []
    for planned in plan(workflow, tasks, out):
        hours = 0.0 if planned.state == "finished" else each[planned.kind]["hours"]
        rows.append(
            {
                "name": planned.name,
                "system": planned.system,
                "seed": planned.seed,
                "kind": planned.kind,
                "state": planned.state,
                "serves": list(planned.serves),
                "helpers": list(planned.helpers),
                "number": [planned.low, planned.high],
                "hours": [planned.low * hours, planned.high * hours],
            }
        )
    left = [row for row in rows if row["state"] != "finished"]
    totals = {key: [sum(row[key][end] for row in left) for end in (0, 1)] for key in ("number", "hours")}
    return {"out": str(out), "tasks": list(tasks), "kinds": each, **device, "trainings": rows, **totals}


def render(found: dict[str, Any]) -> str:
    """The plan for people."""
    rows = [["training", "for", "state", "hours"]]
    for row in found["trainings"]:
        serves, helpers = row["serves"], row["helpers"]
        what = _some(serves) if serves else f"{_range(row['number'], 'd')} models"
        what += f" + {len(helpers)} helpers" if helpers else ""
        rows.append([row["name"], what, row["state"], _range(row["hours"], ",.2f")])
    rows.append(["all that is not finished", f"{_range(found['number'], 'd')} models", "", _range(found["hours"], ",.2f")])
    lines = columns(rows)
    lines += [
        "",
        f"Estimates by formula for a training on {found['device']} ({found['dtype']}), one after another; evaluation, "
        "validation and checkpoints are not counted:",
    ]
    for kind, each in found["kinds"].items():
        if all(row["kind"] != kind for row in found["trainings"]):
            continue
        probing = f", {each['probing']:.2f} times a plain step for probing" if each["probing"] > 1 else ""
        lines.append(
            f"  {kind}: {each['parameters']:,} parameters, {each['steps']:,} steps, "
            f"{each['tokens_per_second']:,.0f} target tokens per second{probing}"
        )
    unknown = [row for row in found["trainings"] if not row["serves"]]
    if unknown:
        lines.append("The number of clusters is known once the universal model is trained: one to as many as may be.")
    return "\n".join(lines)


def render_table(result: dict[str, Any], out: Path) -> str:
    """The table after a workflow has ended."""
    from ..report.systems_text import systems_markdown
    from ..workflows.ftac import TABLE

    if result["table"] is None:
        return "no system is evaluated, so there is no table yet"
    return f"{systems_markdown(result['table'])}\nwritten: {out}/{TABLE}.md, {TABLE}.csv, {TABLE}.json, report.html"


def _estimate(config: Any, gpu: str | None, gpus: int, threads: int | None) -> dict[str, Any]:
    from ..bench.devices import device_of
    from ..bench.estimate import Assumptions, estimate

    device = device_of(gpu or ("a100-80" if gpus else "cpu"))
    rate = None if device.is_gpu else device.fp32_rate * (threads or 2) / 2  # the known rate is of two cores
    return estimate(config, device, max(gpus, 1), Assumptions(rate=rate))


def _named(found: dict[str, Any], gpus: int, threads: int | None) -> str:
    return f"{max(gpus, 1)} x {found['device']}" if gpus else f"{threads or 2} core(s) of {found['device']}"


def _some(names: Sequence[str]) -> str:
    return " ".join(names) if len(names) <= 8 else f"{len(names)} directions"


def _range(ends: Sequence[float], form: str) -> str:
    low, high = (format(end, form) for end in ends)
    return low if low == high else f"{low} to {high}"
