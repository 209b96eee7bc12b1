"""Cleaning of training text: what is dropped is counted, one reason per sentence pair, in the order of ``REASONS``.

White space of any kind (tabs, no-break spaces, CR, vertical tabs, U+2028 ...) becomes one space; ends are stripped. Dev
and test are compared after the same treatment, but are themselves never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from ..errors import MnmtError
from .config import CleanConfig

REASONS = ("bad_line", "held_out", "empty", "overlap", "too_long", "ratio", "copy", "duplicate", "max_tokens")
"""``held_out``: drawn for dev or test, or of a sentence that was (``holdout``); ``overlap``: in dev or test; ``max_tokens``:
longer than that, or without any token, when the store is written."""

_RATIO_FREE_CHARACTERS = 10


def normalise(text: str) -> str:
    """One space for each run of white space, none at the ends."""
    return " ".join(text.split())


@dataclass
class Counts:
    """Sentence pairs of one corpus: read, kept and dropped per reason."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, number: int = 1) -> None:
        assert reason in REASONS
        if number:
            self.dropped[reason] = self.dropped.get(reason, 0) + number


class HeldOut:
    """The sentences of a pair's dev and test sets, normalised, as ``overlap`` compares them."""

    def __init__(self, overlap: str) -> None:
        self.overlap = overlap
        self.pairs: set[tuple[str, str]] = set()
        self.first: set[str] = set()
        self.second: set[str] = set()

    def add(self, first: Iterable[str], second: Iterable[str]) -> None:
        """Adds lines of dev or test, the sides in the order in which training text will come."""
        if self.overlap == "off":
            return
        pairs = [(normalise(a), normalise(b)) for a, b in zip(first, second, strict=True)]
        if self.overlap == "pair":
            self.pairs.update(pairs)
        else:
            self.first.update(a for a, _ in pairs if a)
            self.second.update(b for _, b in pairs if b)


class SeenHashes:
    """A set of 64-bit hashes as sorted arrays: 8 bytes each, 16 while two arrays are merged.

    Two different sentence pairs among n have the same hash with a chance of n^2 / 2^65: 3e-4 for a hundred million.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """[n] uint64 -> [n] bool: true for the first occurrence of each hash that was never added before."""
        unique, first = np.unique(hashes, return_index=True)
        new = np.ones(len(unique), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            new &= run[at] != unique
        mask = np.zeros(len(hashes), dtype=bool)
        mask[first[new]] = True
        if new.any():
            self._runs.append(unique[new])
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")
            self._runs.append(merged)
        return mask


class Cleaner:
    """Cleans one pair's training text, block by block; ``counts`` grows."""

    def __init__(self, config: CleanConfig, held_out: HeldOut | None = None) -> None:
        self.config, self.held_out = config, held_out or HeldOut("off")
        self.counts = Counts()
        self.blank = [True, True]
        """Per side: no line with text was seen so far."""
        self._seen = SeenHashes()

    def clean(self, first: Sequence[str], second: Sequence[str], bad: int = 0) -> tuple[list[str], list[str]]:
        """What stays of a block, normalised. ``bad``: lines that the reader left out."""
        self.counts.read += len(first) + bad
        self.counts.drop("bad_line", bad)
        kept_first, kept_second = self._filter(first, second)
        if self.config.duplicates == "pair" and kept_first:
            kept_first, kept_second = self._without_duplicates(kept_first, kept_second)
        self.counts.kept += len(kept_first)
        return kept_first, kept_second

    def check(self, pair: str) -> None:
        """At the end: E207 when too much was held out, E206 when nothing is left, E204 when a side had no text."""
        counts, limit = self.counts, self.config.max_overlap
        overlap = counts.dropped.get("overlap", 0)
        if counts.read and overlap > limit * counts.read:
            what = f"{overlap} of {counts.read} training lines are in dev or test, more than {limit:.0%}"
            remedy = "hold out other sentences, or change data.clean.max_overlap or data.clean.overlap"
            raise MnmtError("E207", what, where=f"pair {pair}", remedy=remedy)
        if counts.kept == 0:
            for language, blank in zip(pair.split("-"), self.blank, strict=True):
                if blank and counts.dropped.get("bad_line", 0) < counts.read:
                    raise MnmtError("E204", f"no line of the {language} side has any text", where=f"pair {pair}")
            refuse_nothing_left(pair, counts)

    def _filter(self, first: Sequence[str], second: Sequence[str]) -> tuple[list[str], list[str]]:
        config, held = self.config, self.held_out
        held_pairs, held_first, held_second = held.pairs, held.first, held.second
        max_words, max_characters, max_ratio = config.max_words, config.max_characters, config.max_ratio
        drop_copies = config.copies == "drop"
        empty = overlap = too_long = ratio = copy = 0
        out_first: list[str] = []
        out_second: list[str] = []
        for a, b in zip(first, second, strict=True):
            words_a, words_b = a.split(), b.split()
            if not words_a or not words_b:
                self.blank[0] &= not words_a
                self.blank[1] &= not words_b
                empty += 1
                continue
            a, b = " ".join(words_a), " ".join(words_b)
            if (a, b) in held_pairs or a in held_first or b in held_second:
                overlap += 1
                continue
            length_a, length_b = len(a), len(b)
            if len(words_a) > max_words or len(words_b) > max_words or max(length_a, length_b) > max_characters:
                too_long += 1
                continue
            length_a += _RATIO_FREE_CHARACTERS
            length_b += _RATIO_FREE_CHARACTERS
            if length_a > max_ratio * length_b or length_b > max_ratio * length_a:
                ratio += 1
                continue
            if drop_copies and a == b:
                copy += 1
                continue
            out_first.append(a)
            out_second.append(b)
        if len(first) > empty:
            self.blank = [False, False]
        reasons = ("empty", "overlap", "too_long", "ratio", "copy")
        for reason, number in zip(reasons, (empty, overlap, too_long, ratio, copy), strict=True):
            self.counts.drop(reason, number)
        return out_first, out_second

    def _without_duplicates(self, first: list[str], second: list[str]) -> tuple[list[str], list[str]]:
        digests = b"".join([blake2b(f"{a}\0{b}".encode(), digest_size=8).digest() for a, b in zip(first, second, strict=True)])
        new = self._seen.add(np.frombuffer(digests, dtype="<u8"))
        if new.all():
            return first, second
        self.counts.drop("duplicate", int(len(new) - new.sum()))
        keep = new.tolist()
        return [a for a, k in zip(first, keep, strict=True) if k], [b for b, k in zip(second, keep, strict=True) if k]


def refuse_nothing_left(pair: str, counts: Counts) -> None:
    """E206, with what took the sentences of ``pair`` away."""
    reasons = ", ".join(f"{reason} {counts.dropped[reason]}" for reason in REASONS if reason in counts.dropped)
    what = f"no sentence is left of {counts.read} after cleaning ({reasons})"
    raise MnmtError("E206", what, where=f"pair {pair}", remedy="mend the corpus, relax data.clean, or leave it out")
