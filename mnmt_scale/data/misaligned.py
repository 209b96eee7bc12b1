"""Where two sides of a corpus probably part, for the message that refuses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .compression import DAMAGE, open_binary


def likely_line(first: Path, second: Path) -> int | None:
    """The line after which a gap of the shorter side explains the sentence lengths best; None when unreadable.

    With d lines missing, line i of the shorter side stands for line i before the gap and i + d after it. The cost of a
    pairing is the absolute logarithm of the quotient of the lengths in bytes, each plus 10.
    """
    try:
        lengths = [_log_lengths(path) for path in (first, second)]
    except (*DAMAGE, OSError, ValueError):
        return None
    short, long = sorted(lengths, key=len)
    gap = len(long) - len(short)
    before = np.concatenate([[0.0], np.cumsum(np.abs(short - long[: len(short)]))])
    after = np.concatenate([[0.0], np.cumsum(np.abs(short - long[gap:]))])
    return int(np.argmin(before + after[-1] - after)) + 1


def _log_lengths(path: Path) -> np.ndarray:
    with open_binary(path) as file:
        return np.log(np.fromiter(map(len, file), np.float64) + 10.0)
