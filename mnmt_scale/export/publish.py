"""A directory that appears under its name only when it is complete and checked."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MnmtError


@contextmanager
def written_aside(out: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Gives an empty directory beside ``out``; renames it to ``out`` when the block ends, removes it when it fails.

    Args:
        out: must not exist, or be empty; with ``force`` it may be an earlier directory of the same kind, which stays until
            the new one is in place.
        marker: a file that every directory of this kind has; others are never replaced.

    Raises:
        MnmtError: E704 when ``out`` may not be replaced or its parent cannot be written.
    """
    out = Path(os.path.abspath(out))
    _check_replaceable(out, marker, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise MnmtError("E704", f"cannot write here: {error.strerror}", where=str(out.parent)) from None
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        _sync(aside)
        _check_replaceable(out, marker, force)
        _rename_over(aside, out)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, MnmtError) and error.where and str(aside) in error.where:
            where = error.where.replace(str(aside), str(out))
            raise MnmtError(error.code, error.what, where=where, remedy=error.remedy) from None
        raise


def _check_replaceable(out: Path, marker: str, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise MnmtError("E704", "exists and is not a directory", where=str(out), remedy="give another --out")
    if any(out.iterdir()) and not (out / marker).is_file():
        raise MnmtError("E704", f"directory holds something else (no {marker})", where=str(out), remedy="give another --out")
    if any(out.iterdir()) and not force:
        raise MnmtError("E704", "directory exists already", where=str(out), remedy="give another --out, or --force")


def _rename_over(aside: Path, out: Path) -> None:
    """``aside`` becomes ``out``; what was there goes to the end."""
    if not out.exists():
        aside.rename(out)
    elif not any(out.iterdir()):
        out.rmdir()
        aside.rename(out)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent)) / out.name
        out.rename(old)
        try:
            aside.rename(out)
        except OSError:
            old.rename(out)
            raise
        finally:
            shutil.rmtree(old.parent, ignore_errors=True)
    _sync_directory(out.parent)


def _sync(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            _sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
