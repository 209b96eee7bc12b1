"""Probe files: what ``mnmt probe`` and the probes during training measure, and what the report draws.

    RUN/probes/gradients-step-000100.safetensors    gram, cosine, magnitude [groups, N, N] fp64
               curvature-step-000100.safetensors    largest, smallest, top, trace, trace_error, residual [N] fp64
               affinity-step-000100.safetensors     count, mean, variance, estimate, estimate_count [W, N, N] fp64
               vectors-step-000100.safetensors      vectors [L, D] fp64

In every table of affinity the row is the task j that was trained and the column the task i that was affected: [j, i] is the
paper's Z_{j->i}. The rest (kind, version, step, tasks, classes, ...) is JSON in the file's metadata, under the key ``probe``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import MnmtError

VERSION = 1
TENSORS = {
    "gradients": ("gram", "cosine", "magnitude"),
    "curvature": ("largest", "smallest", "top", "trace", "trace_error", "residual"),
    "affinity": ("count", "mean", "variance", "estimate", "estimate_count"),
    "vectors": ("vectors",),
}
"""Kind of probe -> the tensors of its file."""
COMMON = {"step": int, "tasks": list, "classes": dict, "run": str, "directions": str, "tokens": int}
"""What the metadata of every kind hold besides ``kind`` and ``version``."""
OWN = {
    "gradients": {"split": str, "sentences": int, "groups": list},
    "curvature": {"split": str, "sentences": int},
    "affinity": {"split": str, "windows": list, "quantity": str},
    "vectors": {"languages": list},
}
"""What those of each kind hold besides."""


@dataclass(frozen=True)
class ProbeFile:
    """An opened probe file.

    Attributes:
        about: its metadata: kind, version, step, tasks, classes, run, directions, tokens; split and sentences, with
            ``groups`` for gradients and lanczos_steps, hutchinson_samples, product for curvature; ``languages`` for vectors;
            for affinity split, ``windows`` ([first step, last step] of each) and ``quantity`` (what a cell is, for people).
        tensors: by name, see ``TENSORS``. affinity: number, mean and unbiased variance of the measurements of a cell, and
            mean and number of its estimates from gradients; mean is 0 where count is 0, variance NaN where it is below 2.
    """

    path: Path
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def kind(self) -> str:
        """A key of ``TENSORS``."""
        return self.about["kind"]


def probe_path(run: Path, kind: str, step: int) -> Path:
    """Where a run keeps a probe of the weights after ``step`` updates."""
    return run / "probes" / f"{kind}-step-{step:06d}.safetensors"


def write_probe(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes the whole file or none; ``about`` as in ``ProbeFile``, without the version.

    Raises:
        MnmtError: E401 when it cannot be written.
    """
    from safetensors.torch import save

    about = {**about, "version": VERSION}
    assert set(tensors) == set(TENSORS[about["kind"]]), sorted(tensors)
    content = save({n: t.double().cpu().contiguous() for n, t in tensors.items()}, {"probe": json.dumps(about)})
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        os.replace(aside, path)
    except OSError as error:
        raise MnmtError("E401", f"the probe file cannot be written: {error.strerror}", where=str(path)) from None


def read_probe(path: str | Path, kind: str | None = None) -> ProbeFile:
    """Opens a probe file.

    Args:
        kind: the kind that is wanted; None takes any.

    Raises:
        MnmtError: E605 when it is no probe file, of another version or kind, or incomplete.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("probe")
            tensors = {name: file.get_tensor(name) for name in file.keys()} if text else {}  # noqa: SIM118 (no dictionary)
    except OSError as error:
        raise _not_a_probe(path, f"cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise _not_a_probe(path, f"not a safetensors file ({error})") from None
    try:
        about = json.loads(text) if text else None
    except (json.JSONDecodeError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise _not_a_probe(path, "a safetensors file without a probe's metadata")
    _check(path, about, tensors, kind)
    return ProbeFile(path, about, tensors)


def _check(path: Path, about: dict[str, Any], tensors: dict[str, Tensor], kind: str | None) -> None:
    if about.get("version") != VERSION:
        raise _not_a_probe(path, f"probe file of version {about.get('version')!r}, this program reads {VERSION}")
    found = about.get("kind")
    if found not in TENSORS or kind not in (None, found):
        raise _not_a_probe(path, f"a probe of {found!r}, not of {kind or ' or '.join(TENSORS)}")
    wrong = [name for name, of in (COMMON | OWN[found]).items() if not isinstance(about.get(name), of)]
    missing = sorted(set(TENSORS[found]) - set(tensors))
    if wrong or missing:
        raise _not_a_probe(path, f"it lacks {', '.join([*missing, *wrong])}")
    if not all(isinstance(name, str) for key in ("tasks", "groups", "languages") for name in about.get(key, ())):
        raise _not_a_probe(path, "its names are no text")
    twice = [key for key in ("tasks", "groups", "languages") if len(set(about.get(key, ()))) < len(about.get(key, ()))]
    if twice:
        raise _not_a_probe(path, f"one of its {twice[0]} is there twice")
    if not all(isinstance(w, list) and len(w) == 2 and all(type(n) is int for n in w) for w in about.get("windows", ())):
        raise _not_a_probe(path, "its windows are not [first step, last step]")
    wanted = _shape(about)
    unlike = [n for n in TENSORS[found] if tensors[n].dtype != torch.float64 or not _fits(tuple(tensors[n].shape), wanted)]
    if unlike or set(about["classes"]) != set(about["tasks"]):
        raise _not_a_probe(path, f"{', '.join(unlike) or 'classes'} do not fit its {len(about['tasks'])} directions")


def _shape(about: dict[str, Any]) -> tuple[int | None, ...]:
    """Of every tensor of a kind; None for a length that nothing tells."""
    N = len(about["tasks"])
    shapes: dict[str, tuple[int | None, ...]] = {
        "gradients": (len(about.get("groups", ())), N, N),
        "curvature": (N,),
        "affinity": (len(about.get("windows", ())), N, N),
        "vectors": (len(about.get("languages", ())), None),
    }
    return shapes[about["kind"]]


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, have) for have, want in zip(shape, wanted, strict=True))


def _not_a_probe(path: Path, what: str) -> MnmtError:
    return MnmtError("E605", what, where=str(path), remedy="write it again with mnmt probe")
