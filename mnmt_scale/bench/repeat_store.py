"""A large token store made of a small one by repetition, for measuring the loader."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.shard import HEADER_BYTES, Header, Side, file_sha256, read_header
from ..data.store import INDEX_NAME

_CHUNK = 1 << 18


def repeat_store(small: Path, large: Path, pairs: int) -> int:
    """Write ``large``: the store ``small`` with every training corpus repeated as often as gives ``pairs`` sentence pairs
    or more in all. Dev, test and tokenizer stay as they are.

    Returns:
        sentence pairs in the training split of ``large``.
    """
    index = json.loads((small / INDEX_NAME).read_text(encoding="utf-8"))
    shutil.copytree(small, large, ignore=shutil.ignore_patterns("train"))
    shards = sorted(name for name in index["files"] if name.startswith("tokens/train/"))
    headers = {name: read_header(small / name) for name in shards}
    total = sum(header.sentences for header in headers.values()) // 2
    times = -(-pairs // total)
    (large / "tokens" / "train").mkdir(parents=True, exist_ok=True)
    for name in shards:
        header = _repeat_shard(Side(small / name, headers[name]), large / name, times)
        index["files"][name] = {
            "sentences": header.sentences,
            "tokens": header.tokens,
            "bytes": header.file_bytes,
            "sha256": file_sha256(large / name),
        }
    (large / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    return total * times


def _repeat_shard(side: Side, path: Path, times: int) -> Header:
    header = replace(side.header, sentences=side.header.sentences * times, tokens=side.header.tokens * times)
    tokens, ends = np.asarray(side.tokens).tobytes(), np.asarray(side.offsets[1:]).astype(np.int64)
    several = max(1, _CHUNK // len(ends))
    with path.open("wb") as file:
        file.write(header.pack())
        assert file.tell() == HEADER_BYTES
        for _ in range(times):
            file.write(tokens)
        file.write(bytes(header.offsets_at - file.tell()) + bytes(8))
        for first in range(0, times, several):
            count = min(several, times - first)
            shifts = np.arange(first, first + count) * side.header.tokens
            file.write((shifts[:, None] + ends).astype("<u8").tobytes())
    assert path.stat().st_size == header.file_bytes
    return header
