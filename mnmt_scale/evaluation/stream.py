"""Translation as a filter: lines from a byte stream to lines of a byte stream, block by block, order kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from ..bundle import Bundle
from ..errors import MnmtError, nearest
from ..runs import OpenedRun
from .decode import Counts, Translator

BLOCK_LINES = 1024
BLOCK_BYTES = 1 << 22
"""A block ends at either bound: memory does not grow with the input, and batches still have enough to choose from."""


def choose_source(opened: OpenedRun | Bundle, source: str | None, target: str) -> tuple[str, bool]:
    """The source language, and whether the direction was trained.

    Args:
        opened: a run, or a bundle, whose languages are those of its directions.
        source: as the user gave it; None: the only source that the model has for this target.

    Raises:
        MnmtError: E105 for an unknown language (the nearest is named), or when no source was given and there are several
            (they are listed) or none.
    """
    tagged = () if isinstance(opened, Bundle) else opened.tokenizer.languages
    known = sorted({*tagged, *opened.tasks.languages})
    for language in (target, source):
        if language is not None and language not in known:
            remedy = nearest(language, known) or f"the model has {' '.join(known)}"
            raise MnmtError("E105", f"unknown language {language!r}", where=str(opened.path), remedy=remedy)
    sources = sorted({task.source for task in opened.tasks if task.target == target})
    if source is not None:
        if source == target:
            raise MnmtError("E105", f"source and target are both {source!r}")
        return source, source in sources
    if len(sources) == 1:
        return sources[0], True
    what = f"{target!r} can be translated from several languages" if sources else f"nothing was trained into {target!r}"
    raise MnmtError("E105", what, where="--from", remedy=f"choose one of: {' '.join(sources or known)}")


def translate_stream(
    translator: Translator, source: str, target: str, lines_in: IO[bytes], lines_out: IO[bytes], name: str = "standard input"
) -> Counts:
    """Translates line by line until the input ends; one output line per input line, empty lines stay empty.

    Only ``\\n`` ends a line; a last line may go without it. What precedes a refused line is translated and written.

    Raises:
        MnmtError: E203 for invalid UTF-8 or a NUL byte, with the line's number.
    """
    counts = Counts()
    for block, error in _blocks(lines_in, name):
        out = translator.translate(block, source, target, counts) if block else []
        lines_out.write("".join(line + "\n" for line in out).encode("utf-8"))
        lines_out.flush()
        if error is not None:
            raise error
    return counts


def _blocks(lines_in: IO[bytes], name: str) -> Iterator[tuple[list[str], MnmtError | None]]:
    block: list[str] = []
    size = 0
    for number, raw in enumerate(lines_in, 1):
        try:
            line = raw.removesuffix(b"\n").decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} of {name}, line {number}"
            yield block, MnmtError("E203", "invalid UTF-8", where=byte, remedy="convert the text to UTF-8")
            return
        if "\0" in line:
            yield block, MnmtError("E203", "NUL byte", where=f"{name}, line {number}")
            return
        block.append(line)
        size += len(raw)
        if len(block) >= BLOCK_LINES or size >= BLOCK_BYTES:
            yield block, None
            block, size = [], 0
    yield block, None
