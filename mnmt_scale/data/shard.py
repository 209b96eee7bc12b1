"""One file of the token store: the token ids of one side of one pair's split.

Layout, little-endian: a header of 128 bytes, the ids (uint16 or uint32), zeros up to a multiple of 8, then n + 1 uint64
offsets in tokens, the first 0 and the last the number of ids. The header is written last, so that a shard without its
end has no magic.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import MnmtError

MAGIC = b"MNMTTOKS"
VERSION = 1
HEADER_BYTES = 128
_FORMAT = struct.Struct("<8sIIQQqQ32s")  # magic, version, bytes per id, sentences, tokens, max id, vocabulary, print
_OFFSET_BYTES = 8


@dataclass(frozen=True, slots=True)
class Header:
    """What a shard says about itself. ``max_id`` is -1 where there is no token; ``fingerprint`` is the tokenizer's."""

    id_bytes: int
    sentences: int
    tokens: int
    max_id: int
    vocabulary_size: int
    fingerprint: str

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f"<u{self.id_bytes}")

    @property
    def offsets_at(self) -> int:
        return HEADER_BYTES + -(-self.tokens * self.id_bytes // _OFFSET_BYTES) * _OFFSET_BYTES

    @property
    def file_bytes(self) -> int:
        return self.offsets_at + _OFFSET_BYTES * (self.sentences + 1)

    def pack(self) -> bytes:
        fields = (self.id_bytes, self.sentences, self.tokens, self.max_id, self.vocabulary_size)
        return _FORMAT.pack(MAGIC, VERSION, *fields, bytes.fromhex(self.fingerprint)).ljust(HEADER_BYTES, b"\0")


def id_bytes_for(vocabulary_size: int) -> int:
    """2 below 65,536 ids, else 4."""
    return 2 if vocabulary_size < 1 << 16 else 4


class Side:
    """The sentences of one language of a pair, mapped from their file; text ids only, no tags, no end.

    Attributes:
        offsets: [n + 1] uint64 memory map; sentence i is ``tokens[offsets[i]:offsets[i + 1]]``.
        tokens: [all tokens] uint16 or uint32 memory map.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.header = header
        self.tokens = _map(path, header.dtype, HEADER_BYTES, header.tokens)
        self.offsets = _map(path, np.dtype("<u8"), header.offsets_at, header.sentences + 1)
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != header.tokens:
            raise MnmtError("E304", "offsets of a shard do not fit its tokens", where=str(path), remedy="prepare again")

    def __len__(self) -> int:
        return self.header.sentences

    def __getitem__(self, row: int) -> np.ndarray:
        """Ids of sentence ``row``."""
        return self.tokens[int(self.offsets[row]) : int(self.offsets[row + 1])]


class ShardWriter:
    """Writes one side, block by block; memory is 4 bytes per sentence, and 24 for a moment at the end."""

    def __init__(self, path: Path, *, vocabulary_size: int, fingerprint: str) -> None:
        self.path, self._vocabulary_size, self._fingerprint = path, vocabulary_size, fingerprint
        self._dtype = np.dtype(f"<u{id_bytes_for(vocabulary_size)}")
        self._lengths: list[np.ndarray] = []
        self._max_id, self._tokens = -1, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115 (close() closes it)
        self._file.write(bytes(HEADER_BYTES))

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Appends sentences: their ids one after another, and the length of each."""
        assert int(lengths.sum()) == len(ids)
        if len(ids):
            self._max_id = max(self._max_id, int(ids.max()))
            assert self._max_id < self._vocabulary_size, (self.path, self._max_id)
        self._file.write(ids.astype(self._dtype).tobytes())
        self._lengths.append(lengths.astype(np.uint32))
        self._tokens += len(ids)

    def close(self) -> Header:
        """Writes offsets and header, and makes the file durable."""
        lengths = np.concatenate([np.zeros(1, np.uint32), *self._lengths])
        header = Header(
            self._dtype.itemsize,
            len(lengths) - 1,
            self._tokens,
            self._max_id,
            self._vocabulary_size,
            self._fingerprint,
        )
        with self._file as file:
            file.write(bytes(header.offsets_at - HEADER_BYTES - self._tokens * self._dtype.itemsize))
            file.write(np.cumsum(lengths, dtype="<u8").tobytes())
            file.seek(0)
            file.write(header.pack())
            file.flush()
            os.fsync(file.fileno())
        return header


def read_header(path: Path) -> Header:
    """The header of a shard whose file has the size that it must have.

    Raises:
        MnmtError: E304 missing, truncated, too long or not a shard; E305 another version.
    """
    remedy = "prepare the store again"
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise MnmtError("E304", f"shard cannot be read: {error.strerror}", where=str(path), remedy=remedy) from None
    if len(raw) < HEADER_BYTES or not raw.startswith(MAGIC):
        raise MnmtError("E304", "not a complete shard of a token store", where=str(path), remedy=remedy)
    _, version, id_bytes, sentences, tokens, max_id, vocabulary_size, fingerprint = _FORMAT.unpack_from(raw)
    if version != VERSION:
        raise MnmtError("E305", f"shard of version {version}, wanted {VERSION}", where=str(path), remedy=remedy)
    header = Header(id_bytes, sentences, tokens, max_id, vocabulary_size, fingerprint.hex())
    if header.id_bytes not in (2, 4):
        raise MnmtError("E304", "damaged header of a shard", where=str(path), remedy=remedy)
    if size != header.file_bytes:
        what = f"shard has {size} bytes, its header says {header.file_bytes}"
        raise MnmtError("E304", what, where=str(path), remedy=remedy)
    return header


def check_contents(path: Path, header: Header) -> None:
    """Reads a shard through: offsets never fall, the largest id is the header's. E304 or E307 otherwise."""
    side = Side(path, header)
    if len(side) and bool((side.offsets[1:] < side.offsets[:-1]).any()):
        raise MnmtError("E304", "offsets of a shard fall", where=str(path), remedy="prepare the store again")
    largest = int(side.tokens.max()) if header.tokens else -1
    if largest != header.max_id:
        code = "E307" if largest >= header.vocabulary_size else "E304"
        what = f"largest token id is {largest}, the header says {header.max_id}"
        raise MnmtError(code, what, where=str(path), remedy="prepare the store again")


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _map(path: Path, dtype: np.dtype, offset: int, count: int) -> np.ndarray:
    if count == 0:  # an empty range cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))
