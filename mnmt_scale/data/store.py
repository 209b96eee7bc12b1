"""The token store: what training and evaluation read, and all that they read of a corpus.

    STORE/  store.json                      index: version, tokenizer, per file sentences and sha256, the report
            tokenizer.model  [vocabulary.json]
            tokens/SPLIT/PAIR.LANGUAGE      a shard (shard.py)
            text/SPLIT/PAIR.LANGUAGE        dev and test as they were: references for scoring

Opening reads the index and 128 bytes of each shard, never the tokens. ``verify`` reads everything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MnmtError, nearest
from .shard import Header, Side, check_contents, file_sha256, read_header
from .tokenizer import MODEL_NAME, VOCABULARY_NAME, Tokenizer

INDEX_NAME = "store.json"
FORMAT = "mnmt token store"
VERSION = 1
SPLITS = ("train", "dev", "test")
_REMEDY = "run mnmt prepare again"


@dataclass(frozen=True)
class PairStore:
    """Both sides of one pair's split: sentence i of one side is the translation of sentence i of the other."""

    pair: str
    languages: tuple[str, str]
    sides: dict[str, Side]

    def __len__(self) -> int:
        return len(self.sides[self.languages[0]])

    def side(self, language: str) -> Side:
        """The sentences of ``language``; E105 when the pair does not have it."""
        if language not in self.sides:
            raise MnmtError("E105", f"pair {self.pair} has no language {language!r}", remedy=nearest(language, self.sides))
        return self.sides[language]


class TokenStore:
    """An opened store; see the module's text. ``fingerprint`` is that of the tokenizer."""

    def __init__(self, directory: Path, index: dict[str, Any], tokenizer: Tokenizer, headers: dict[str, Header]) -> None:
        self.path, self.tokenizer = directory, tokenizer
        self.fingerprint = tokenizer.fingerprint
        self.report: dict[str, Any] = index["report"]
        self._files, self._headers = index["files"], headers
        self._splits: dict[str, list[str]] = {split: sorted(index["pairs"].get(split, [])) for split in SPLITS}
        self._opened: dict[tuple[str, str], PairStore] = {}

    @classmethod
    def open(cls, directory: str | Path) -> TokenStore:
        """Opens the store in ``directory``.

        Raises:
            MnmtError: E303 missing or not finished, E304 damaged, E305 another version, E306 other tokenizer, E307 id
                beyond the vocabulary, E302 its tokenizer damaged.
        """
        directory = Path(directory)
        index = _read_index(directory)
        tokenizer = Tokenizer.load(directory / MODEL_NAME)
        if tokenizer.fingerprint != index["tokenizer"]:
            what = "tokenizer.model is not the one that this store was made with"
            raise MnmtError("E306", what, where=str(directory), remedy=_REMEDY)
        for name in (MODEL_NAME, VOCABULARY_NAME):
            if (directory / name).exists() and file_sha256(directory / name) != index["files"].get(name, {}).get("sha256"):
                raise MnmtError("E302", "tokenizer file is damaged", where=str(directory / name), remedy=_REMEDY)
        return cls(directory, index, tokenizer, _read_headers(directory, index, tokenizer))

    def pairs(self, split: str = "train") -> list[str]:
        """Pairs that have this split, sorted."""
        return list(self._splits[split])

    def has(self, pair: str, split: str) -> bool:
        return pair in self._splits[split]

    def sizes(self) -> dict[str, int]:
        """Training sentences of each pair."""
        return {pair: self._header("train", pair).sentences for pair in self._splits["train"]}

    def pair(self, pair: str, split: str = "train") -> PairStore:
        """One pair's split, mapped on first use; E105 when it is not there."""
        self._require(pair, split)
        if (pair, split) not in self._opened:
            languages = tuple(pair.split("-"))
            names = {language: shard_name(split, pair, language) for language in languages}
            sides = {language: Side(self.path / name, self._headers[name]) for language, name in names.items()}
            self._opened[pair, split] = PairStore(pair, (languages[0], languages[1]), sides)
        return self._opened[pair, split]

    def text(self, pair: str, split: str, language: str) -> list[str]:
        """Lines of dev or test as the corpus had them; E105 when they are not there, E304 when damaged."""
        self._require(pair, split)
        name = text_name(split, pair, language)
        if name not in self._files:
            raise MnmtError("E105", f"no text of {language!r} in {split} of {pair}", where=str(self.path))
        raw = (self.path / name).read_bytes()
        lines = raw.decode("utf-8", errors="replace").split("\n")[:-1]
        if len(lines) != self._header(split, pair).sentences:
            raise MnmtError("E304", "text beside the tokens is damaged", where=str(self.path / name), remedy=_REMEDY)
        return lines

    def verify(self) -> None:
        """Reads every file: sha256, offsets, and the real largest id. E304 or E307 names the first that is wrong."""
        for name, entry in sorted(self._files.items()):
            path = self.path / name
            if name in self._headers:
                check_contents(path, self._headers[name])
            if not path.exists() or file_sha256(path) != entry["sha256"]:
                raise MnmtError("E304", "file is missing or altered (sha256)", where=str(path), remedy=_REMEDY)

    def _header(self, split: str, pair: str) -> Header:
        return self._headers[shard_name(split, pair, pair.split("-")[0])]

    def _require(self, pair: str, split: str) -> None:
        if split not in SPLITS:
            raise MnmtError("E105", f"no split {split!r}", remedy=nearest(split, SPLITS))
        if pair not in self._splits[split]:
            remedy = nearest(pair, self._splits[split])
            raise MnmtError("E105", f"the token store has no {split} set of {pair!r}", where=str(self.path), remedy=remedy)


