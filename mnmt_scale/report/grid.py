"""Tables as text: markdown that can be read as it stands, and the cells that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def grid(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first row is its head, columns are padded to their longest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def mean(cell: Mapping[str, Any] | None, digits: int = 2) -> str:
    """A mean (``evaluation.statistics.Mean`` as a table) with the half width of its interval."""
    if cell is None:
        return "-"
    text = f"{cell['mean']:.{digits}f}"
    return text if cell["low"] is None else f"{text} +- {cell['high'] - cell['mean']:.{digits}f}"


def difference(cell: Mapping[str, Any] | None, key: str) -> str:
    """A difference, ``cell[key]``, with its interval and p; alone where there is no interval."""
    if cell is None:
        return "-"
    if cell["low"] is None:
        return f"{cell[key]:+.2f}"
    return f"{cell[key]:+.2f} [{cell['low']:+.2f}, {cell['high']:+.2f}] p {cell['p']:.3f}"


def average(values: Sequence[float | None], unit: float, digits: int) -> str:
    """Mean of those values that are known, in a unit."""
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known) / unit:.{digits}f}" if known else "-"
