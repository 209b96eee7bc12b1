"""Work shared out over processes, so that an error of one ends all of them with that error."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import MnmtError
from .corpus import Corpus

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes at work: one, or those of an mpi4py communicator."""

    rank: int
    size: int
    comm: Any

    def together(self, work: Callable[[], T], mark: Path | None = None) -> list[T]:
        """Results of ``work`` from all ranks, by rank. Where one fails, all raise its error: none waits for ever.

        ``mark`` is made where this rank fails, for the others to see while they are at work.
        """
        if self.size == 1:
            return [_told(work)]
        failure: Exception | None = None
        result: Any = None
        try:
            result = _told(work)
        except (MnmtError, OtherRankFailed) as error:
            failure = error
        except Exception:
            failure = RuntimeError(f"rank {self.rank}: {traceback.format_exc()}")
        if failure is not None and mark is not None:
            with contextlib.suppress(OSError):
                mark.touch()
        outcomes = self.comm.allgather((failure, result))
        failures = [error for error, _ in outcomes if error is not None and not isinstance(error, OtherRankFailed)]
        if failures:
            raise failures[0]
        return [outcome for _, outcome in outcomes]

    def alike(self, work: Callable[[], T]) -> T:
        """This rank's result of ``work``, which all do; errors are shared as in ``together``, results are not sent."""
        kept: list[T] = []
        self.together(lambda: kept.append(work()))
        return kept[0]

    def share(self, corpora: list[Corpus]) -> list[Corpus]:
        """This rank's pairs: the largest goes to whoever has least so far."""
        load = [0] * self.size
        mine = []
        for corpus in sorted(corpora, key=lambda c: (-c.bytes, c.pair)):
            least = load.index(min(load))
            load[least] += corpus.bytes
            if least == self.rank:
                mine.append(corpus)
        return mine


class OtherRankFailed(Exception):
    """This rank stopped early because another one has an error to tell."""


def _told(work: Callable[[], T]) -> T:
    """``work()``, with a failure of the file system as an error that a user can act on."""
    try:
        return work()
    except OSError as error:
        where = str(error.filename) if error.filename else None
        what = f"files cannot be read or written: {error.strerror or error}"
        raise MnmtError("E401", what, where=where, remedy="check free space and permissions") from error
