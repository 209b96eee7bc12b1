"""The few pieces of HTML that the page is made of. Every string from outside is escaped here, and only here.

Functions return markup; text arguments are plain text, ``body`` arguments are markup.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .style import CSS

NONE = "\N{EN DASH}"
"""What stands in a cell without a value."""

_TALL = 30
"""Rows from which on a table scrolls in a box of its own."""


@dataclass(frozen=True)
class Column:
    """A column of a table. ``group`` spans neighbours that share it; ``best`` (``max`` or ``min``) prints in bold the best
    cell of a row among the columns with this title, as one per run."""

    title: str
    digits: int = 0
    text: bool = False
    group: str = ""
    best: str = ""
    signed: bool = False


def page(title: str, body: str) -> str:
    """A whole document. Its policy forbids scripts and anything fetched, should an escape ever be missed."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(anchor: str, title: str, *bodies: str) -> str:
    """A headed part of the page."""
    return f'<section id="{escape(anchor)}">\n<h2>{escape(title)}</h2>\n' + "\n".join(b for b in bodies if b) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; ``kind`` is a class of the stylesheet."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def headline(text: str) -> str:
    """The page's own heading."""
    return f"<h1>{escape(text)}</h1>"


def heading(text: str) -> str:
    """A heading below a section's."""
    return f"<h3>{escape(text)}</h3>"


def figure(svg: str, caption: str) -> str:
    """A drawing with its caption; ``svg`` is markup from ``report.svg``."""
    return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def details(summary: str, body: str) -> str:
    """Markup that is folded away."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{body}\n</details>"


def preformatted(text: str) -> str:
    """Plain text as it stands."""
    return f"<pre>{escape(text)}</pre>"


def notes(lines: Sequence[str]) -> str:
    """A box of remarks, each a line of plain text; nothing when there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="notes"><ul>{items}</ul></div>' if lines else ""


def download(name: str, content: str, kind: str) -> str:
    """A link that saves ``content``, which travels inside the page."""
    data = base64.b64encode(content.encode("utf-8")).decode("ascii")
    return f'<a download="{escape(name)}" href="data:{kind};charset=utf-8;base64,{data}">{escape(name)}</a>'


def swatch(color: str, text: str) -> str:
    """A run's name behind a dot in its colour."""
    return f'<span class="swatch" style="background:{escape(color)}"></span>{escape(text)}'


def table(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers are formatted by their column, None is a dash, strings are escaped. A long one scrolls."""
    head = ""
    if any(column.group for column in columns):
        head += f"<tr>{_groups(columns)}</tr>\n"
    head += "<tr>" + "".join(f"<th{_class('text' if c.text else '')}>{escape(c.title)}</th>" for c in columns) + "</tr>"
    body = "\n".join(f"<tr>{_row(columns, row)}</tr>" for row in rows)
    kind = "scroll tall" if len(rows) > _TALL else "scroll"
    return f'<div class="{kind}"><table>\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def number(value: float, digits: int = 0, signed: bool = False) -> str:
    """Thousands separated; small numbers with three significant digits where ``digits`` would show none."""
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:{'+' if signed else ''}.2e}" if abs(value) < 1e-4 else f"{value:{'+' if signed else ''}.3g}"
    return f"{value:{'+' if signed else ''},.{digits}f}"


def _row(columns: Sequence[Column], row: Sequence[Any]) -> str:
    rivals: dict[str, list[float]] = {}
    for column, value in zip(columns, row, strict=True):
        if column.best and isinstance(value, int | float):
            rivals.setdefault(column.title, []).append(value)
    unlike = {title for title, values in rivals.items() if len(set(values)) > 1}
    best = {c.title: (max if c.best == "max" else min)(rivals[c.title]) for c in columns if c.best and c.title in unlike}
    return "".join(
        _cell(value, column, column.best != "" and value is not None and value == best.get(column.title))
        for column, value in zip(columns, row, strict=True)
    )


def _cell(value: Any, column: Column, best: bool) -> str:
    if value is None:
        return f'<td class="{"text " if column.text else ""}none">{NONE}</td>'
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td{_class('text' if column.text else '')}>{escape(str(value))}</td>"
    return f"<td{_class('best' if best else '')}>{escape(number(value, column.digits, column.signed))}</td>"


def _groups(columns: Sequence[Column]) -> str:
    cells, i = "", 0
    while i < len(columns):
        span = next((j for j in range(i, len(columns)) if columns[j].group != columns[i].group), len(columns)) - i
        cells += f'<th class="group" colspan="{span}">{escape(columns[i].group)}</th>'
        i += span
    return cells


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
