"""Rows of measurements, and the files that they are written to: JSON, CSV and markdown, with the machine they come from.

A row is a plain dict, so that every benchmark can make one without knowing the others:

    bench      which benchmark: data, train, decode, kernels
    case       what was measured: shape, batch size, number of pairs
    candidate  who: ``mnmt_scale`` or a named rival
    metric     the quantity, with its ``unit``
    value      the figure to quote, None where the candidate failed (then ``settings["error"]`` says how)
    p20, p50, p80   quantiles over repetitions, None where there was only one
    settings   whatever else fixes the measurement: dtype, threads, repetitions, versions
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("bench", "case", "candidate", "metric", "value", "unit", "p20", "p50", "p80")
JOURNAL = "rows.jsonl"
"""Beside a table that is being measured: its rows so far, one a line, gone once the table is written."""
PACKAGES = (
    "numpy", "torch", "sentencepiece", "deepspeed", "transformers", "ctranslate2", "triton", "liger-kernel", "torchjd"
)  # fmt: skip

Row = dict[str, Any]


def row(
    bench: str,
    case: str,
    candidate: str,
    metric: str,
    value: float | Sequence[float] | None,
    unit: str,
    *,
    best: Callable[[Sequence[float]], float] | None = None,
    **settings: Any,
) -> Row:
    """One row. A sequence of repetitions becomes its median as ``value``, or its ``best`` (``max`` or ``min``: the figure
    to quote from a machine that others use too), with p20, p50 and p80; a number stands alone."""
    if value is None or isinstance(value, int | float):
        p20 = p50 = p80 = None
    else:
        p20, p50, p80 = (float(q) for q in np.quantile(np.asarray(value, dtype=np.float64), (0.2, 0.5, 0.8)))
        value = p50 if best is None else float(best(value))
    return dict(zip(COLUMNS, (bench, case, candidate, metric, value, unit, p20, p50, p80), strict=True)) | {
        "settings": settings
    }


def machine() -> dict[str, Any]:
    """Processor, instruction set of the compiled kernels, cores this process may use, memory in bytes, accelerator, operating
    system, Python, package and CUDA compiler versions."""
    return {
        "cpu": _cpu_model(),
        "instruction_set": _instruction_set(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_bytes": _ram_bytes(),
        "gpu": _gpu_name(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def write_tables(
    rows: Sequence[Row], out_dir: str | Path, name: str | None = None, *, body: str | None = None
) -> dict[str, str]:
    """Write ``rows`` as NAME.json (with ``machine()`` and the time), NAME.csv and NAME.md; NAME is the bench's own by default.

    Args:
        body: what NAME.md shows; by default every row.

    Returns:
        suffix -> path of what was written.
    """
    assert rows, "nothing was measured"
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    name = name or rows[0]["bench"]
    here, when = machine(), datetime.now(UTC).isoformat(timespec="seconds")
    paths = {suffix: out / f"{name}.{suffix}" for suffix in ("json", "csv", "md")}
    document = {"machine": here, "measured": when, "rows": list(rows)}
    paths["json"].write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with paths["csv"].open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "settings", "cpu", "measured"], lineterminator="\n")
        writer.writeheader()
        for r in rows:
            flat = {k: r[k] for k in COLUMNS} | {"settings": json.dumps(r["settings"], sort_keys=True)}
            writer.writerow(flat | {"cpu": here["cpu"], "measured": when})
    text = describe_machine(here) + f"\nMeasured {when}.\n\n" + (markdown(rows) if body is None else body) + "\n"
    paths["md"].write_text(text, encoding="utf-8")
    return {suffix: str(path) for suffix, path in paths.items()}


def markdown(rows: Sequence[Row]) -> str:
    """A markdown table: one line a row; settings that differ between rows get a column, the common ones one line below."""
    keys = list(dict.fromkeys(k for r in rows for k in r["settings"]))
    first = rows[0]["settings"]
    common = {
        k: first[k] for k in keys if k in first and all(k in r["settings"] and r["settings"][k] == first[k] for r in rows)
    }
    varying = [k for k in keys if k not in common]
    header = ["case", "candidate", "metric", "value", "unit", "p20 .. p80", *varying]
    lines = [
        [
            str(r["case"]),
            str(r["candidate"]),
            str(r["metric"]),
            figure(r["value"]),
            str(r["unit"]),
            f"{figure(r['p20'])} .. {figure(r['p80'])}" if r["p20"] is not None else "",
            *(figure(r["settings"].get(k, "")) for k in varying),
        ]
        for r in rows
    ]
    text = table_text(header, lines)
    if common:
        text += "\n\nAll rows: " + ", ".join(f"{k} = {figure(v)}" for k, v in common.items()) + "."
    return text


def table_text(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Cells as a markdown table whose columns are also straight as plain text."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, *lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def describe_machine(here: dict[str, Any]) -> str:
    """One markdown paragraph that says where the figures come from."""
    parts = [f"{here['cpu']}, {here['cores']} cores, {here['ram_bytes'] / 2**30:.0f} GiB RAM"]
    if here["instruction_set"]:
        parts.append(f"kernels for {here['instruction_set']}")
    if here["gpu"]:
        parts.append(here["gpu"])
    versions = ", ".join(f"{k} {v}" for k, v in here["versions"].items())
    parts.append(f"{here['system']}, Python {here['python']}, {versions}")
    return "; ".join(parts) + ".\n"


def figure(value: Any) -> str:
    """A number for people: three to four significant digits, thousands separated; ``failed`` for None."""
    if value is None:
        return "failed"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_name() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    count = torch.cuda.device_count()
    return f"{count} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"


def _instruction_set() -> str | None:
    from ..kernels import native

    return native.module().isa() if native.problem is None else None


def _versions() -> dict[str, str]:
    import re
    import shutil
    import subprocess
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if shutil.which("nvcc"):
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False).stdout
        release = re.search(r"release ([\d.]+)", text)
        found |= {"nvcc": release[1]} if release else {}
    return found