def is_store(directory: Path) -> bool:
    """Whether ``directory`` holds the index of a store, of whatever version and state."""
    try:
        return json.loads((directory / INDEX_NAME).read_text("utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def shard_name(split: str, pair: str, language: str) -> str:
    """File of one side's tokens, relative to the store."""
    return f"tokens/{split}/{pair}.{language}"


def text_name(split: str, pair: str, language: str) -> str:
    """File of one side's raw dev or test lines, relative to the store."""
    return f"text/{split}/{pair}.{language}"


def _read_index(directory: Path) -> dict[str, Any]:
    path = directory / INDEX_NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError("another format")
    except FileNotFoundError:
        replaced = directory.with_name(directory.name + ".old")
        if replaced.exists():
            raise MnmtError(
                "E303",
                "mnmt prepare was ended while it put a new store in place",
                where=str(directory),
                remedy=f"prepare again, or rename {replaced.name} to {directory.name}",
            ) from None
        what = "no finished token store" if directory.exists() else "no token store"
        raise MnmtError("E303", what, where=str(directory), remedy="run mnmt prepare") from None
    except OSError as error:
        raise MnmtError("E303", f"token store cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise MnmtError("E304", f"index is damaged: {error}", where=str(path), remedy=_REMEDY) from None
    if index.get("version") != VERSION:
        what = f"token store of version {index.get('version')}, wanted {VERSION}"
        raise MnmtError("E305", what, where=str(directory), remedy=_REMEDY)
    if not all(isinstance(index.get(key), dict) for key in ("pairs", "files", "report")) or "tokenizer" not in index:
        raise MnmtError("E304", "index is damaged: a table is missing", where=str(path), remedy=_REMEDY)
    return index


def _read_headers(directory: Path, index: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Header]:
    headers: dict[str, Header] = {}
    for split, pairs in index["pairs"].items():
        for pair in pairs:
            names = [shard_name(split, pair, language) for language in pair.split("-")]
            for name in names:
                headers[name] = _checked_header(directory / name, tokenizer)
            if headers[names[0]].sentences != headers[names[1]].sentences:
                what = "the two sides of a pair have different numbers of sentences"
                raise MnmtError("E304", what, where=str(directory / names[0]), remedy=_REMEDY)
    for name, entry in index["files"].items():
        path = directory / name
        if name not in headers and (not path.is_file() or path.stat().st_size != entry.get("bytes")):
            raise MnmtError("E304", "file is missing or of another size", where=str(path), remedy=_REMEDY)
    return headers


def _checked_header(path: Path, tokenizer: Tokenizer) -> Header:
    header = read_header(path)
    if header.fingerprint != tokenizer.fingerprint:
        raise MnmtError("E306", "shard was made with another tokenizer", where=str(path), remedy=_REMEDY)
    if header.max_id >= tokenizer.vocabulary_size:
        what = f"token id {header.max_id} in a vocabulary of {tokenizer.vocabulary_size}"
        raise MnmtError("E307", what, where=str(path), remedy=_REMEDY)
    return header
