"""What the ``ftac`` workflow is made of: every training with how far it is.

    OUT/workflow.json settings/KIND.toml           what was asked, and the settings of the three kinds of training
        SYSTEM/seed-S/groups.json cluster-K/ eval/  a bundle: who trains together, a run per cluster, its translations
        marks/ logs/                                what has no file of its own to show that it is done; logs of the stages

``multilingual/seed-S/cluster-0`` is the universal run, in which the affinities were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import settings
from ..data.config import DataConfig
from ..data.corpus import find_corpora, trained_tasks
from ..data.store import TokenStore, is_store
from ..data.synthetic import SyntheticConfig, construct
from ..errors import MnmtError
from ..flow import Grouping
from ..groups import read_groups
from ..runlog import TRAINING_MARK
from ..settings import user_path
from ..tasks import TaskSet, directions_of, pair_name, parse_direction
from ..train.config import RunConfig
from ..train.train import resolve_tasks
from .config import Workflow
from .ftac_stages import KIND_OF
from .plan import read_json
from .snake import Resources


@dataclass(frozen=True)
class Planned:
    """One training, or the trainings of a system whose clusters are not known yet.

    Attributes:
        kind: universal, clusters or bilingual: whose settings it has.
        cluster: None: not known yet; there will be ``low`` to ``high`` of them.
        serves: the directions that the model is for; empty where they are not known.
        state: ``finished``, ``begun`` or ``to train``.
    """

    system: str
    seed: int
    kind: str
    cluster: int | None
    serves: tuple[str, ...]
    helpers: tuple[str, ...]
    state: str
    low: int = 1
    high: int = 1

    @property
    def name(self) -> str:
        """For people: ``ftac seed 1 cluster 2``."""
        return f"{self.system} seed {self.seed} cluster{'s' if self.cluster is None else f' {self.cluster}'}"


def tasks_of(workflow: Workflow) -> list[str]:
    """Names of the directions: by the token store, else by the corpora, else (no text here yet) by the languages to be
    constructed or the pairs that the settings name.

    Raises:
        MnmtError: E201 when there is no text and the settings do not name the pairs; E105 and others for what is wrong.
    """
    config = workflow.trainings["universal"]
    data = config.data
    store = user_path(data.store)
    if is_store(store):
        return resolve_tasks(config, TokenStore.open(store)).names
    try:
        return trained_tasks(data, find_corpora(data)).names
    except MnmtError as error:
        if error.code != "E201":
            raise
        pairs = _constructed_pairs(workflow) or _named_pairs(data)
        if not pairs:
            raise
        return TaskSet(directions_of(pairs, data.directions, data.pivot, data.tasks)).names


def _constructed_pairs(workflow: Workflow) -> set[str]:
    asked = workflow.config.constructed
    if asked is None:
        return set()
    truth = construct(settings.load(SyntheticConfig, workflow.path.parent / asked.settings)).truth
    return {pair_name(language.code, truth.pivot) for language in truth.languages}


def _named_pairs(data: DataConfig) -> set[str]:
    """Pairs that the settings name; none where a corpus is to have all that are found in it."""
    if any(corpus.reader == "opus" and corpus.pairs is None for corpus in data.corpora):
        return set()
    named = [name for corpus in data.corpora for name in corpus.pairs or [str(corpus.pair)]]
    return {pair_name(*parse_direction(name)) for name in named}


def plan(workflow: Workflow, tasks: Sequence[str], out: Path) -> list[Planned]:
    """Every training of every system and seed, the universal ones first; writes nothing.

    Raises:
        MnmtError: E606 a groups file there that cannot be used; E104 as ``check_bounds``.
    """
    check_bounds(workflow, tasks)
    config = workflow.config
    found = []
    for seed in config.seeds:
        for system in order(config.systems):
            found += _of_system(workflow, tasks, out, system, seed)
    return found


def check_bounds(workflow: Workflow, tasks: Sequence[str]) -> None:
    """E104 for more clusters than directions: ``mnmt cluster`` would refuse them, after the universal training."""
    for key in ("max_clusters", "clusters"):
        asked = getattr(workflow.config.clustering, key)
        if asked is not None and asked > len(tasks):
            what = f"clustering.{key} = {asked}, but there are {len(tasks)} directions"
            raise MnmtError("E104", what, where=str(workflow.path), remedy=f"give 1 to {len(tasks)}")


def order(systems: Sequence[str]) -> list[str]:
    """The systems that are trained: ``multilingual`` is, where anything is decided from it."""
    needed = "multilingual" in systems or any(system != "bilingual" for system in systems)
    return [*(["multilingual"] if needed else []), *(system for system in systems if system != "multilingual")]


def _of_system(workflow: Workflow, tasks: Sequence[str], out: Path, system: str, seed: int) -> list[Planned]:
    bundle = out / system / f"seed-{seed}"
    kind = KIND_OF.get(system, "clusters")
    clusters: list[tuple[tuple[str, ...], tuple[str, ...]]] | None = None
    if system == "multilingual":
        clusters = [(tuple(tasks), ())]
    elif system == "bilingual":
        clusters = [((task,), ()) for task in tasks]
    elif (bundle / "groups.json").is_file():
        grouping = read_groups(bundle / "groups.json", tasks).grouping
        clusters = list(zip(grouping.clusters, grouping.helpers, strict=True))
    if clusters is None:
        asked = workflow.config.clustering
        exactly = asked.clusters if system in ("lec", "average") else None
        high = exactly or (asked.max_clusters if system not in ("lec", "average", "linguistic") else None) or len(tasks)
        return [Planned(system, seed, kind, None, (), (), "to train", exactly or 1, min(high, len(tasks)))]
    return [
        Planned(system, seed, kind, k, serves, helpers, state_of(bundle / f"cluster-{k}"))
        for k, (serves, helpers) in enumerate(clusters)
    ]


def state_of(run: Path) -> str:
    """How far a training is, by its run directory."""
    if read_json(run / TRAINING_MARK) is not None:
        return "finished"
    return "begun" if (run / "config.toml").is_file() else "to train"


def probing_cost(config: RunConfig, tasks: int) -> float:
    """What a step of the universal training costs on average, in steps without probing.

    Around a single-direction step the held sentences go through the model forward twice, a third of the cost of a
    training step by token; steps that also estimate from gradients are not counted.
    """
    if config.method.name != "affinity":
        return 1.0
    own = config.method.affinity
    affected = min(own.affected or tasks, tasks)
    return 1.0 + 2.0 * affected * own.held_tokens / 3.0 / (own.every_steps * config.batch.batch_tokens)


def trivial_groups(tasks: Sequence[str]) -> dict[str, Grouping]:
    """The groups of the systems that nothing has to be measured for."""
    return {
        "multilingual": Grouping("universal", (tuple(tasks),), ((),)),
        "bilingual": Grouping("bilingual", tuple((task,) for task in tasks), ((),) * len(tasks)),
    }


def workflow_table(workflow: Workflow, tasks: Sequence[str]) -> dict[str, Any]:
    """What ``workflow.json`` holds."""
    config = workflow.config
    return {
        "version": 1,
        "kind": "workflow",
        "workflow": "ftac",
        "name": config.name,
        "systems": [system for system in order(config.systems) if system in config.systems],
        "seeds": list(config.seeds),
        "split": config.split,
        "limit": config.limit,
        "serve": config.served,
        "families": None if config.families is None else str(user_path(config.families)),
        "tests": None if config.tests is None else config.tests.model_dump(),
        "clustering": config.clustering.model_dump(),
        "tasks": list(tasks),
        "settings": str(workflow.path),
    }


def stage_config(workflow: Workflow, tasks: Sequence[str], out: Path, resources: Resources) -> dict[str, Any]:
    """What ``ftac.smk`` is given: ``workflow.json`` with where OUT is, whether the token store is still to be made, and what a
    training may use."""
    store = is_store(user_path(workflow.trainings["universal"].data.store))
    return {**workflow_table(workflow, tasks), **resources.config(), "out": str(out), "prepare": not store}
