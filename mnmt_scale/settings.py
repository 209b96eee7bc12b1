"""Settings: strict TOML -> pydantic models.

A settings file may name another as ``base = "other.toml"`` (relative to itself); tables are merged key by key, the file
over its base. ``--set section.key=value`` goes over both; the value is read as TOML and, failing that, as a string.
Every section is a ``Section``: unknown keys, wrong types and values out of range are refused with the nearest name, and
the description under each field is what ``mnmt train --help-settings`` prints.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import MnmtError, nearest


class Section(BaseModel):
    """A table of the settings: strict, closed, immutable; the text under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Section)

_UNITS = {
    "_tokens": "a whole number of tokens",
    "_steps": "a whole number of steps",
    "_sentences": "a whole number of sentences",
    "_seconds": "a number of seconds",
    "_minutes": "a number of minutes",
    "_bytes": "a whole number of bytes",
    "_lines": "a whole number of lines",
    "_characters": "a whole number of characters",
}


def load(schema: type[S], path: str | Path | None, overrides: Sequence[str] = ()) -> S:
    """Settings of ``path`` (None: defaults alone) with ``section.key=value`` overrides.

    Raises:
        MnmtError: E101 unknown setting, E102 wrong type, unit or value, E103 file missing or not TOML.
    """
    table = read_table(Path(path)) if path is not None else {}
    where = str(path) if path is not None else "the settings"
    for text in overrides:
        merge(table, parse_override(text))
    return validate(schema, table, where)


def validate(schema: type[S], table: dict[str, Any], where: str) -> S:
    """``table`` as a ``schema``; pydantic's first complaint becomes one line."""
    try:
        return schema.model_validate(table)
    except ValidationError as error:
        raise _explain(schema, error, where) from None


def read_table(path: Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The merged table of a file and its bases, unvalidated."""
    path = path.resolve()
    if path in _seen:
        raise MnmtError("E103", "settings files are based on each other", where=str(path))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.toml")]) if path.parent.is_dir() else None
        raise MnmtError("E103", "no such settings file", where=str(path), remedy=near) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise MnmtError("E103", f"not a readable TOML file: {error}", where=str(path)) from None
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise MnmtError("E103", "base must be the name of a settings file", where=str(path))
    return merge(read_table(path.parent / base, (*_seen, path)), table)


def parse_override(text: str) -> dict[str, Any]:
    """``"engine.zero_stage=2"`` -> ``{"engine": {"zero_stage": 2}}``."""
    name, sign, value = text.partition("=")
    keys = name.strip().split(".")
    if not sign or not all(keys):
        raise MnmtError("E102", f"{text!r} is not an override", where="--set", remedy="write section.key=value")
    try:
        parsed: Any = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for key in reversed(keys):
        parsed = {key: parsed}
    return parsed


def dump(settings: Section) -> str:
    """TOML of everything that was resolved; loading it again gives equal settings (None is left out)."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def user_path(text: str) -> Path:
    """A path from the settings: ``~`` and ``$VARIABLES`` expanded, relative to the working directory."""
    return Path(os.path.expandvars(text)).expanduser()


def reference(schema: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """(name, default, documentation) of every setting, depth first, for ``--help-settings`` and the docs."""
    rows = []
    for name, field in schema.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None and field.default_factory is not list:
            rows += reference(inner, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            text = " ".join((field.description or "").split())
            rows.append((f"{prefix}{name}", "required" if field.is_required() else _written(default), text))
    return rows


def _written(default: Any) -> str:
    """A default as ``--set`` would take it, where Python writes a list of sections differently."""
    if isinstance(default, list) and default and all(isinstance(item, Section) for item in default):
        tables = (", ".join(f"{k} = {v!r}" for k, v in item.model_dump(mode="json").items()) for item in default)
        return f"[{', '.join('{ ' + table + ' }' for table in tables)}]"
    return repr(default)


def _section_of(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``under`` with the tables and values of ``over`` put into it, key by key (``under`` itself is changed)."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            merge(under[key], value)
        else:
            under[key] = value
    return under


def _explain(schema: type[Section], error: ValidationError, where: str) -> MnmtError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "the settings"
    if first["type"] == "extra_forbidden":
        known = [row[0] for row in reference(schema)]
        return MnmtError("E101", f"unknown setting '{name}'", where=where, remedy=nearest(name, known))
    if first["type"] == "value_error":
        cause = first["ctx"]["error"]
        if isinstance(cause, MnmtError):
            return cause
        return MnmtError("E104", f"{name}: {cause}", where=where)
    remedy = next((f"give {text}, as a bare number" for unit, text in _UNITS.items() if name.endswith(unit)), None)
    if first["type"] == "literal_error":
        remedy = nearest(str(first["input"]), [c.strip("' ") for c in first["ctx"]["expected"].replace(" or ", ",").split(",")])
    message = first["msg"][:1].lower() + first["msg"][1:]
    return MnmtError("E102", f"{name} = {first['input']!r}: {message}", where=where, remedy=remedy)
