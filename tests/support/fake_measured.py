"""What a training method and the probes would have left in the run directory of ``fake_run``, plausible and made up.

Gradients are made as vectors (a common part, one per resource class, noise; layer norms have much noise), so that the
Gram, cosines and magnitudes of a probe file agree with each other.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.support.fake_run import directions, fake_run

GROUPS = ("E.SA", "E.FC", "E.LN", "D.SA", "D.EA", "D.FC", "D.LN", "embeddings", "all")
ORDER = ("high", "medium", "low")


def measured_run(
    path: Path, count: int = 8, *, method: dict[str, Any] | None = None, without: tuple[str, ...] = (), **more: Any
):
    """``fake_run`` with a method that logs, probes over the steps and the newest probe files.

    Args:
        count: directions; the classes are thirds of them by size (no class in the middle below 6).
        method: the table [method]; cats by default.
        without: besides those of ``fake_run``: method, gradients, curvature (lines), probes (files).
        more: as for ``fake_run``.
    """
    table = method or {"name": "cats"}
    settings = {**more.pop("settings", {}), "method": table}
    steps = more.get("steps", 1000)
    gone = tuple(name for name in without if name in ("plan", "train", "valid", "eval", "environment"))
    fake_run(path, count, without=gone, settings=settings, **more)
    tasks, classes, random = directions(count), classes_of(count), np.random.default_rng(count)
    lines: list[dict[str, Any]] = []
    for step in range(50, steps + 1, 50):
        if "method" not in without:
            lines.append(method_line(tasks, classes, step, steps, str(table["name"])))
        if step % max(100, steps // 10) == 0:
            time = step / steps
            if "gradients" not in without:
                lines.append(
                    {"kind": "gradients", "step": step, "groups": means(gradients(tasks, classes, random, time), classes)}
                )
            if "curvature" not in without:
                tops = curvature(classes, random, time)
                keys = ("top", "largest", "smallest", "trace")
                rows = {task: {key: float(tops[key][i]) for key in keys} for i, task in enumerate(tasks)}
                lines.append({"kind": "curvature", "step": step, "directions": rows})
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    if "probes" not in without:
        write_probe(path, "gradients", steps, tasks, classes, gradients(tasks, classes, random, 1.0))
        write_probe(path, "curvature", steps, tasks, classes, curvature(classes, random, 1.0))
    return path


def classes_of(count: int) -> list[str]:
    """Class of each of ``directions(count)``, which fall in size."""
    if count < 6:
        return ["high" if i < count / 2 else "low" for i in range(count)]
    return [ORDER[min(2, 3 * i // count)] for i in range(count)]


def method_line(tasks: list[str], classes: list[str], step: int, steps: int, name: str) -> dict[str, Any]:
    """Weights that leave 1 / N for low resources, and the scalars of CATS."""
    pull = {"high": -0.5, "medium": 0.1, "low": 0.6}
    time = step / steps
    raw = [math.exp(pull[c] * time + 0.25 * math.sin(i + 3 * time)) for i, c in enumerate(classes)]
    weights = {task: value / sum(raw) for task, value in zip(tasks, raw, strict=True)}
    scalars = {"lambda_c": max(0.0, math.sin(3.5 * time)) * 0.4, "curvature": 3.0 * math.exp(-5 * time) + 0.01}
    return {"kind": "method", "step": step, "name": name, "weights": weights, **scalars}


def gradients(tasks: list[str], classes: list[str], random: np.random.Generator, time: float) -> dict[str, np.ndarray]:
    """gram, cosine and magnitude [groups, N, N]."""
    grams, size = [], 60
    for group in GROUPS[:-1]:
        noise = 3.0 if group.endswith("LN") else 0.8 + 0.6 * time
        shared, own = random.normal(size=size), {name: random.normal(size=size) for name in ORDER}
        length = {"high": 1.0, "medium": 1.3, "low": 2.2}
        dimensions = 6 if group.endswith("LN") else size
        rows = [
            length[c]
            * (0.4 * shared + 0.5 * own[c] + noise * random.normal(size=size))[:dimensions]
            * (1 + 0.1 * random.normal())
            for c in classes
        ]
        matrix = np.array(rows)
        grams.append(matrix @ matrix.T)
    gram = np.array([*grams, np.sum(grams, axis=0)])
    norms = np.sqrt(np.einsum("gii->gi", gram))
    products, squares = norms[:, :, None] * norms[:, None, :], norms[:, :, None] ** 2 + norms[:, None, :] ** 2
    return {"gram": gram, "cosine": gram / products, "magnitude": 2 * products / squares}


def curvature(classes: list[str], random: np.random.Generator, time: float) -> dict[str, np.ndarray]:
    """[N] arrays of a curvature probe; low resources turn negative, sizes span decades."""
    top = np.array([{"high": 40.0, "medium": 8.0, "low": 60.0}[c] for c in classes]) * np.exp(
        random.normal(size=len(classes)) * 0.7
    )
    largest = top * (1 - 0.7 * time)
    smallest = -top * np.array([{"high": 0.05, "medium": 0.1, "low": 0.1 + 0.6 * time}[c] for c in classes])
    signed = np.where(np.abs(smallest) > largest, smallest, largest)
    trace = 12 * largest + 5 * smallest
    residual = np.abs(random.normal(size=len(classes))) * 0.02
    return {
        "largest": largest, "smallest": smallest, "top": signed, "trace": trace, "trace_error": 0.08 * np.abs(trace),
        "residual": residual,
    }  # fmt: skip


def means(arrays: dict[str, np.ndarray], classes: list[str]) -> dict[str, Any]:
    """The table ``groups`` of a gradients line, computed pair by pair."""
    table: dict[str, Any] = {}
    for g, group in enumerate(GROUPS):
        table[group] = {}
        for measure in ("cosine", "magnitude"):
            found: dict[str, list[float]] = {}
            for i in range(len(classes)):
                for j in range(i + 1, len(classes)):
                    pair = "-".join(sorted((classes[i], classes[j]), key=ORDER.index))
                    for key in (pair, "all"):
                        found.setdefault(key, []).append(float(arrays[measure][g, i, j]))
            table[group][measure] = {key: sum(values) / len(values) for key, values in found.items()}
    return table


def write_probe(
    run: Path,
    kind: str,
    step: int,
    tasks: list[str],
    classes: list[str],
    arrays: dict[str, np.ndarray],
    head: dict[str, Any] | None = None,
) -> Path:
    """A probe file; ``head`` goes over its metadata."""
    facts = {"kind": kind, "version": 1, "step": step, "split": "train", "sentences": 128, "tasks": tasks, "run": run.name}
    facts |= {"classes": dict(zip(tasks, classes, strict=True)), "directions": "many-to-one", "tokens": 1000 * step}
    if kind == "gradients":
        facts["groups"] = list(GROUPS)
    else:
        facts |= {"lanczos_steps": 30, "hutchinson_samples": 20, "product": "replicated"}
    (run / "probes").mkdir(exist_ok=True)
    file = run / "probes" / f"{kind}-step-{step:06d}.safetensors"
    save_file(
        {name: np.ascontiguousarray(a) for name, a in arrays.items()}, str(file), {"probe": json.dumps(facts | (head or {}))}
    )
    return file
