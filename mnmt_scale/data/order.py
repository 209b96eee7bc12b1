"""In which order a task's sentences are read: counter-based permutations, so that no shuffled index is ever held.

Sentence number g of a task's endless stream is row ``pi(g mod n)`` of its corpus, where pi is a keyed permutation of
range(n), another one in every epoch ``g // n``. Any stretch of the stream is computed from its position alone, in time
and memory proportional to the stretch: that is what makes resuming exact and memory independent of the corpus.

Large corpora use a Feistel network over a x b cells, a and b near the square root of n, with addition modulo a and b, and
walk cycles until the value is below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", generalised
Feistel); up to ``SMALL`` rows, where so small a network reaches few of the n! permutations, hashes are sorted instead.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

SMALL = 1024
ROUNDS = 6
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_A, _B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_FACTOR, _32 = np.uint64(_A), np.uint64(32)


def mix(*parts: int) -> int:
    """A 64-bit key of some integers: SplitMix64 finalizer, chained. The same on every machine and version."""
    x = 0
    for part in parts:
        x = (x + (part & _MASK) + _GOLDEN) & _MASK
        x = ((x ^ (x >> 30)) * _A) & _MASK
        x = ((x ^ (x >> 27)) * _B) & _MASK
        x ^= x >> 31
    return x


def name_key(name: str) -> int:
    """64 bits of a task's name, so that its order does not depend on which other tasks there are."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "little")


def hashes(key: int, count: int, first: int = 0) -> NDArray[np.uint64]:
    """[count] uint64: hash of ``first .. first + count - 1`` under ``key``."""
    return _mix_array(np.arange(first, first + count, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))


def uniforms(key: int, count: int) -> NDArray[np.float64]:
    """[count] numbers in [0, 1) of 53 bits."""
    return (hashes(key, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(key: int, count: int) -> NDArray[np.int64]:
    """A keyed permutation of range(count), drawn by sorting: for short ranges."""
    return np.argsort(hashes(key, count), kind="stable")


def rows(seed: int, task: int, epoch: int, start: int, count: int, n: int) -> NDArray[np.int64]:
    """Rows that a task reads at positions ``start .. start + count - 1`` of one epoch over its n sentences.

    Args:
        seed, task: of the run, and any integer that names the task (``name_key``).
        epoch: each has another permutation.
        start, count: within the epoch, ``0 <= start`` and ``start + count <= n``.

    Returns:
        [count] int64 in range(n), no two positions of an epoch alike.
    """
    assert 0 <= start <= start + count <= n, (start, count, n)
    return stretch(seed, task, epoch * n + start, count, n)


def stretch(seed: int, task: int, first: int, count: int, n: int) -> NDArray[np.int64]:
    """``rows`` at positions ``first .. first + count - 1`` of the endless stream: position = epoch * n + place in it."""
    assert n > 0
    assert first >= 0
    if n == 1:
        return np.zeros(count, dtype=np.int64)
    epoch, start = divmod(first, n)
    if n <= SMALL:
        epochs = (start + count + n - 1) // n
        keys = np.array([mix(seed, task, epoch + e) for e in range(epochs)], dtype=np.uint64)
        table = _mix_array(keys[:, None] + np.arange(n, dtype=np.uint64) * np.uint64(_GOLDEN))
        return np.argsort(table, axis=1, kind="stable").ravel()[start : start + count]
    parts = []
    while count:
        length = min(count, n - start)
        places = np.arange(start, start + length, dtype=np.uint64)
        parts.append(_permuted(mix(seed, task, epoch), places, n))
        epoch, start, count = epoch + 1, 0, count - length
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _permuted(key: int, places: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    high = math.isqrt(n - 1) + 1
    radices = (high, -(-n // high))
    keys = [(np.uint64(mix(key, r) | 1), np.uint64(mix(key, r, 1))) for r in range(ROUNDS)]
    values = _feistel(keys, places, radices)
    bad = np.flatnonzero(values >= n)
    while bad.size:
        values[bad] = _feistel(keys, values[bad], radices)
        bad = bad[values[bad] >= n]
    return values.view(np.int64)


def _feistel(keys: list[tuple[np.uint64, np.uint64]], x: NDArray[np.uint64], radices: tuple[int, int]) -> NDArray[np.uint64]:
    """A permutation of range(radices[0] * radices[1]). The halves swap radices each round; ROUNDS, even, restores them."""
    left, right = np.divmod(x, np.uint64(radices[1]))
    for r, (factor, addend) in enumerate(keys):
        radix = np.uint64(radices[r % 2])
        hashed = right * factor
        hashed += addend
        hashed ^= hashed >> _32
        hashed *= _FACTOR
        hashed >>= _32
        hashed *= radix
        hashed >>= _32
        hashed += left
        hashed -= radix * (hashed >= radix)
        left, right = right, hashed
    return left * np.uint64(radices[1]) + right


def _mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(_A)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_B)
    x ^= x >> np.uint64(31)
    return x
