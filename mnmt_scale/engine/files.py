"""Durable files: written once, synced, and hashed on the way; safetensors without a second copy in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .faults import fault

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a checkpoint: ``name`` relative to its directory with ``/``, size and sha256."""

    name: str
    bytes: int
    sha256: str


def write_bytes(root: Path, name: str, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    """Writes a new file and syncs it to the disk.

    Raises:
        OSError: whatever the file system says.
    """
    digest, size = hashlib.sha256(), 0
    with open(root / name, "xb") as f:
        for chunk in chunks:
            f.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        f.flush()
        os.fsync(f.fileno())
    return FileRecord(name, size, digest.hexdigest())


def write_text(root: Path, name: str, text: str) -> FileRecord:
    """``write_bytes`` of a text in UTF-8."""
    return write_bytes(root, name, [text.encode()])


def write_tensors(root: Path, name: str, tensors: dict[str, Tensor], metadata: dict[str, str], *, rank: int = 0) -> FileRecord:
    """Writes fp32 tensors as a safetensors file, one after another, each copied to the host when its turn comes."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for key in sorted(tensors):
        t = tensors[key]
        assert t.dtype is torch.float32, (key, t.dtype)
        header[key] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [end, end + 4 * t.numel()]}
        end += 4 * t.numel()
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return write_bytes(root, name, _tensor_chunks(head, tensors, rank))


def _tensor_chunks(head: bytes, tensors: dict[str, Tensor], rank: int) -> Iterator[bytes | memoryview]:
    yield len(head).to_bytes(8, "little") + head
    for i, key in enumerate(sorted(tensors)):
        if i == len(tensors) // 2:
            fault("save.mid_shard", rank=rank)
        data = memoryview(tensors[key].detach().cpu().contiguous().view(-1).numpy()).cast("B")
        for begin in range(0, len(data), _CHUNK):
            yield data[begin : begin + _CHUNK]


def sha256_of(path: Path) -> str:
    """Hex digest of a whole file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync_directory(path: Path) -> None:
    """Makes created, renamed and deleted names in ``path`` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Whole file or the old one: written aside, synced, renamed."""
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    fault("save.mid_pointer")
    os.replace(aside, path)
    sync_directory(path.parent)
