"""Which implementation of an op runs: one fast version per kind of device, else the reference, said once in the log.

``MNMT_KERNELS=reference|native|triton`` (or ``forced``) takes the choice away: then what cannot run is an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch

from ..errors import MnmtError
from . import native

log = logging.getLogger(__name__)

FAST = {
    "task_gram": {"cpu": "native", "cuda": "native"},
    "fisher_accumulate": {"cpu": "native", "cuda": "native"},
    "fisher_similarity": {"cpu": "native", "cuda": "native"},
    "vocabulary_rows": {"cpu": "native", "cuda": "triton"},
}
"""op -> kind of device -> its fast version. ``vocabulary_rows`` are the row kernels of ``linear_cross_entropy`` and
``linear_distillation``, whose matrix products are torch's everywhere."""

KINDS = ("reference", "native", "triton")
_forced: list[str] = []
"""Of the process, not of a thread: the backward pass of a GPU runs in threads of its own."""
_said: set[tuple[str, str]] = set()


def implementation(op: str, device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """``reference``, ``native`` or ``triton``: what runs ``op`` on this kind of device. fp64 has only the references.

    Raises:
        MnmtError: E804 where the forced implementation cannot run.
    """
    forced = forced_kind()
    if forced == "reference":
        return "reference"
    fast = FAST[op].get(device_type)
    if forced:
        if forced == "triton" and op == "vocabulary_rows":
            fast = "triton"  # on CPU in Triton's interpreter
        problem = _problem(forced, device_type) if fast == forced else f"it has no {forced} version for {device_type}"
        if dtype == torch.float64:
            problem = f"it has no {forced} version for {dtype}"
        if problem:
            raise MnmtError("E804", f"{op} was forced to be {forced}, but {problem}", where="MNMT_KERNELS",
                            remedy="unset it, or choose reference")  # fmt: skip
        return forced
    if dtype == torch.float64:
        return "reference"
    problem = _problem(fast, device_type) if fast else f"it has no fast version for {device_type}"
    if problem is None:
        return fast
    if (op, device_type) not in _said:
        _said.add((op, device_type))
        log.warning("%s on %s runs on its torch reference: %s", op, device_type, problem)
    return "reference"


def forced_kind() -> str | None:
    """What ``forced`` or MNMT_KERNELS asks for; None where the choice is free."""
    kind = _forced[-1] if _forced else os.environ.get("MNMT_KERNELS") or None
    if kind is not None and kind not in KINDS:
        raise MnmtError("E804", f"there are no {kind!r} kernels", where="MNMT_KERNELS", remedy=f"one of: {', '.join(KINDS)}")
    return kind


@contextmanager
def forced(kind: str) -> Iterator[None]:
    """Within the block every op of the process runs as ``kind``: the references, say, for second derivatives."""
    assert kind in KINDS, kind
    _forced.append(kind)
    try:
        yield
    finally:
        _forced.pop()


def problem(op: str, device_type: str) -> str | None:
    """Why the fast version of ``op`` does not run on this kind of device; None where it does."""
    fast = FAST[op].get(device_type)
    return f"there is none for {device_type}" if fast is None else _problem(fast, device_type)


def on_references(ops: Iterable[str], device_type: str) -> bool:
    """Whether one of ``ops`` runs as its torch reference on this kind of device."""
    return forced_kind() == "reference" or any(problem(op, device_type) is not None for op in ops)


def _problem(kind: str, device_type: str) -> str | None:
    if kind == "native":
        return native.problem_on(device_type)
    if kind == "triton":
        return _triton_problem(device_type)
    return None


def _triton_problem(device_type: str) -> str | None:
    if not _triton_installed():
        return "triton is not installed"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton runs on CPU only in its interpreter (TRITON_INTERPRET=1)"
    if device_type == "cuda" and torch.cuda.is_available() and (found := torch.cuda.get_device_capability()) < (8, 0):
        return f"Triton needs compute capability 8.0, this GPU has {found[0]}.{found[1]}"
    return None


@cache
def _triton_installed() -> bool:
    return find_spec("triton") is not None
