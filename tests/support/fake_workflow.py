"""A workflow directory as a finished ``mnmt workflow ftac`` would have left it, small and made up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnmt_scale.evaluation.bootstrap import bleu
from mnmt_scale.evaluation.config import EvaluationConfig
from mnmt_scale.evaluation.resources import averages
from mnmt_scale.evaluation.score import bleu_counts, score_corpus
from mnmt_scale.flow import Grouping
from mnmt_scale.groups import write_groups
from mnmt_scale.probes import probe_path, write_probe
from tests.support.fake_run import fake_run

TASKS = ("en-da", "en-de", "en-es", "en-it", "en-ja", "en-sv")
FAMILIES = (("en-da", "en-de", "en-sv"), ("en-es", "en-it"), ("en-ja",))
HELPERS = (("en-it",), ("en-de", "en-sv"), ())
SIZES = {"en-da": 3000, "en-de": 2_000_000, "en-es": 900_000, "en-it": 50_000, "en-ja": 120_000, "en-sv": 7000}
NOISE = {"bilingual": 0.4, "multilingual": 0.45, "lec": 0.3, "htac": 0.3, "ftac": 0.2, "rand": 0.42}
CONFIG = EvaluationConfig(bootstrap_samples=200)
LINES = 40
_ABOUT = {"scores": [1.5, 1.0, 0.2], "warnings": [], "agreement": {"ari": 0.75}}


def fake_workflow(
    out: Path, systems: Sequence[str] = tuple(NOISE)[:5], seeds: Sequence[int] = (1, 2), *, runs: bool = True
) -> dict[str, Any]:
    """Writes OUT and gives what its workflow.json holds.

    Args:
        runs: also the run directories of the clusters; without them a bundle is groups.json and eval/ alone.
    """
    workflow = {
        "version": 1, "kind": "workflow", "workflow": "ftac", "name": "fake", "systems": list(systems), "seeds": list(seeds),
        "split": "test", "limit": None, "serve": f"{systems[-1]}/seed-{seeds[0]}",
    }  # fmt: skip
    out.mkdir(parents=True)
    (out / "workflow.json").write_text(json.dumps(workflow))
    for system in systems:
        for seed in seeds:
            fake_bundle(out / system / f"seed-{seed}", system, seed, runs=runs)
    return workflow


def fake_bundle(path: Path, system: str, seed: int, *, runs: bool = True) -> Path:
    """groups.json, a run of each cluster, and eval/test.* with translations as noisy as the system is bad."""
    grouping = {
        "bilingual": Grouping("bilingual", tuple((t,) for t in TASKS), ((),) * len(TASKS)),
        "multilingual": Grouping("universal", (TASKS,), ((),)),
        "lec": Grouping("lec", (TASKS[:3], TASKS[3:]), ((), ())),
        "htac": Grouping("htac", FAMILIES, ((),) * 3),
    }.get(system, Grouping(system, FAMILIES, HELPERS))
    write_groups(path / "groups.json", grouping, _ABOUT)
    noise = dict.fromkeys(TASKS, NOISE[system] + 0.01 * seed)
    model = {task: f"cluster-{k}" for k, cluster in enumerate(grouping.clusters) for task in cluster}
    write_evaluation(path / "eval", "test", noise, seed=[seed, len(system)], model=model)
    for k, (cluster, helpers) in enumerate(zip(grouping.clusters, grouping.helpers, strict=True)):
        if runs:
            method = {"name": "ftac", "ftac": {"groups": str(path / "groups.json"), "cluster": k, "tasks": list(cluster)}}
            method = {"name": "affinity"} if system == "multilingual" else method
            fake_run(path / f"cluster-{k}", name=f"{system}-{k}", steps=200, without=("eval",), tasks=[*cluster, *helpers],
                     settings={"method": method})  # fmt: skip
    if runs and system == "multilingual":
        shutil.copy(path / "groups.json", path / "cluster-0" / "groups.json")
        write_affinity(path / "cluster-0", seed=seed)
    return path


def write_evaluation(
    folder: Path, stem: str, noise: Mapping[str, float], *, seed: Any = 0, model: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """FOLDER/STEM.json and the lines beside it; a share ``noise`` of a direction's words is wrong. ``more`` goes over the
    JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, directions = np.random.default_rng(seed), {}
    for number, (task, share) in enumerate(noise.items()):
        words = np.random.default_rng([number, len(stem)])
        references = [" ".join(f"w{w}" for w in words.integers(0, 50, 9)) for _ in range(LINES)]
        lines = [" ".join(w if rng.random() > share else "x" for w in line.split()) for line in references]
        score, size = score_corpus(lines, references, task[3:], CONFIG), SIZES.get(task, 0)
        directions[task] = {
            "class": "low" if size < 100_000 else "high" if size >= 1_000_000 else "medium", "train_sentences": size,
            "bleu": score.bleu, "chrf": score.chrf, "bleu_signature": score.bleu_signature, "nll": 3 + share,
            "model": (model or {}).get(task, "cluster-0"),
        }  # fmt: skip
        for kind, text in (("hyp", lines), ("ref", references)):
            (folder / f"{stem}.{task}.{kind}").write_text("".join(line + "\n" for line in text))
    found = {"split": stem, "limit": None, "only": None, "directions": directions, "missing": [],
             "averages": averages(directions), "decoding": CONFIG.model_dump(mode="json"), **more}  # fmt: skip
    (folder / f"{stem}.json").write_text(json.dumps(found))
    return found


