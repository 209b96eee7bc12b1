"""Probe files of affinity and of language vectors with given numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from mnmt_scale.probes import write_probe


def affinity_file(path: Path, tasks: Sequence[str], mean: Any, **more: Any) -> Path:
    """``mean``: [N, N] or [W, N, N], row = trained.

    Args:
        more: ``count`` (10), ``variance`` (0.01): numbers or arrays of the shape of ``mean``; ``windows`` ([[0, 99], ...]);
            anything else goes into the metadata.
    """
    mean = np.asarray(mean, dtype=float)
    mean = mean[None] if mean.ndim == 2 else mean
    count, variance = (np.broadcast_to(more.pop(key, value), mean.shape) for key, value in (("count", 10), ("variance", 0.01)))
    windows = more.pop("windows", [[100 * w, 100 * w + 99] for w in range(len(mean))])
    about = _about("affinity", tasks, more) | {"split": "train", "windows": windows, "quantity": "nats per token"} | more
    tensors = {
        "count": count,
        "mean": mean,
        "variance": variance,
        "estimate": np.zeros_like(mean),
        "estimate_count": np.zeros_like(mean),
    }
    write_probe(path, about, {name: torch.tensor(np.array(t, dtype=float)) for name, t in tensors.items()})
    return path


def vectors_file(path: Path, tasks: Sequence[str], vectors: dict[str, Sequence[float]], **more: Any) -> Path:
    """``vectors``: language -> its vector."""
    about = _about("vectors", tasks, more) | {"languages": list(vectors)} | more
    write_probe(path, about, {"vectors": torch.tensor(np.array(list(vectors.values()), dtype=float))})
    return path


def run_with(path: Path, tasks: Sequence[str]) -> Path:
    """As much of a run directory as names its directions."""
    (path / "probes").mkdir(parents=True)
    (path / "config.toml").write_text(tomli_w.dumps({"name": path.name, "data": {"tasks": list(tasks)}}), encoding="utf-8")
    return path


def _about(kind: str, tasks: Sequence[str], more: dict[str, Any]) -> dict[str, Any]:
    classes = dict.fromkeys(tasks, "low")
    return {
        "kind": kind, "step": 100, "tasks": list(tasks), "classes": classes, "run": "universal", "directions": "one-to-many",
        "tokens": 1000,
    }  # fmt: skip
