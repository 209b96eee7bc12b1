"""Writes the corpus of a set of constructed languages, and the truth about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TextIO

from ...errors import MnmtError
from ...tasks import pair_name
from .config import SyntheticConfig
from .draws import stream
from .english import English
from .meaning import Clause, Sampler
from .truth import Truth
from .world import construct

TEST, DEV, TRAIN = range(3)
_SPLITS = ("test", "dev", "train")
_PATIENCE = 5000  # fruitless draws in a row before giving up


def generate(config: SyntheticConfig, out_dir: Path | str) -> Truth:
    """Writes an OPUS-100 tree, ``supervised/{l1}-{l2}/opus.{l1}-{l2}-{train,dev,test}.{l}``, and ``truth.json``.

    Dev and test hold the same meanings in all languages; each language's training meanings are drawn for it alone, all
    different. Text is written as it is made; the same settings give the same bytes.

    Raises:
        MnmtError: E209 when the lexicon is too small for so many different sentences.
    """
    out = Path(out_dir)
    world = construct(config)
    sampler, english = world.sampler(), world.english()
    for entry in world.truth.languages:
        pair = pair_name(entry.code, config.pivot)
        directory = out / "supervised" / pair
        directory.mkdir(parents=True, exist_ok=True)
        speaker = world.speaker(entry.code)
        for split, wanted in ((TEST, config.test_sentences), (DEV, config.dev_sentences), (TRAIN, entry.sentences)):
            files = [directory / f"opus.{pair}-{_SPLITS[split]}.{code}" for code in (entry.code, config.pivot)]
            rng = stream(config.seed, "text", _SPLITS[split], entry.code if split == TRAIN else "")
            with (
                files[0].open("w", encoding="utf-8", newline="\n") as own,
                files[1].open("w", encoding="utf-8", newline="\n") as pivot,
            ):
                for clause, words in meanings(config, sampler, english, rng, split, wanted):
                    _write(own, speaker.sentence(clause))
                    _write(pivot, words)
    world.truth.save(out / "truth.json")
    return world.truth


def meanings(
    config: SyntheticConfig, sampler: Sampler, english: English, rng: Random, split: int, wanted: int
) -> Iterator[tuple[Clause, list[str]]]:
    """``wanted`` meanings of one split with their English words, no two of them equal in English."""
    seen: set[int] = set()
    found = fruitless = 0
    while found < wanted:
        clause, block = sampler.draw(rng)
        fruitless += 1
        if fruitless > _PATIENCE:
            raise MnmtError(
                "E209",
                f"found only {found} of {wanted} different {_SPLITS[split]} sentences",
                remedy="raise lexicon or max_words, or ask for fewer sentences",
            )
        if min(block, TRAIN) != split:
            continue
        words = english.sentence(clause)
        if not config.min_words <= len(words) <= config.max_words:
            continue
        key = hash(tuple(words))  # of this process: it decides nothing but whether two sentences are equal
        if key in seen:
            continue
        seen.add(key)
        found, fruitless = found + 1, 0
        yield clause, words


def _write(file: TextIO, words: list[str]) -> None:
    file.write(" ".join(words) + "\n")
