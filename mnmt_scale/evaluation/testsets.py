"""Test sets of directions: those of the corpora or of another corpus, and, for directions without one, those that a pivot
language gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..data.config import CleanConfig
from ..data.corpus import Source, find_tree
from ..data.parallel_text import read_all
from ..errors import MnmtError
from ..tasks import pair_name


@dataclass(frozen=True, slots=True)
class TestSet:
    """Aligned lines of one direction. ``through``: the pivot language that aligned them, None where a corpus did."""

    __test__ = False  # not a pytest class

    source: list[str]
    reference: list[str]
    through: str | None = None

    def first(self, limit: int | None) -> TestSet:
        """The first ``limit`` lines; all of them without a limit."""
        return self if limit is None else replace(self, source=self.source[:limit], reference=self.reference[:limit])


class Texts(Protocol):
    """What a test set is looked for in: a ``TokenStore``, or the text of another corpus."""

    def pairs(self, split: str) -> list[str]: ...

    def has(self, pair: str, split: str) -> bool: ...

    def text(self, pair: str, split: str, language: str) -> list[str]: ...


class TreeTexts:
    """Dev and test sets of a directory laid out as OPUS-100, read as ``mnmt prepare`` reads them.

    Raises:
        MnmtError: E201 when the directory is not there or has no set of this split; and, when a set is read, E202-E205.
    """

    def __init__(self, directory: Path, split: str, clean: CleanConfig) -> None:
        self.directory, self._split, self._clean = directory, split, clean
        self._sources: dict[str, Source] = {c.pair: c.sources[split] for c in find_tree(directory) if split in c.sources}
        self._read: dict[str, dict[str, list[str]]] = {}
        if not self._sources:
            raise MnmtError("E201", f"no pair has a {split} set", where=str(directory))

    @property
    def languages(self) -> list[str]:
        """Of all pairs, sorted."""
        return sorted({code for pair in self._sources for code in pair.split("-")})

    def pairs(self, split: str) -> list[str]:
        return sorted(self._sources) if split == self._split else []

    def has(self, pair: str, split: str) -> bool:
        return split == self._split and pair in self._sources

    def text(self, pair: str, split: str, language: str) -> list[str]:
        assert self.has(pair, split)
        if pair not in self._read:
            block = read_all(self._sources[pair], self._clean)
            self._read[pair] = dict(zip(pair.split("-"), (block.first, block.second), strict=True))
        return self._read[pair][language]


def find_test_set(store: Texts, source: str, target: str, split: str) -> TestSet | None:
    """The test set of a direction, or None.

    A direction whose pair has no corpus can still be tested where the corpora are parallel across languages: lines of
    source-pivot and pivot-target whose pivot line is the same, and occurs once in each, are translations of each other.
    Of several pivots the one that aligns most lines is taken.
    """
    pair = pair_name(source, target)
    if store.has(pair, split):
        found = TestSet(store.text(pair, split, source), store.text(pair, split, target))
        return found if found.source else None
    pairs = store.pairs(split)
    neighbours = [{c for p in pairs if x in p.split("-") for c in p.split("-")} - {x} for x in (source, target)]
    through = [_joined(store, source, pivot, target, split) for pivot in sorted(neighbours[0] & neighbours[1])]
    best = max(through, key=lambda t: len(t.source), default=None)
    return best if best is not None and best.source else None


def _joined(store: Texts, source: str, pivot: str, target: str, split: str) -> TestSet:
    left, right = pair_name(source, pivot), pair_name(pivot, target)
    by_pivot = _unique(store.text(right, split, pivot), store.text(right, split, target))
    ours = _unique(store.text(left, split, pivot), store.text(left, split, source))
    common = [line for line in ours if line in by_pivot]
    return TestSet([ours[line] for line in common], [by_pivot[line] for line in common], pivot)


def _unique(keys: list[str], values: list[str]) -> dict[str, str]:
    counts = Counter(keys)
    return {k: v for k, v in zip(keys, values, strict=True) if counts[k] == 1 and k.strip()}
