"""One probe of a model in training: what it measures, what it writes. The loop makes one every n steps, and writes what a
method measured by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
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

Kind = Literal["gradients", "curvature", "vectors"]
CURVATURE = ("top", "largest", "smallest", "trace")
"""What is said of each direction's curvature, besides the file."""


@dataclass(frozen=True)
class ProbeResult:
    """One probe.

    Attributes:
        path: of the file.
        about: its metadata.
        summary: ``groups`` {group: {cosine, magnitude: {pair of classes: mean}}} or ``directions`` {name: numbers of
            ``CURVATURE``, None where one is not finite}, as the metrics have it; of vectors ``languages`` {code: norm, nearest,
            cosine} (rank 0).
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


def write_measured(
    learner: Learner, found: tuple[dict[str, Any], dict[str, Tensor]] | None, log: RunLog, run: Path, *, tokens: int
) -> None:
    """What a method measured in training into RUN/probes, where only the newest file of its kind is kept. Collective.

    Args:
        found: ``Method.measured``; None where nothing is due.
        tokens: target tokens trained so far.

    Raises:
        MnmtError: E401 when the file cannot be written.
    """
    if found is None:
        return
    own, tensors = found
    about = own | about_of(learner, learner.tasks) | {"run": learner.config.name, "tokens": tokens}
    path = probe_path(run, own["kind"], learner.step)

    def replace_older() -> None:
        write_probe(path, about, tensors)
        for other in path.parent.glob(f"{own['kind']}-step-*.safetensors"):
            number = other.stem.rpartition("-")[2]
            if (
                number.isdecimal() and int(number) < learner.step
            ):  # a later one was measured beside the run (``probe_affinity``)
                other.unlink(missing_ok=True)

    on_first_rank(replace_older, path)
    log.say(f"step {learner.step}: {own['kind']} so far in {path.name}")


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
    if kind == "vectors":
        return language_vectors(learner)
    config, store, engine = learner.config, learner.store, learner.engine
    tasks = chosen(learner.tasks, config.probe, lambda task: store.has(task.pair, config.probe.split))
    bucketed = uses_buckets(config.model, engine.device, engine.dtype)
    about = about_of(learner, tasks)
    classes = list(about["classes"].values())
    about |= {"kind": kind, "split": config.probe.split, "sentences": config.probe.sentences}
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


def language_vectors(learner: Learner) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Metadata, tensors and summary of the embeddings of the languages' tags, of all languages of the training (source:
    Tan et al. 2019, who cluster languages by them). Collective; tensors and summary on rank 0 alone, {} elsewhere."""
    languages, tokenizer = learner.tasks.languages, learner.store.tokenizer
    about = {"kind": "vectors", **about_of(learner, learner.tasks), "languages": languages}
    weights = learner.engine.weights()
    if not weights:
        return about, {}, {}
    rows = torch.tensor([tokenizer.tag_id(language) for language in languages])
    vectors = weights["shared.weight"][rows].double()
    return about, {"vectors": vectors}, {"languages": _neighbours(languages, vectors)}


def _neighbours(languages: Sequence[str], vectors: Tensor) -> dict[str, Any]:
    """Per language the norm of its vector, and which language is nearest by cosine."""
    directions = torch.nn.functional.normalize(vectors, dim=1)
    best, nearest = (directions @ directions.T).fill_diagonal_(-torch.inf).max(dim=1)
    found = zip(languages, vectors.norm(dim=1).tolist(), nearest.tolist(), best.tolist(), strict=True)
    return {code: {"norm": norm, "nearest": languages[i], "cosine": cosine} for code, norm, i, cosine in found}


def about_of(learner: Learner, tasks: Sequence[Task]) -> dict[str, Any]:
    """What the metadata of every kind of probe say of the training: step, tasks, classes and directions."""
    config, sizes = learner.config, learner.store.sizes()
    return {
        "step": learner.step,
        "tasks": [task.name for task in tasks],
        "classes": {task.name: class_of(task.name, sizes[task.pair], config.evaluation) for task in tasks},
        "directions": shape_of(tasks, config.data.pivot),
    }


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
