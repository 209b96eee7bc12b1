"""Opens plain, gzip, zstd and xz files as bytes; a stream that ends early raises, whatever the format."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import MnmtError

_BUFFER_BYTES = 1 << 18


class CutOff(EOFError):
    """A zstd stream that is damaged or lacks its end."""


DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
"""What reading a damaged file may raise."""


def open_binary(path: Path) -> BinaryIO:
    """A buffered reader of the uncompressed bytes; the format goes by the name's end.

    Raises:
        MnmtError: E201 when the file cannot be opened, E801 when zstandard is missing.
    """
    try:
        file = open(path, "rb", buffering=_BUFFER_BYTES)  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise MnmtError("E201", f"corpus file cannot be read: {error.strerror}", where=str(path)) from None
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdReader(file), _BUFFER_BYTES)
    if path.suffix not in (".gz", ".xz"):
        return file
    file.close()  # these two open, and close, the file themselves
    inner = gzip.open(path, "rb") if path.suffix == ".gz" else lzma.open(path, "rb")  # noqa: SIM115
    return io.BufferedReader(inner, _BUFFER_BYTES)  # type: ignore[arg-type]


class _ZstdReader(io.RawIOBase):
    """zstd frames one after another; zstandard's own stream reader ends without a word where a frame is cut off."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError:
            file.close()
            raise MnmtError("E801", "zstandard is missing", remedy="pip install zstandard") from None
        self._error = zstandard.ZstdError
        self._new = lambda: zstandard.ZstdDecompressor().decompressobj()
        self._file, self._ready, self._unused = file, memoryview(b""), b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[override]
        while not self._ready:
            data = self._unused or self._file.read(_BUFFER_BYTES)
            self._unused = b""
            if not data:
                if self._frame is not None:
                    raise CutOff("zstd stream ended before its end mark")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise CutOff(str(error)) from None
            if self._frame.eof:
                self._frame, self._unused = None, self._frame.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
