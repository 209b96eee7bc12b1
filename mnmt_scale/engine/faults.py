"""Deterministic faults for tests: the process ends, or the disk fails, at a named point.

    MNMT_TESTING=1 MNMT_FAULT="save.after_shard:rank=1:SIGKILL" mnmt train ...

The form is ``point[:key=value]...:action``, several separated by ``;``. The point fires when every key equals what the
code passes there (rank, step). Actions: a signal name (SIGKILL, SIGTERM, ...) sent to this process; ``ENOSPC`` or
``EIO`` raise that OSError; ``NAN`` makes ``fault`` return True, for the caller to spoil its number.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass

from ..errors import MnmtError

POINTS = (
    "train.before_step",
    "train.loss",
    "save.begin",
    "save.mid_shard",
    "save.write_shard",
    "save.after_shard",
    "save.before_manifest",
    "save.before_rename",
    "save.after_rename",
    "save.mid_pointer",
    "save.after_pointer",
)


@dataclass(frozen=True)
class _Fault:
    point: str
    conditions: dict[str, str]
    action: str


def fault(point: str, **where: int) -> bool:
    """Fires what MNMT_FAULT asks for at ``point``; True when the caller must spoil its number (action NAN).

    Raises:
        MnmtError: E104 when MNMT_FAULT is set without MNMT_TESTING=1, or names an unknown point or action.
        OSError: for the actions ENOSPC and EIO.
    """
    text = os.environ.get("MNMT_FAULT")
    if not text:
        return False
    assert point in POINTS, point
    spoil = False
    for item in _parse(text):
        if item.point == point and all(str(where.get(k)) == v for k, v in item.conditions.items()):
            spoil |= _fire(item.action)
    return spoil


def _fire(action: str) -> bool:
    if action == "NAN":
        return True
    if action.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, action))
        return False
    code = getattr(errno, action)
    raise OSError(code, os.strerror(code))


def _parse(text: str) -> list[_Fault]:
    if os.environ.get("MNMT_TESTING") != "1":
        raise MnmtError("E104", "MNMT_FAULT is set, which is for tests only", where="the environment", remedy="unset it")
    out = []
    for item in text.split(";"):
        parts = item.strip().split(":")
        point, conditions, action = parts[0], parts[1:-1], parts[-1]
        known = action == "NAN" or action in ("ENOSPC", "EIO") or action in signal.Signals.__members__
        if point not in POINTS or not known or not all("=" in c for c in conditions):
            raise MnmtError("E104", f"MNMT_FAULT {item!r} names no known fault", where="the environment")
        out.append(_Fault(point, dict(c.split("=", 1) for c in conditions), action))
    return out
