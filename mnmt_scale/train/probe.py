"""One probe of a model in training: what it measures, what it writes. The loop makes one every n steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..engine.commit import on_first_rank
from ..engine.task_grads import TaskGradients
from ..evaluation.resources import class_of
from ..methods.cats.probe import (
    chosen,
    gradient_tensors,
    make_hessian,
    measure_curvature,
    measure_gradients,
    take,
    untouched,
)
from ..methods.cats.similarity import class_means
from ..model.attention import uses_buckets
from ..probes import probe_path, write_probe
from ..runlog import RunLog
from ..tasks import Task
from .learner import Learner
from .meter import json_float

Kind = Literal["gradients", "curvature"]
CURVATURE = ("top", "largest", "smallest", "trace")
"""What is said of each direction's curvature, besides the file."""


@dataclass(frozen=True)
class ProbeResult:
    """One probe.

    Attributes:
        path: of the file.
        about: its metadata.
        summary: ``groups`` {group: {cosine, magnitude: {pair of classes: mean}}} or ``directions`` {name: numbers of
            ``CURVATURE``, None where one is not finite}, as the metrics have it.
        rank: of this process.
    """

    path: Path
    about: dict[str, Any]
    summary: dict[str, Any]
    rank: int


def probe_training(
    learner: Learner, task_gradients: TaskGradients, kind: Kind, log: RunLog, run: Path, *, tokens: int = 0
) -> ProbeResult:
    """A probe of the present weights into RUN/probes and the metrics; the training's state is the same afterwards. Collective.

    Args:
        tokens: target tokens trained so far.

    Raises:
        MnmtError: E105 for ``probe.directions`` that are not there, E401 when the file cannot be written, E507 when this kind
            of product is not possible here.
    """
    began = time.perf_counter()
    about, tensors, summary = measure(learner, task_gradients, kind, lambda line: None)
    about |= {"run": learner.config.name, "tokens": tokens}
    path = probe_path(run, kind, learner.step)
    on_first_rank(lambda: write_probe(path, about, tensors), path)
    log.record(kind, step=learner.step, **summary)
    log.say(f"step {learner.step}: {_headline(kind, summary)} ({time.perf_counter() - began:.1f} s)")
    return ProbeResult(path, about, summary, learner.world.rank)


def check_probes(learner: Learner) -> None:
    """Refuses before the first step what the probes of a training would be refused for at their own first step. Collective.

    Raises:
        MnmtError: E105, E507 as ``probe_training``.
    """
    config = learner.config.probe
    if not (config.gradients_every or config.curvature_every):
        return
    chosen(learner.tasks, config, lambda task: learner.store.has(task.pair, config.split))
    task_gradients = learner.task_gradients
    if config.curvature_every:
        make_hessian(learner.engine, task_gradients, config).close()


def measure(
    learner: Learner, task_gradients: TaskGradients, kind: Kind, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Metadata, tensors and summary of one probe. Collective."""
    config, store, engine = learner.config, learner.store, learner.engine
    tasks = chosen(learner.tasks, config.probe, lambda task: store.has(task.pair, config.probe.split))
    sizes = store.sizes()
    classes = [class_of(task.name, sizes[task.pair], config.evaluation) for task in tasks]
    bucketed = uses_buckets(config.model, engine.device, engine.dtype)
    about: dict[str, Any] = {
        "kind": kind,
        "step": learner.step,
        "split": config.probe.split,
        "sentences": config.probe.sentences,
        "tasks": [task.name for task in tasks],
        "classes": dict(zip([task.name for task in tasks], classes, strict=True)),
        "directions": shape_of(tasks, config.data.pivot),
    }
    with untouched(engine):
        samples = [
            take(store, task, config.probe, learner.world, max_tokens=config.data.max_tokens, bucketed=bucketed)
            for task in tasks
        ]
        if kind == "gradients":
            groups = measure_gradients(task_gradients, samples, config.probe, say)
            tensors = gradient_tensors(groups)
            about["groups"] = list(groups)
            return about, tensors, {"groups": _by_group(list(groups), tensors, classes)}
        tensors, product = measure_curvature(engine, task_gradients, samples, config.probe, say)
        if product == "differences" and config.model.activation == "relu":
            say("differences see the kinks of ReLU too: compare with what was measured by differences alone (docs/probes.md)")
    about |= {
        "product": product,
        "lanczos_steps": config.probe.lanczos_steps,
        "hutchinson_samples": config.probe.hutchinson_samples,
    }
    rows = {t.name: {key: json_float(float(tensors[key][i])) for key in CURVATURE} for i, t in enumerate(tasks)}
    return about, tensors, {"directions": rows}


def shape_of(tasks: Sequence[Task], pivot: str) -> str:
    """``many-to-one``, ``one-to-many`` or ``many-to-many``; a single direction is named by the side that the pivot is on."""
    sources, targets = {t.source for t in tasks}, {t.target for t in tasks}
    if len(sources) > 1 and len(targets) > 1:
        return "many-to-many"
    from_one = len(targets) > 1 if len(tasks) > 1 else pivot in sources
    return "one-to-many" if from_one else "many-to-one"


def _by_group(groups: Sequence[str], tensors: dict[str, Tensor], classes: Sequence[str]) -> dict[str, Any]:
    names = ("cosine", "magnitude")
    return {group: {name: class_means(tensors[name][g], classes) for name in names} for g, group in enumerate(groups)}


def _headline(kind: Kind, summary: dict[str, Any]) -> str:
    if kind == "gradients":
        every = summary["groups"]["all"]
        means = [every[name].get("all", float("nan")) for name in ("cosine", "magnitude")]
        return f"gradients of all pairs: mean cosine {means[0]:.3f}, magnitude similarity {means[1]:.3f}"
    tops = [row["top"] for row in summary["directions"].values() if row["top"] is not None]
    return f"top Hessian eigenvalues {min(tops):.4g} to {max(tops):.4g}" if tops else "top Hessian eigenvalues not finite"
