"""Test sets of directions: those of the corpora and, for directions without one, those that a pivot language gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from ..data.store import TokenStore
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


def find_test_set(store: TokenStore, source: str, target: str, split: str) -> TestSet | None:
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


def _joined(store: TokenStore, source: str, pivot: str, target: str, split: str) -> TestSet:
    left, right = pair_name(source, pivot), pair_name(pivot, target)
    by_pivot = _unique(store.text(right, split, pivot), store.text(right, split, target))
    ours = _unique(store.text(left, split, pivot), store.text(left, split, source))
    common = [line for line in ours if line in by_pivot]
    return TestSet([ours[line] for line in common], [by_pivot[line] for line in common], pivot)


def _unique(keys: list[str], values: list[str]) -> dict[str, str]:
    counts = Counter(keys)
    return {k: v for k, v in zip(keys, values, strict=True) if counts[k] == 1 and k.strip()}
