"""The text that a tokenizer is trained on: a temperature-sampled mix of all languages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class TextLines:
    """Lines of several files, one after another, with their number known beforehand; reads a line at a time.

    Attributes:
        files: (path, number of lines); UTF-8, lines end at ``\\n`` only.
    """

    files: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return sum(count for _, count in self.files)

    def __iter__(self) -> Iterator[str]:
        for path, _ in self.files:
            with open(path, "rb") as lines:
                for line in lines:
                    yield line.rstrip(b"\n").decode("utf-8")


def mix_sizes(sizes: Sequence[int], lines: int, temperature: float) -> list[int]:
    """How many lines of each language to draw: proportional to size^(1/temperature), rounded so that the sum is exact.

    No more than the text has in all are drawn, so that the mix of a small corpus is not blown up; a small language's
    lines may still be drawn more than once.
    """
    sizes_K = np.asarray(sizes, dtype=np.float64)
    lines = min(lines, int(sizes_K.sum()))
    if lines == 0:
        return [0] * len(sizes)
    weights_K = np.where(sizes_K > 0, sizes_K ** (1.0 / temperature), 0.0)
    ideal_K = lines * weights_K / weights_K.sum()
    drawn_K = np.floor(ideal_K).astype(np.int64)
    rest_K = np.argsort(-(ideal_K - drawn_K), kind="stable")[: lines - int(drawn_K.sum())]
    drawn_K[rest_K] += 1
    return drawn_K.tolist()


def draw_lines(text_by_language: Mapping[str, Iterable[str]], lines: int, temperature: float, seed: int) -> Iterator[str]:
    """The drawn lines, language by language in alphabetical order. Memory does not grow with the text.

    Of a language with more lines than are wanted, evenly spaced ones are drawn from a random start; one with fewer is
    repeated as a whole, with evenly spaced lines once more.
    """
    languages = sorted(text_by_language)
    sizes = [len(text_by_language[language]) for language in languages]  # type: ignore[arg-type]
    wanted = mix_sizes(sizes, lines, temperature)
    generator = np.random.default_rng(seed)
    starts = generator.random(len(languages))
    for language, size, number, start in zip(languages, sizes, wanted, starts, strict=True):
        if number == 0:
            continue
        whole, rest = divmod(number, size)
        step = size / rest if rest else 0.0
        taken, due = 0, int(start * step)
        for row, line in enumerate(text_by_language[language]):
            extra = taken < rest and row == due
            if extra:
                taken += 1
                due = min(int((taken + start) * step), size - 1)
            for _ in range(whole + extra):
                yield line
