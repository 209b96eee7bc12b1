"""Reads a corpus as blocks of sentence pairs, strictly: what is not clean UTF-8 in step on both sides is refused.

Lines end at the byte ``\\n`` and nowhere else: U+2028, U+0085, vertical tabs and a lone CR are characters of a sentence.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from ..errors import MnmtError, nearest
from .compression import DAMAGE, open_binary
from .config import CleanConfig
from .corpus import Source
from .misaligned import likely_line

BLOCK_LINES = 8192
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive sentence pairs, sides in alphabetical order of their languages, and how many bad ones were left out
    among them (``on_bad_line = "drop"``)."""

    first: list[str]
    second: list[str]
    bad: int = 0


class _BadLine(Exception):
    """A line that cannot be used, with the place (after ``file:``) and what is wrong with it."""

    def __init__(self, code: str, place: str, what: str) -> None:
        super().__init__(what)
        self.code, self.place, self.what = code, place, what


def read_blocks(source: Source, clean: CleanConfig) -> Iterator[Block]:
    """All sentence pairs of ``source``, ``BLOCK_LINES`` lines at a time.

    Raises:
        MnmtError: E202 sides of different length, E203 not clean text, E204 nothing there, E205 damaged, E801 a
            package that the format needs is missing.
    """
    for path in source.paths:
        if path.stat().st_size == 0:
            raise MnmtError("E204", "corpus file is empty", where=str(path))
    if source.reader == "moses":
        blocks = _two_files(source, clean)
    elif source.reader == "parquet":
        from .parquet import parquet_columns

        blocks = _records(source, clean, parquet_columns(source, BLOCK_LINES))
    else:
        split = _tsv_fields if source.reader == "tsv" else _json_fields(source.languages)
        blocks = _one_file(source, clean, split)
    swap = source.languages[0] > source.languages[1]
    read = 0
    for first, second, lines in blocks:
        read += lines
        kept = (second, first) if swap else (first, second)
        yield Block(*kept, bad=lines - len(first))
    if read == 0:
        raise MnmtError("E204", "corpus file is empty", where=str(source.paths[0]))


def read_all(source: Source, clean: CleanConfig) -> Block:
    """A dev or test set as one block."""
    whole = Block([], [])
    bad = 0
    for block in read_blocks(source, clean):
        whole.first.extend(block.first)
        whole.second.extend(block.second)
        bad += block.bad
    return Block(whole.first, whole.second, bad)


Sides = Iterator[tuple[list[str], list[str], int]]


def _two_files(source: Source, clean: CleanConfig) -> Sides:
    with open_binary(source.paths[0]) as one, open_binary(source.paths[1]) as two:
        done = 0
        while True:
            raw = [_next_lines(f, p) for f, p in zip((one, two), source.paths, strict=True)]
            if done == 0:
                for lines, path in zip(raw, source.paths, strict=True):
                    _remove_mark(lines, path, clean)
            if len(raw[0]) != len(raw[1]):
                counts = [done + len(r) + _count_lines(f, p) for r, f, p in zip(raw, (one, two), source.paths, strict=True)]
                _refuse_misaligned(source.paths, counts)
            if not raw[0]:
                return
            first, second = (_decode(r, p, done, clean) for r, p in zip(raw, source.paths, strict=True))
            count = len(first)
            if None in first or None in second:
                pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
                first, second = [a for a, _ in pairs], [b for _, b in pairs]
            yield first, second, count  # type: ignore[misc]
            done += count


def _one_file(source: Source, clean: CleanConfig, split: Callable[[str], tuple[str, str]]) -> Sides:
    path = source.paths[0]

    def batches() -> Iterator[list[Callable[[], tuple[str, str]] | None]]:
        with open_binary(path) as file:
            done = 0
            while raw := _next_lines(file, path):
                if done == 0:
                    _remove_mark(raw, path, clean)
                lines = _decode(raw, path, done, clean)
                yield [None if line is None else functools.partial(split, line) for line in lines]
                done += len(lines)

    return _records(source, clean, batches())


def _records(source: Source, clean: CleanConfig, batches: Iterator[list]) -> Sides:
    """Blocks from batches of records; a record is called for its two fields, and may raise ``_BadLine``'s causes."""
    done = 0
    for batch in batches:
        first, second = [], []
        for row, record in enumerate(batch, start=done + 1):
            if record is None:
                continue
            try:
                fields = tuple(_one_line(text) for text in record())
            except ValueError as error:
                if clean.on_bad_line == "drop":
                    continue
                code = "E203" if isinstance(error, UnicodeError) else "E205"
                remedy = 'mend it, or set data.clean.on_bad_line = "drop"'
                raise MnmtError(code, str(error), where=f"{source.paths[0]}:{row}", remedy=remedy) from None
            first.append(fields[0])
            second.append(fields[1])
        yield first, second, len(batch)
        done += len(batch)


