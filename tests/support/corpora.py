"""Small parallel corpora on disk, and the settings that name them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from mnmt_scale.data.config import CleanConfig, CorpusConfig, DataConfig, TokenizerConfig

Lines = tuple[list[str], list[str]]


def sentences(number: int, seed: int = 0, letters: str = "abcdefghiklmnoprstu") -> list[str]:
    """Different made-up sentences of 3 to 9 words from a lexicon of 60 words."""
    draw = random.Random(seed)
    words = sorted({"".join(draw.choice(letters) for _ in range(draw.randint(2, 7))) for _ in range(60)})
    return [f"{' '.join(draw.choice(words) for _ in range(draw.randint(3, 8)))} {_number(i)}" for i in range(number)]


def parallel(number: int, seed: int = 0) -> Lines:
    """Two sides of ``number`` sentence pairs, all different."""
    return sentences(number, 2 * seed), sentences(number, 2 * seed + 1, "aeioubdgkmtvwxyz")


def write_lines(path: Path, lines: list[str]) -> Path:
    """One line each, UTF-8, ``\\n`` after every one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8"))
    return path


def write_pair(tree: Path, pair: str, *, part: str = "supervised", **splits: Lines) -> Path:
    """``part/pair/opus.pair-split.language`` below ``tree``; the directory of the pair."""
    directory = tree / part / pair
    for split, sides in splits.items():
        for language, lines in zip(pair.split("-"), sides, strict=True):
            write_lines(directory / f"opus.{pair}-{split}.{language}", lines)
    return directory


def write_tree(tree: Path, sizes: dict[str, int], held_out: int = 10) -> Path:
    """An OPUS-100 tree with ``sizes`` training sentences per pair and ``held_out`` in dev and in test."""
    for seed, (pair, size) in enumerate(sorted(sizes.items())):
        first, second = parallel(size + 2 * held_out, seed)
        cuts = {"train": slice(0, size), "dev": slice(size, size + held_out), "test": slice(size + held_out, None)}
        write_pair(tree, pair, **{split: (first[cut], second[cut]) for split, cut in cuts.items()})
    return tree


def settings_for(tree: Path, store: Path, *, vocabulary_size: int = 400, **changes: Any) -> DataConfig:
    """Settings of an OPUS tree; ``changes`` go to the section that has them, ``clean=`` and ``tokenizer=`` as tables."""
    clean = CleanConfig(**changes.pop("clean", {}))
    tokenizer = TokenizerConfig(**{"vocabulary_size": vocabulary_size, **changes.pop("tokenizer", {})})
    corpora = changes.pop("corpora", None) or [CorpusConfig(path=str(tree))]
    return DataConfig(store=str(store), corpora=corpora, clean=clean, tokenizer=tokenizer, **changes)


def settings_text(tree: Path, store: Path, vocabulary_size: int = 400) -> str:
    """The same as TOML, for tests of the command line."""
    return (
        f'[data]\nstore = "{store}"\n[data.tokenizer]\nvocabulary_size = {vocabulary_size}\n[[data.corpora]]\npath = "{tree}"\n'
    )


def files_of(directory: Path) -> dict[str, bytes]:
    """Every file below ``directory`` with its bytes: equal dictionaries are equal directories."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def _number(i: int) -> str:
    return "".join("zyxwvutsrq"[int(digit)] for digit in str(i))
