"""Draws dev and test sets from the training text of pairs that come without them, and tells what leaks between pairs.

By pair, as most papers do it: random lines of each pair for itself. In a multi-parallel corpus a sentence that one pair holds
out is then training text of the others. By pivot: what decides is a hash of the pivot's sentence, the same for all pairs, and
a sentence that any pair holds out is in no pair's training text; each sentence is drawn once. The price is text: the
smallest pair needs the largest share of sentences, and all pairs give up that share.

What is drawn is written beside the rest of the training text as plain files, and read like a corpus that came so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TextIO

import numpy as np

from ..errors import MnmtError
from .clean import Counts, normalise
from .config import CleanConfig, DataConfig
from .corpus import SPLITS, Corpus, Source
from .parallel_text import read_blocks
from .ranks import Ranks

HELD_OUT = SPLITS[1:]
_NEVER = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class Drawn:
    """A pair with the splits drawn from its training text, and what that took: lines held out, bad lines."""

    corpus: Corpus
    splits: tuple[str, ...]
    held_out: int
    bad: int

    def account(self, counts: Counts) -> None:
        """Adds to what cleaning counted what it did not see."""
        counts.read += self.held_out + self.bad
        counts.drop("held_out", self.held_out)
        counts.drop("bad_line", self.bad)


def draw_held_out(data: DataConfig, ranks: Ranks, corpora: list[Corpus], work: Path) -> dict[str, Drawn]:
    """The pairs of which dev or test were drawn, with all their splits as files in ``work/drawn``. Every rank must call.

    Raises:
        MnmtError: E207 when a pair has too little text for that (``clean.max_overlap``); E104 by pivot, for a pair without it.
    """
    mine = [c for c in ranks.share(corpora) if c.trained and wanted(data, c)]

    def choose() -> dict[str, np.ndarray]:
        return {corpus.pair: line_keys(data, corpus) for corpus in mine}

    keys = ranks.alike(choose)
    bounds = ranks.together(lambda: {c.pair: _bounds(data, c, keys[c.pair]) for c in mine})
    shared = [np.uint64(0), np.uint64(0)]
    for part in (p for found in bounds for p in found.values()):
        shared = [max(a, b) for a, b in zip(shared, part, strict=True)]
    own = bounds[ranks.rank]

    def write() -> dict[str, Drawn]:
        out = {}
        for c in mine:
            gone = shared if data.hold_out.by == "pivot" else own[c.pair]
            place = _place(data, c, keys[c.pair], own[c.pair], gone)
            out[c.pair] = _write(c, wanted(data, c), data.clean, place, work)
        return out

    return {pair: drawn for found in ranks.together(write) for pair, drawn in found.items()}


def wanted(data: DataConfig, corpus: Corpus) -> tuple[str, ...]:
    """The splits that are to be drawn for a pair: those asked for that it does not come with."""
    return tuple(split for split, n in zip(HELD_OUT, _numbers(data), strict=True) if n and split not in corpus.sources)


def line_keys(data: DataConfig, corpus: Corpus) -> np.ndarray:
    """[lines] uint64 that decide which lines of the training text are drawn: the smallest; never one with a blank side."""
    how, pivot = data.hold_out, data.pivot
    if how.by == "pivot" and pivot not in corpus.languages:
        what = f"data.hold_out.by = 'pivot', but {corpus.pair} has no side in {pivot!r}"
        raise MnmtError("E104", what, remedy="hold out by 'pair', or give a pivot that all pairs have")
    keys = []
    for number, (first, second) in enumerate(_lines(corpus.sources["train"], data.clean)):
        text = f"{corpus.pair}\0{number}" if how.by == "pair" else (first if corpus.languages[0] == pivot else second)
        keys.append(_digest(f"{how.seed}\0{text}") if first and second else _NEVER)
    return np.array(keys, dtype=np.uint64)


def count_leaks(pairs: list[str], drawn: dict[str, Drawn], train: Path, held: Path) -> dict[tuple[str, str], np.ndarray]:
    """(pair, split) -> [sentences] bool: true where either side is training text of another of ``pairs``, in the same language.

    Args:
        train: directory with the cleaned training text, PAIR.LANGUAGE.
        held: directory with the drawn lines, SPLIT/PAIR.LANGUAGE.
    """
    sides = {
        (pair, split, language): _hashes(held / split / f"{pair}.{language}")
        for pair, d in drawn.items() for split in d.splits for language in pair.split("-")
    }  # fmt: skip
    leaks = {(pair, split): np.zeros(len(h), dtype=bool) for (pair, split, _), h in sides.items()}
    for other in pairs:
        for language in other.split("-"):
            path = train / f"{other}.{language}"
            trained = np.unique(_hashes(path))
            for (pair, split, side), hashes in sides.items():
                if side == language and pair != other:
                    leaks[pair, split] |= np.isin(hashes, trained)
    return leaks


def _numbers(data: DataConfig) -> tuple[int, int]:
    return data.hold_out.dev_sentences, data.hold_out.test_sentences


def _parts(data: DataConfig, keys: np.ndarray) -> list[np.ndarray]:
    """Per split the keys that may be of it, so that no sentence is of dev in one pair and of test in another."""
    dev, test = _numbers(data)
    in_dev = keys % np.uint64(dev + test) < np.uint64(dev)
    return [(keys != _NEVER) & in_dev, (keys != _NEVER) & ~in_dev]


def _bounds(data: DataConfig, corpus: Corpus, keys: np.ndarray) -> list[np.uint64]:
    """Per split the largest key that is drawn; 0 where none is."""
    bounds = []
    for split, number, part in zip(HELD_OUT, _numbers(data), _parts(data, keys), strict=True):
        if split not in wanted(data, corpus):
            bounds.append(np.uint64(0))
            continue
        different = np.unique(keys[part])
        if len(different) < number:
            what = f"{number} {split} sentences are to be drawn, but {len(different)} of {len(keys)} lines are there for that"
            raise MnmtError("E207", what, where=f"pair {corpus.pair}", remedy="lower data.hold_out, or leave the pair out")
        bounds.append(different[number - 1])
    return bounds


def _place(data: DataConfig, corpus: Corpus, keys: np.ndarray, own: list[np.uint64], gone: list[np.uint64]) -> np.ndarray:
    """[lines] int8: 0 train, 1 dev, 2 test, 3 nowhere. Of lines with one key up to the ``own`` bound the first is drawn; the
    others up to the bound of what is ``gone`` from training text are nowhere."""
    place = np.zeros(len(keys), dtype=np.int8)
    for number, part in enumerate(_parts(data, keys)):
        place[part & (keys <= gone[number])] = 3
        rows = np.flatnonzero(part)
        different, first = np.unique(keys[rows], return_index=True)
        place[rows[first[different <= own[number]]]] = number + 1
    held = int((place > 0).sum())
    if held > data.clean.max_overlap * len(keys):
        what = f"{held} of {len(keys)} lines would be held out, more than {data.clean.max_overlap:.0%}"
        raise MnmtError("E207", what, where=f"pair {corpus.pair}", remedy="lower data.hold_out, or leave the pair out")
    return place


def _write(corpus: Corpus, splits: tuple[str, ...], clean: CleanConfig, place: np.ndarray, work: Path) -> Drawn:
    """Writes training text and drawn splits, normalised as training text is (so a record's line ends are gone)."""
    sources, bad, row = dict(corpus.sources), 0, 0
    with ExitStack() as stack:
        files: dict[int, list[TextIO]] = {3: []}
        for split in ("train", *splits):
            paths = tuple(work / "drawn" / split / f"{corpus.pair}.{language}" for language in corpus.languages)
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            opened = [stack.enter_context(open(path, "w", encoding="utf-8", newline="\n")) for path in paths]
            files[SPLITS.index(split)] = opened
            sources[split] = Source("moses", paths, corpus.languages)
        for block in read_blocks(corpus.sources["train"], clean):
            bad += block.bad
            for sides in zip(block.first, block.second, strict=True):
                for file, line in zip(files[int(place[row])], sides, strict=False):
                    file.write(normalise(line) + "\n")
                row += 1
    return Drawn(replace(corpus, sources=sources), splits, int((place > 0).sum()), bad)


def _lines(source: Source, clean: CleanConfig) -> Iterator[tuple[str, str]]:
    """Sentence pairs, normalised."""
    for block in read_blocks(source, clean):
        for first, second in zip(block.first, block.second, strict=True):
            yield normalise(first), normalise(second)


def _hashes(path: Path) -> np.ndarray:
    """[lines] of a file, normalised."""
    with open(path, "rb") as file:
        return np.array([_digest(normalise(line.decode("utf-8"))) for line in file], dtype=np.uint64)


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")