def _one_line(text: str) -> str:
    """A field of a record as one line: it may hold line ends, which a line of text cannot."""
    if "\0" in text:
        raise UnicodeError("NUL byte in the text")
    text.encode("utf-8")  # half of a surrogate pair cannot be written
    return text.replace("\n", " ")


def _tsv_fields(line: str) -> tuple[str, str]:
    fields = line.split("\t")
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} columns, wanted two")
    return fields[0], fields[1]


def _json_fields(languages: tuple[str, str]) -> Callable[[str], tuple[str, str]]:
    def fields(line: str) -> tuple[str, str]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"not a JSON record: {error}") from None
        if isinstance(record, dict) and isinstance(record.get("translation"), dict):
            record = record["translation"]
        if not isinstance(record, dict):
            raise ValueError("not a JSON record with fields")
        for language in languages:
            if not isinstance(record.get(language), str):
                near = nearest(language, record)
                raise ValueError(f"no text in field {language!r}" + (f" ({near})" if near else ""))
        return record[languages[0]], record[languages[1]]

    return fields


def _next_lines(file: BinaryIO, path: Path) -> list[bytes]:
    try:
        return list(itertools.islice(file, BLOCK_LINES))
    except DAMAGE as error:
        raise MnmtError("E205", f"compressed file damaged or cut off: {error}", where=str(path)) from None


def _count_lines(file: BinaryIO, path: Path) -> int:
    count = 0
    while lines := _next_lines(file, path):
        count += len(lines)
    return count


def _decode(raw: list[bytes], path: Path, before: int, clean: CleanConfig) -> list[str | None]:
    """Lines as text, without their ends; None for a bad one that is to be dropped. ``before``: lines read so far."""
    data = b"".join(raw)
    crlf = b"\r\n" in data
    if crlf and clean.on_crlf == "refuse":
        line = next(i for i, r in enumerate(raw) if r.endswith(b"\r\n"))
        _refuse_crlf("CRLF line end", f"{path}:{before + line + 1}")
    lines: list[str | None]
    try:
        lines = [*data.decode("utf-8").split("\n")]
        if b"\0" in data:
            raise ValueError
        if data.endswith(b"\n"):
            lines.pop()
    except ValueError:
        lines = [_decode_line(line, f"{path}:{before + i + 1}", clean) for i, line in enumerate(raw)]
    if crlf:
        lines = [line if line is None else line.removesuffix("\r") for line in lines]
    assert len(lines) == len(raw)
    return lines


def _decode_line(raw: bytes, where: str, clean: CleanConfig) -> str | None:
    raw = raw.removesuffix(b"\n")
    what, byte = "NUL byte", raw.find(b"\0")
    try:
        text = raw.decode("utf-8")
        if byte < 0:
            return text
    except UnicodeDecodeError as error:
        if byte < 0 or error.start < byte:
            what, byte = f"invalid UTF-8 (byte 0x{raw[error.start]:02x})", error.start
    if clean.on_bad_line == "drop":
        return None
    remedy = 'mend it, or set data.clean.on_bad_line = "drop"'
    raise MnmtError("E203", what, where=f"{where}:{byte + 1}", remedy=remedy)


def _remove_mark(lines: list[bytes], path: Path, clean: CleanConfig) -> None:
    """Takes a byte order mark off the first line of a file, or refuses it."""
    if lines and lines[0].startswith(_UTF16):
        raise MnmtError("E203", "the file is UTF-16", where=f"{path}:1:1", remedy="convert it to UTF-8")
    if lines and lines[0].startswith(_BOM):
        if clean.on_crlf == "refuse":
            _refuse_crlf("byte order mark", f"{path}:1:1")
        lines[0] = lines[0][len(_BOM) :]


def _refuse_crlf(what: str, where: str) -> NoReturn:
    raise MnmtError("E203", what, where=where, remedy='convert the file, or set data.clean.on_crlf = "strip"')


def _refuse_misaligned(paths: tuple[Path, ...], counts: list[int]) -> NoReturn:
    for path, count in zip(paths, counts, strict=True):
        if count == 0:
            raise MnmtError("E204", "corpus file is empty", where=str(path))
    line = likely_line(paths[0], paths[1])
    what = f"the two sides have {counts[0]} and {counts[1]} lines"
    remedy = f"by the lengths of the sentences they part near line {line}" if line else None
    raise MnmtError("E202", what, where=f"{paths[0]} and {paths[1]}", remedy=remedy)
