"""Averages over directions: all of them, and by resource class (sentences of training text)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .config import EvaluationConfig

CLASSES = ("low", "medium", "high")
METRICS = ("bleu", "chrf", "nll", "perplexity", "comet")


def resource_class(sentences: int, config: EvaluationConfig) -> str:
    """``low`` below ``low_below`` training sentences, ``high`` from ``high_from``, ``medium`` between."""
    if sentences < config.low_below:
        return "low"
    return "high" if sentences >= config.high_from else "medium"


def averages(directions: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Plain means over directions: ``all`` and each class that occurs among the trained ones, ``zero-shot`` apart.

    Args:
        directions: per direction its ``class`` (or ``zero-shot``), metrics, and ``bleu_signature``.

    Returns:
        Per group the number of directions, the mean of every metric that all of them have, and ``mixed_signatures``,
        True where BLEU was not computed alike in all of them, so that their mean is no comparable number.
    """
    trained = [row for row in directions.values() if row["class"] != "zero-shot"]
    groups = {"all": trained}
    for name in (*CLASSES, "zero-shot"):
        groups[name] = [row for row in directions.values() if row["class"] == name]
    return {name: _mean(rows) for name, rows in groups.items() if rows}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {"directions": len(rows)}
    for metric in METRICS:
        values = [row[metric] for row in rows if row.get(metric) is not None]
        if len(values) == len(rows):
            out[metric] = sum(values) / len(values)
    out["mixed_signatures"] = len({row["bleu_signature"] for row in rows}) > 1
    return out
