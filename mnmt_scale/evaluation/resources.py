"""Resource classes of directions, named in the settings or by sentences of training text, and averages over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import MnmtError, nearest
from ..tasks import parse_direction
from .config import EvaluationConfig

CLASSES = ("low", "medium", "high")
METRICS = ("bleu", "chrf", "nll", "perplexity", "comet")


def resource_class(sentences: int, config: EvaluationConfig) -> str:
    """``low`` below ``low_below`` training sentences, ``high`` from ``high_from``, ``medium`` between."""
    if sentences < config.low_below:
        return "low"
    return "high" if sentences >= config.high_from else "medium"


def class_of(name: str, sentences: int, config: EvaluationConfig) -> str:
    """The class that ``config.classes`` names for a direction, or for one of its languages; else the one by its size.

    Raises:
        MnmtError: E104 when entries of two classes cover the direction.
    """
    covering = _covering(name, config)
    if len(set(covering.values())) > 1:
        said = " and ".join(f"{group} by {entry!r}" for entry, group in covering.items())
        raise MnmtError("E104", f"{name} is {said}", where="evaluation.classes", remedy="let one class cover it")
    return next(iter(covering.values())) if covering else resource_class(sentences, config)


def check_classes(names: Sequence[str], pivot: str, config: EvaluationConfig) -> None:
    """Refuses ``config.classes`` that do not fit the directions ``names``: asked before training and before evaluation.

    Raises:
        MnmtError: E105 for an entry that is neither a direction nor a language of them (the nearest is named), E104 for
            one that stands twice, for a pivot that is in every direction, and for a direction that two classes cover.
    """
    sides = [parse_direction(name) for name in names]
    languages = {code for pair in sides for code in pair}
    everywhere = all(pivot in pair for pair in sides)
    seen: dict[str, str] = {}
    for group, entries in (config.classes or {}).items():
        for entry in entries:
            where = f"evaluation.classes.{group}"
            if entry in seen:
                raise MnmtError("E104", f"{entry!r} is named twice, as {seen[entry]} and as {group}", where=where)
            seen[entry] = group
            if entry not in languages and entry not in names:
                remedy = nearest(entry, [*names, *sorted(languages)])
                raise MnmtError("E105", f"{entry!r} is no direction or language of this model", where=where, remedy=remedy)
            if entry == pivot and everywhere:
                raise MnmtError("E104", f"{entry!r} is in every direction, so it makes no class", where=where)
    for name in names:
        class_of(name, 0, config)


def covered_classes(names: Sequence[str], config: EvaluationConfig) -> dict[str, list[str]] | None:
    """``config.classes`` for some of its directions alone: in each class those of ``names`` that it covers."""
    if config.classes is None:
        return None
    return {group: [n for n in names if group in _covering(n, config).values()] for group in config.classes}


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


def _covering(name: str, config: EvaluationConfig) -> dict[str, str]:
    """Entry -> class of the entries that are the direction or one of its languages."""
    if not config.classes:
        return {}
    wanted = (name, *name.split("-"))
    return {entry: group for group in CLASSES for entry in config.classes.get(group, ()) if entry in wanted}
