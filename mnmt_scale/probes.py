"""Probe files: what ``mnmt probe`` and the probes during training measure, and what the report draws.

    RUN/probes/gradients-step-000100.safetensors    gram, cosine, magnitude [groups, N, N] fp64
               curvature-step-000100.safetensors    largest, smallest, top, trace, trace_error, residual [N] fp64

The rest (kind, version, step, tasks, classes, ...) is JSON in the file's metadata, under the key ``probe``.
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
}
"""Kind of probe -> the tensors of its file."""
REQUIRED = {
    "step": int,
    "split": str,
    "sentences": int,
    "tasks": list,
    "classes": dict,
    "run": str,
    "directions": str,
    "tokens": int,
}
"""What the metadata of every kind hold besides ``kind`` and ``version``."""


@dataclass(frozen=True)
class ProbeFile:
    """An opened probe file.

    Attributes:
        about: its metadata: kind, version, step, split, sentences, tasks, classes, run, directions, tokens; ``groups`` for
            gradients; lanczos_steps, hutchinson_samples, product for curvature.
        tensors: by name, see ``TENSORS``.
    """

    path: Path
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def kind(self) -> str:
        """``gradients`` or ``curvature``."""
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
    required = REQUIRED | ({"groups": list} if found == "gradients" else {})
    wrong = [name for name, of in required.items() if not isinstance(about.get(name), of)]
    missing = sorted(set(TENSORS[found]) - set(tensors))
    if wrong or missing:
        raise _not_a_probe(path, f"it lacks {', '.join([*missing, *wrong])}")
    if not all(isinstance(name, str) for name in (*about["tasks"], *about.get("groups", ()))):
        raise _not_a_probe(path, "its names are no text")
    N = len(about["tasks"])
    shape = (len(about["groups"]), N, N) if found == "gradients" else (N,)
    unlike = [n for n in TENSORS[found] if tuple(tensors[n].shape) != shape or tensors[n].dtype != torch.float64]
    if unlike or set(about["classes"]) != set(about["tasks"]):
        raise _not_a_probe(path, f"{', '.join(unlike) or 'classes'} do not fit its {N} directions")


def _not_a_probe(path: Path, what: str) -> MnmtError:
    return MnmtError("E605", what, where=str(path), remedy="write it again with mnmt probe")
