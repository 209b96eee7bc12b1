"""The command line of every stage of the ``ftac`` workflow, for ``ftac.smk``. It imports nothing slow: Snakemake reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEASURED = ("htac", "ftac", "rand", "temp", "fix", "average", "random")
"""Systems that are decided from the affinity (``random`` has the sizes of ``ftac``'s clusters)."""
FROM_FTAC = ("random",)
"""Systems that are decided after ``ftac``'s groups: they have the sizes of its clusters."""
KIND_OF = {"multilingual": "universal", "bilingual": "bilingual"}
"""Kinds of training by system; of the others ``clusters``."""
SAMPLING = {"temp": ("method.ftac.auxiliary=temperature",), "fix": ("method.ftac.decay=0.0",)}
"""Settings of an ablation's trainings."""


def bundle_of(asked: Mapping[str, Any], system: str, seed: int | str) -> str:
    """The directory of a system and seed, as commands name it."""
    return f"{asked['out']}/{system}/seed-{seed}"


def train_words(asked: Mapping[str, Any], system: str, seed: int | str, cluster: int | str) -> list[str]:
    """``mnmt train`` of one cluster, for a stage. ``asked``: see ``stage_config``."""
    bundle = bundle_of(asked, system, seed)
    kind = KIND_OF.get(system, "clusters")
    sets = [f"train.seed={seed}", *SAMPLING.get(system, ())]
    if kind != "universal":
        sets += [f"method.ftac.groups={bundle}/groups.json", f"method.ftac.cluster={cluster}"]
    words = [word for text in sets for word in ("--set", text)]
    settings_file = f"{asked['out']}/settings/{kind}.toml"
    return ["train", settings_file, *words, "--run-dir", f"{bundle}/cluster-{cluster}", "--resume", "auto", "--json"]


def cluster_words(asked: Mapping[str, Any], system: str, seed: int | str) -> list[str]:
    """``mnmt cluster`` of one system, for a stage."""
    own = asked["clustering"]
    method = {"rand": "ftac", "temp": "ftac", "fix": "ftac"}.get(system, system)
    source = f"{bundle_of(asked, 'multilingual', seed)}/cluster-0"
    if system == "random":
        source = f"{bundle_of(asked, 'ftac', seed)}/groups.json"
    words = ["cluster", method, source, "--out", f"{bundle_of(asked, system, seed)}/groups.json", "--json"]
    if system in MEASURED and system != "random":
        words += ["--statistic", own["statistic"], "--since", str(own["since_step"])]
        words += _option("--min-count", own["min_count"])
    if method in ("ftac", "htac"):
        words += [*_option("--clusters", own["max_clusters"]), *_option("--tolerance", own["tolerance"])]
    if system in ("lec", "average"):
        words += _option("--clusters", own["clusters"])
    if system == "rand":
        words += ["--helpers", "random"]
    if system in ("rand", "random"):
        words += ["--seed", str(seed)]
    return [*words, *_option("--families", asked["families"])]


def evaluate_words(asked: Mapping[str, Any], system: str, seed: int | str, tests: bool = False) -> list[str]:
    """``mnmt evaluate`` of one bundle, on its own test sets or on those of another corpus, for a stage."""
    words = ["evaluate", bundle_of(asked, system, seed), "--split", asked["split"], *_option("--limit", asked["limit"])]
    return [*words, "--tests", asked["tests"]["path"], "--tests-name", asked["tests"]["name"]] if tests else words


def number_of_clusters(groups: str | Path) -> int:
    """How many models a groups file stands for. (Those who train and translate with it check it.)"""
    return len(json.loads(Path(groups).read_text(encoding="utf-8"))["clusters"])


def _option(name: str, value: Any) -> list[str]:
    return [] if value is None else [name, str(value)]
