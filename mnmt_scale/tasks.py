"""Tasks: translation directions. The only module that knows what a language code looks like.

A *pair* is two languages with parallel text, named in alphabetical order (``af-en``, ``en-fr``): the name of a corpus.
A *task* is one direction of a pair (``fr-en`` from French into English): what a batch segment, a loss and a gradient
belong to. Language codes are opaque strings (``no`` is Norwegian, never a boolean), FLORES codes included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .errors import MnmtError, nearest

_CODE = re.compile(r"[A-Za-z]{2,8}(_[A-Za-z0-9]{2,8}){0,3}")


def check_code(code: str) -> str:
    """The code itself if it can be a language code; E105 otherwise (``zh-CN`` must be written ``zh_CN``)."""
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        raise MnmtError("E105", f"{code!r} is not a language code", remedy="codes are letters, with '_' for variants: zh_CN")
    return code


def tag(language: str) -> str:
    """The vocabulary piece that stands for a language: ``__fr__``. Added as an id, never as text."""
    return f"__{language}__"


def pair_name(a: str, b: str) -> str:
    """Name of the corpus of two languages: codes in alphabetical order, as OPUS-100 has them."""
    return "-".join(sorted((a, b)))


def parse_direction(name: str) -> tuple[str, str]:
    """``"fr-en"`` -> ``("fr", "en")``; E105 when it is not two different codes."""
    codes = name.split("-")
    if len(codes) != 2 or codes[0] == codes[1]:
        raise MnmtError("E105", f"{name!r} is not a direction", remedy="write SOURCE-TARGET, as in fr-en")
    return check_code(codes[0]), check_code(codes[1])


@dataclass(frozen=True, slots=True)
class Task:
    """One direction. ``index`` is its place in the ``TaskSet`` and in every table over tasks."""

    source: str
    target: str
    index: int

    @property
    def name(self) -> str:
        return f"{self.source}-{self.target}"

    @property
    def pair(self) -> str:
        return pair_name(self.source, self.target)

    def __str__(self) -> str:
        return self.name


class TaskSet(Sequence[Task]):
    """The directions of a training, in a fixed order (sorted by name unless given)."""

    def __init__(self, directions: Iterable[tuple[str, str]]) -> None:
        directions = list(directions)
        seen: set[tuple[str, str]] = set()
        for d in directions:
            if d in seen:
                raise MnmtError("E208", f"direction {d[0]}-{d[1]} is given twice")
            seen.add(d)
        self._tasks = tuple(Task(check_code(s), check_code(t), i) for i, (s, t) in enumerate(directions))
        self._by_name = {t.name: t for t in self._tasks}

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, i):  # type: ignore[override]
        return self._tasks[i]

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    @property
    def names(self) -> list[str]:
        return [t.name for t in self._tasks]

    @property
    def pairs(self) -> list[str]:
        return sorted({t.pair for t in self._tasks})

    @property
    def languages(self) -> list[str]:
        return sorted({code for t in self._tasks for code in (t.source, t.target)})

    def by_name(self, name: str) -> Task:
        """The task called ``name``; E105 naming the nearest one otherwise."""
        if name not in self._by_name:
            raise MnmtError("E105", f"this model has no direction {name!r}", remedy=nearest(name, self._by_name))
        return self._by_name[name]


def directions_of(
    pairs: Iterable[str], kind: str, pivot: str | None = None, chosen: Sequence[str] | None = None
) -> list[tuple[str, str]]:
    """Directions to train from the corpora at hand.

    Args:
        pairs: corpus names, ``af-en``.
        kind: ``many-to-one`` (into the pivot), ``one-to-many`` (out of it), ``many-to-many`` (both ways, all pairs).
        pivot: the one language; pairs without it are left out of the first two kinds.
        chosen: exactly these directions instead; each must have a corpus.

    Raises:
        MnmtError: E105 when a chosen direction or the pivot has no corpus (the nearest is named).
    """
    pairs = sorted(pairs)
    if chosen is not None:
        out = [parse_direction(name) for name in chosen]
        possible = [f"{a}-{b}" for p in pairs for a, b in (p.split("-"), reversed(p.split("-")))]
        for s, t in out:
            if pair_name(s, t) not in pairs:
                raise MnmtError("E105", f"no corpus for direction '{s}-{t}'", remedy=nearest(f"{s}-{t}", possible))
        return out
    if kind == "many-to-many":
        return sorted(d for p in pairs for a, b in [p.split("-")] for d in ((a, b), (b, a)))
    languages = sorted({code for p in pairs for code in p.split("-")})
    if pivot not in languages:
        raise MnmtError("E105", f"no corpus has the pivot language {pivot!r}", remedy=nearest(str(pivot), languages))
    others = sorted(next(c for c in p.split("-") if c != pivot) for p in pairs if pivot in p.split("-"))
    return [(x, pivot) if kind == "many-to-one" else (pivot, x) for x in others]
