"""A token store in memory, with the interface of ``mnmt_scale.data.store.TokenStore``: for tests that need no files."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mnmt_scale.errors import MnmtError, nearest


class MemoryTokenizer:
    """Ids 0 bos, 1 pad, 2 eos, 3 unk, one tag per language, then ``w0 w1 ..``: text is those words, one id each."""

    bos, pad, eos, unk = 0, 1, 2, 3
    path = None

    def __init__(self, languages: list[str], vocabulary_size: int = 64) -> None:
        self.languages = sorted(languages)
        self.vocabulary_size = vocabulary_size
        self.first_word = 4 + len(self.languages)
        assert vocabulary_size > self.first_word
        self.fingerprint = f"memory-{vocabulary_size}-{'-'.join(self.languages)}"

    def tag_id(self, language: str) -> int:
        if language not in self.languages:
            raise MnmtError("E105", f"the vocabulary has no tag for {language!r}", remedy=nearest(language, self.languages))
        return 4 + self.languages.index(language)

    def pieces(self) -> list[str]:
        words = [f"w{i}" for i in range(self.vocabulary_size - self.first_word)]
        return ["<s>", "<pad>", "</s>", "<unk>", *(f"__{x}__" for x in self.languages), *words]

    def encode(self, lines: list[str]) -> list[list[int]]:
        index = {p: i for i, p in enumerate(self.pieces())}
        return [[index.get(w, self.unk) for w in line.split()] for line in lines]

    def decode(self, ids: list[list[int]]) -> list[str]:
        pieces = self.pieces()
        return [" ".join(pieces[i] for i in row if i >= self.first_word) for row in ids]


@dataclass
class MemorySide:
    offsets: np.ndarray
    tokens: np.ndarray


@dataclass
class MemoryPair:
    pair: str
    languages: tuple[str, str]
    sides: dict[str, MemorySide]

    def __len__(self) -> int:
        return len(self.sides[self.languages[0]].offsets) - 1

    def side(self, language: str) -> MemorySide:
        return self.sides[language]


@dataclass
class MemoryStore:
    """``content[split][pair]``; ``report`` as prepare would write it."""

    tokenizer: MemoryTokenizer
    content: dict[str, dict[str, MemoryPair]]
    report: dict = field(default_factory=dict)
    fingerprint: str = "memory"

    def pairs(self, split: str) -> list[str]:
        return sorted(self.content.get(split, {}))

    def has(self, pair: str, split: str) -> bool:
        return pair in self.content.get(split, {})

    def pair(self, pair: str, split: str) -> MemoryPair:
        return self.content[split][pair]

    def sizes(self) -> dict[str, int]:
        return {name: len(p) for name, p in self.content["train"].items()}

    def text(self, pair: str, split: str, language: str) -> list[str]:
        side = self.pair(pair, split).side(language)
        rows = [side.tokens[a:b].tolist() for a, b in zip(side.offsets[:-1], side.offsets[1:], strict=True)]
        return self.tokenizer.decode(rows)


def make_side(sentences: list[list[int]], dtype=np.uint16) -> MemorySide:
    """Sentences of text ids -> offsets and tokens, as the store's files hold them."""
    offsets = np.zeros(len(sentences) + 1, dtype=np.uint64)
    offsets[1:] = np.cumsum([len(s) for s in sentences], dtype=np.uint64)
    tokens = np.array([t for s in sentences for t in s], dtype=dtype)
    return MemorySide(offsets, tokens)


def make_store(
    sizes: dict[str, int],
    *,
    seed: int = 0,
    mean: float = 8.0,
    longest: int = 30,
    vocabulary_size: int = 64,
    dev: int = 5,
    lengths: dict[str, list[tuple[int, int]]] | None = None,
) -> MemoryStore:
    """Random sentences for each pair ``{"af-en": 100}``: lengths are Poisson around ``mean`` text tokens, 1 to
    ``longest``, the two sides correlated; ``lengths`` gives (first side, second side) exactly for a pair's training split.
    The splits dev and test hold ``dev`` sentences each."""
    languages = sorted({code for pair in sizes for code in pair.split("-")})
    tokenizer = MemoryTokenizer(languages, vocabulary_size)
    rng = np.random.default_rng(seed)
    content: dict[str, dict[str, MemoryPair]] = {"train": {}, "dev": {}, "test": {}}
    for split in content:
        for pair, size in sizes.items():
            count = size if split == "train" else dev
            base = rng.poisson(mean, count)
            both = [np.clip(base + rng.integers(-2, 3, count), 1, longest) for _ in range(2)]
            if lengths and split == "train" and pair in lengths:
                both = [np.array([p[i] for p in lengths[pair]]) for i in range(2)]
            codes = tuple(pair.split("-"))
            sides = {
                code: make_side([rng.integers(tokenizer.first_word, vocabulary_size, n).tolist() for n in ns])
                for code, ns in zip(codes, both, strict=True)
            }
            content[split][pair] = MemoryPair(pair, codes, sides)
    return MemoryStore(tokenizer, content)
