"""Columns of a parquet file as records. pyarrow is imported here alone, and only when such a file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..errors import MnmtError, nearest
from .corpus import Source

Record = Callable[[], tuple[str, str]]


def parquet_columns(source: Source, rows: int) -> Iterator[list[Record]]:
    """Batches of at most ``rows`` records. The columns are named by language, alone or within ``translation``.

    Raises:
        MnmtError: E801 pyarrow is missing, E205 not a parquet file, or without the columns.
    """
    path = source.paths[0]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MnmtError("E801", "pyarrow is missing", where=str(path), remedy="pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, nested = _columns(file.schema_arrow, source)
            for batch in file.iter_batches(rows, columns=names):
                columns = [batch.column("translation").field(n) if nested else batch.column(n) for n in source.languages]
                values = [column.cast(pyarrow.large_binary()).to_pylist() for column in columns]
                yield [_record(*pair) for pair in zip(*values, strict=True)]
    except (pyarrow.ArrowException, OSError) as error:
        raise MnmtError("E205", f"not a readable parquet file: {error}", where=str(path)) from None


def _columns(schema: Any, source: Source) -> tuple[list[str], bool]:
    import pyarrow

    nested = "translation" in schema.names and pyarrow.types.is_struct(schema.field("translation").type)
    there = [f.name for f in schema.field("translation").type] if nested else list(schema.names)
    for language in source.languages:
        if language not in there:
            what = f"no column {language!r}"
            raise MnmtError("E205", what, where=str(source.paths[0]), remedy=nearest(language, there))
    return [f"translation.{n}" if nested else n for n in source.languages], nested


def _record(first: bytes | None, second: bytes | None) -> Record:
    return lambda: ((first or b"").decode("utf-8"), (second or b"").decode("utf-8"))
