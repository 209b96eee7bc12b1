"""The rows of ``mnmt bench kernels`` for people: one table per op, one line per case and candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .kernel_case import OURS
from .table import Row, figure, table_text

HEADER = ["case", "candidate", "p50 ms", "p20 .. p80", "rate", "% of peak", "ours is", "extra MiB", "error", "bits", "remarks"]


def pivot(rows: Sequence[Row]) -> str:
    """Markdown. ``ours is``: how many times as fast as the candidate, the median over rounds; ``error``: the largest against
    fp64, relative to the largest value; ``bits``: whether a second run gave the same; ``extra MiB``: peak memory beyond
    inputs and outputs."""
    ops: dict[str, dict[tuple[str, str], dict[str, Row]]] = {}
    for r in rows:
        lines = ops.setdefault(r["settings"]["op"], {})
        if r["metric"].startswith("speed-up over "):
            rival = r["metric"].removeprefix("speed-up over ")
            lines.setdefault((r["case"], rival), {})["speed-up"] = r
        else:
            lines.setdefault((r["case"], r["candidate"]), {})[r["metric"]] = r
    parts = [_machine(ops.pop("machine"))] if "machine" in ops else []
    for op, lines in ops.items():
        body = [_line(op, case, candidate, by) for (case, candidate), by in lines.items()]
        formulas = dict.fromkeys(
            f"{r['settings']['formula']}, of {r['settings']['peak']}"
            for by in lines.values()
            if (r := _with_formula(by)) is not None
        )
        note = f"\n\nModel: {'; '.join(formulas)}." if formulas else ""
        parts.append(f"## {op}\n\n{table_text(HEADER, body)}{note}")
    return "\n\n".join(parts)


def _machine(lines: dict[tuple[str, str], dict[str, Row]]) -> str:
    rows = [r for by in lines.values() for r in by.values()]
    body = [[r["case"], figure(r["value"]), r["unit"], _spread(r), str(r["settings"].get("error", ""))] for r in rows]
    return "## This machine's peaks\n\n" + table_text(["stream or product", "median", "unit", "p20 .. p80", "remarks"], body)


def _line(op: str, case: str, candidate: str, by: dict[str, Row]) -> list[str]:
    time, rate, error = by.get("time"), by.get("rate"), by.get("relative error")

    def value(metric: str) -> str:
        r = by.get(metric)
        return "" if r is None or r["value"] is None else figure(r["value"])

    remarks = [str(r["settings"]["error"]) for r in by.values() if "error" in r["settings"]]
    if "compile time" in by:
        remarks.append(f"compiled in {figure(by['compile time']['value'])} s")
    return [
        case.removeprefix(f"{op}, "),
        f"**{candidate}**" if candidate == OURS else candidate,
        figure(time["value"]) if time else "",
        _spread(time) if time else "",
        f"{figure(rate['value'])} {rate['unit']}" if rate else "",
        value("share of peak"),
        f"{value('speed-up')} x" if "speed-up" in by else "",
        value("extra memory"),
        f"{error['value']:.1e}" if error else "",
        ("same" if error["settings"]["repeatable"] else "differ") if error else "",
        "; ".join(remarks),
    ]


def _with_formula(by: dict[str, Row]) -> dict[str, Any] | None:
    if "rate" not in by or "share of peak" not in by:
        return None
    return {"settings": by["rate"]["settings"] | by["share of peak"]["settings"]}


def _spread(r: Row) -> str:
    return f"{figure(r['p20'])} .. {figure(r['p80'])}" if r["p20"] is not None else ""
