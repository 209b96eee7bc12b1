"""The truth about a set of constructed languages: what a clustering of them can be compared with."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import MnmtError


@dataclass(frozen=True, slots=True)
class LanguageTruth:
    """What is true of one language. ``changes`` are in order from the proto-language down."""

    code: str
    family: str
    script: str
    sentences: int
    changes: tuple[str, ...]
    grammar: dict[str, object]


@dataclass(frozen=True, slots=True)
class Truth:
    """The ground truth of a corpus: what a clustering of its languages can be compared with.

    Attributes:
        pivot: code of the English-like side.
        families: family name -> language codes.
        trees: family name -> tree in Newick notation.
        languages: per language, in order of code.
        config: the settings that made it.
    """

    pivot: str
    families: dict[str, tuple[str, ...]]
    trees: dict[str, str]
    languages: tuple[LanguageTruth, ...]
    config: dict[str, object]

    @property
    def sizes(self) -> dict[str, int]:
        """Training sentences by language code."""
        return {language.code: language.sentences for language in self.languages}

    def family_of(self, code: str) -> str:
        """Name of the family of a language."""
        return next(name for name, codes in self.families.items() if code in codes)

    def distance(self, a: str, b: str) -> int:
        """Branches between two languages: through their last common ancestor, or through the trees' roots, which count
        as joined one level further up."""
        ways = {code: _way(self.trees[self.family_of(code)], code) for code in (a, b)}
        shared = len([1 for x, y in zip(ways[a], ways[b], strict=False) if x == y])
        return len(ways[a]) + len(ways[b]) - 2 * shared + (0 if shared or a == b else 2)

    def save(self, path: Path) -> None:
        """Writes JSON that ``load`` reads."""
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Truth:
        """The truth in a ``truth.json``; E201 when it is not there."""
        if not path.is_file():
            raise MnmtError("E201", "no truth of constructed languages", where=str(path))
        table = json.loads(path.read_text(encoding="utf-8"))
        languages = tuple(LanguageTruth(**{**entry, "changes": tuple(entry["changes"])}) for entry in table.pop("languages"))
        families = {name: tuple(codes) for name, codes in table.pop("families").items()}
        return Truth(families=families, languages=languages, **table)


def _way(newick: str, code: str) -> tuple[str, ...]:
    """Names of the nodes from the root of a tree down to ``code``."""
    above: list[str] = []
    for name, bracket in re.findall(r"([^(),;]*)([(),])", newick.rstrip(";")[::-1]):  # a node before its children
        if name[::-1] == code:
            return (*above, code)
        if bracket == ")":
            above.append(name[::-1])
        elif bracket == "(":
            above.pop()
    assert newick == f"{code};", (newick, code)
    return (code,)
