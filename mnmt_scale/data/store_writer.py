"""Writes a token store aside and puts it in place when it is complete.

A killed ``prepare`` leaves ``STORE.partial``, which never opens as a store and which the next one clears away; the old
store stays where it is until the new one is whole.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MnmtError
from .shard import ShardWriter, file_sha256
from .store import FORMAT, INDEX_NAME, VERSION, is_store, shard_name, text_name
from .tokenizer import MODEL_NAME, VOCABULARY_NAME, Tokenizer


class SplitWriter:
    """Writes the tokens of one pair's split, both sides in step."""

    def __init__(self, staging: Path, split: str, pair: str, tokenizer: Tokenizer) -> None:
        self.split, self.pair = split, pair
        self._staging, self._tokenizer = staging, tokenizer
        self._names = [shard_name(split, pair, language) for language in pair.split("-")]
        self._shards = [
            ShardWriter(staging / name, vocabulary_size=tokenizer.vocabulary_size, fingerprint=tokenizer.fingerprint)
            for name in self._names
        ]

    def add(self, first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> None:
        """Appends sentence pairs, as the tokenizer encoded them."""
        assert len(first) == len(second)
        for shard, rows in zip(self._shards, (first, second), strict=True):
            lengths = np.fromiter(map(len, rows), np.int64, len(rows))
            ids = np.fromiter(itertools.chain.from_iterable(rows), np.uint32, int(lengths.sum()))
            shard.add(ids, lengths)

    def close(self) -> dict[str, dict[str, Any]]:
        """Finishes both shards; their entries for the index."""
        entries = {}
        for name, shard in zip(self._names, self._shards, strict=True):
            header = shard.close()
            path = self._staging / name
            entries[name] = {
                "sentences": header.sentences,
                "tokens": header.tokens,
                "bytes": header.file_bytes,
                "sha256": file_sha256(path),
            }
        return entries


def write_text(staging: Path, split: str, pair: str, texts: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Writes the lines of dev or test, one file per language in the order of the pair's name; index entries."""
    entries = {}
    for language, lines in zip(pair.split("-"), texts, strict=True):
        name = text_name(split, pair, language)
        data = "".join(line + "\n" for line in lines).encode("utf-8")
        write_durably(staging / name, data)
        entries[name] = {"sentences": len(lines), "bytes": len(data), "sha256": file_sha256(staging / name)}
    return entries


@dataclass
class Staging:
    """The directory in which a store is made: ``STORE.partial``, locked as long as this process lives."""

    target: Path
    path: Path
    _lock: int

    @classmethod
    def begin(cls, target: Path) -> Staging:
        """Makes an empty staging directory beside ``target``.

        Raises:
            MnmtError: E303 when ``target`` is something other than a store, E402 when another process is making it,
                E401 when it cannot be written.
        """
        target = Path(os.path.realpath(target))
        path, replaced = _beside(target, "partial"), _beside(target, "old")
        if target.exists() and not is_store(target) and (not target.is_dir() or any(target.iterdir())):
            what = "data.store names something that is not a token store"
            raise MnmtError("E303", what, where=str(target), remedy="name another directory, or clear this one away")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise MnmtError("E401", f"token store cannot be written: {error.strerror}", where=str(path)) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock), os.stat(path)):  # the other one has just put it in place
                raise OSError
        except OSError:
            os.close(lock)
            raise MnmtError("E402", "another mnmt prepare is making this store", where=str(path)) from None
        if replaced.exists() and not target.exists():
            os.rename(replaced, target)  # a prepare was ended between its two renames
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return cls(target, path, lock)

    def publish(self, *, tokenizer: Tokenizer, files: dict[str, Any], pairs: dict[str, list[str]], report: dict) -> None:
        """Writes the index and puts the store in place of the old one."""
        tokenizer.save(self.path)
        for name in (MODEL_NAME, VOCABULARY_NAME):
            path = self.path / name
            if path.exists():
                files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                _sync(path)
        index = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": tokenizer.fingerprint,
            "vocabulary_size": tokenizer.vocabulary_size,
            "languages": tokenizer.languages,
            "pairs": {split: sorted(names) for split, names in pairs.items()},
            "files": dict(sorted(files.items())),
            "report": report,
        }
        text = json.dumps(index, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
        write_durably(self.path / INDEX_NAME, text.encode("utf-8"))
        for directory in {(self.path / name).parent for name in files}:
            _sync(directory)
        replaced = _beside(self.target, "old")
        if self.target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(self.target, replaced)
        os.rename(self.path, self.target)
        _sync(self.target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        os.close(self._lock)

    def abandon(self) -> None:
        """Clears the staging directory away after an error."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file and waits until it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f"{target.name}.{suffix}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