def bleu_of(folder: Path, stem: str, task: str, draws: Sequence[np.ndarray]) -> np.ndarray:
    """BLEU of draws of the lines that ``write_evaluation`` wrote, each draw the numbers of its lines."""
    hypotheses, references = ((folder / f"{stem}.{task}.{kind}").read_text().splitlines() for kind in ("hyp", "ref"))
    counts = bleu_counts(hypotheses, references, task[3:], CONFIG)
    return np.array([float(bleu(counts[draw].sum(axis=0))) for draw in draws])


def affinity_table(seed: int = 1) -> np.ndarray:
    """[N, N] of ``TASKS``, row = trained: strong on the diagonal, positive within families and from helpers, else about
    0."""
    family = {task: number for number, tasks in enumerate(FAMILIES) for task in tasks}
    rng, number = np.random.default_rng([seed, 5]), len(TASKS)
    table = 0.02 * rng.normal(size=(number, number)) - 0.02
    for j, trained in enumerate(TASKS):
        for i, affected in enumerate(TASKS):
            helps = trained in HELPERS[family[affected]]
            table[j, i] += 0.6 * (i == j) + 0.2 * (family[trained] == family[affected]) + 0.08 * helps
    return table


def write_affinity(run: Path, *, seed: int = 1, windows: int = 3, step: int = 200, **more: Any) -> Path:
    """An affinity probe whose windows fall towards ``affinity_table``; ja trained, da affected has no measurement."""
    number, table = len(TASKS), affinity_table(seed)
    rng = np.random.default_rng([seed, 9])
    fall = np.array([1.0 + 2.0 * (windows - 1 - w) / max(windows - 1, 1) for w in range(windows)])[:, None, None]
    mean = table * fall
    count, variance = np.full((windows, number, number), 16.0), np.full((windows, number, number), 0.01)
    count[:, 4, 0], mean[:, 4, 0], variance[:, 4, 0] = 0, 0, np.nan
    estimate = np.exp(rng.normal(size=mean.shape) * 0.2) * mean * 1e-3
    edges = np.linspace(0, step, windows + 1).astype(int)
    about = {
        "kind": "affinity", "step": step, "tasks": list(TASKS), "classes": dict.fromkeys(TASKS, "low"), "run": run.name,
        "directions": "one-to-many", "tokens": 1000 * step, "split": "train",
        "windows": [[int(a) + 1, int(b)] for a, b in pairwise(edges)],
        "quantity": "change of the log-probability per target token", **more,
    }  # fmt: skip
    tensors = {
        "count": count,
        "mean": mean,
        "variance": variance,
        "estimate": estimate,
        "estimate_count": np.full_like(mean, 4),
    }
    path = probe_path(run, "affinity", step)
    write_probe(path, about, {name: torch.from_numpy(array) for name, array in tensors.items()})
    return path
