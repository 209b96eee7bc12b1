"""Settings of a workflow: which systems are trained from which settings, and with what. A TOML file of ``configs/ftac``."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .. import settings
from ..errors import MnmtError
from ..settings import Section
from ..train.config import RunConfig
from .ftac_stages import MEASURED

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
System = Literal["bilingual", "multilingual", "lec", "htac", "ftac", "rand", "temp", "fix", "average", "linguistic", "random"]
KINDS = ("universal", "clusters", "bilingual")
"""Kinds of training, each with a resolved settings file of its own."""


class ClusteringConfig(Section):
    """How groups are decided: options of ``mnmt cluster``."""

    max_clusters: Positive | None = None
    """ftac, htac and those that use their clusters: go on merging until there are no more than this many. Default: stop where
    no merge improves the affinity, as the paper."""
    clusters: Positive | None = None
    """Number of clusters of lec and average. Default: by the elbow."""
    since_step: NonNegative = 0
    """Only windows of training that begin at this step or later count."""
    statistic: Literal["mean", "sum"] = "mean"
    """What a cell is: the mean of its measurements, or their sum (Eq. 8)."""
    min_count: Positive | None = None
    """Fewest measurements of a cell. Default: that of ``mnmt cluster``."""
    tolerance: Annotated[float, Field(ge=0.0)] | None = None
    """Relative; a merge must improve the affinity by more. Default: that of ``mnmt cluster``."""


class ConstructedConfig(Section):
    """Constructed languages to write before anything else."""

    settings: str
    """Settings file of the languages (``mnmt_scale.data.synthetic``), relative to the workflow's."""
    out: str
    """Directory of their text, where it is not there yet."""


class TestsConfig(Section):
    """Test sets of another corpus, to be translated too (the paper's Table 11)."""

    path: str
    """Directory in the layout of OPUS-100."""
    name: str
    """What its results are called: eval/NAME.SPLIT.json."""


class ResourcesConfig(Section):
    """What one training uses, where the command line says nothing else."""

    gpus: NonNegative = 0
    """GPUs of one training (``--gpus-per-training``), also for estimates; 0: CPU."""
    threads: Positive | None = None
    """Threads of one training (``--threads``); default: all cores."""


class WorkflowConfig(Section):
    """From one settings file to the systems of the FTAC paper's tables."""

    name: str = "workflow"
    training: str
    """Settings file of the trainings, relative to this file. It needs no method: each kind of training has its own."""
    all: dict[str, Any] = Field(default_factory=dict)
    """Changes to the settings of every training, as tables: [all.train] max_steps = ..."""
    universal: dict[str, Any] = Field(default_factory=dict)
    """Further changes for the universal model, whose affinities are measured while it trains."""
    clusters: dict[str, Any] = Field(default_factory=dict)
    """Further changes for the model of a cluster."""
    bilingual: dict[str, Any] = Field(default_factory=dict)
    """Further changes for the model of one direction alone."""
    systems: list[System] = ["bilingual", "multilingual", "lec", "htac", "ftac"]
    """The columns of the table. ``rand``, ``temp`` and ``fix`` are the paper's ablations of the helpers; ``average``,
    ``linguistic`` and ``random`` other ways to make clusters (docs/ftac.md)."""
    seeds: list[NonNegative] = [1]
    """Values of ``train.seed``: everything is done with each."""
    serve: str | None = None
    """The system and seed that the directory stands for when it translates; default: ftac, else the last of ``systems``, with
    the first seed."""
    clustering: ClusteringConfig = ClusteringConfig()
    split: Literal["test", "dev"] = "test"
    """What is translated and scored."""
    limit: Positive | None = None
    """The first lines of each test set only."""
    tests: TestsConfig | None = None
    """Another corpus' test sets, beside the own."""
    families: str | None = None
    """Table of language families (or ``truth.json`` of constructed languages), relative to the working directory: agreement
    of the clusters with them is told, and ``linguistic`` follows it instead of the built-in table."""
    constructed: ConstructedConfig | None = None
    """Constructed languages, written first where their text is not there."""
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _possible(self):
        for key in ("systems", "seeds"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise MnmtError("E104", f"{key} = {values}: one or more, each once", where=key)
        if "random" in self.systems and "ftac" not in self.systems:
            raise MnmtError("E104", "random has the sizes of ftac's clusters", where="systems", remedy="add ftac")
        served = [f"{system}/seed-{seed}" for system in self.systems for seed in self.seeds]
        if self.serve is not None and self.serve not in served:
            raise MnmtError("E104", f"serve = {self.serve!r} is none of this workflow", remedy=f"one of {', '.join(served)}")
        return self

    @property
    def served(self) -> str:
        """SYSTEM/seed-S of the bundle that the workflow's directory stands for."""
        return self.serve or f"{'ftac' if 'ftac' in self.systems else self.systems[-1]}/seed-{self.seeds[0]}"


@dataclass(frozen=True)
class Workflow:
    """A read workflow: its settings, and those of each kind of training."""

    path: Path
    config: WorkflowConfig
    trainings: dict[str, RunConfig]


def read_workflow(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Workflow:
    """The workflow of a settings file, ``section.key=value`` over it.

    Raises:
        MnmtError: E101 to E104 bad settings here or in those of a training; E104 a method of its own, a seed, or clusters of
            languages asked for where a direction has two.
    """
    config = settings.load(WorkflowConfig, path, overrides)
    table = settings.read_table(path.parent / config.training)
    trainings = {kind: _training(config, kind, table, path) for kind in KINDS}
    if "lec" in config.systems and trainings["universal"].data.directions == "many-to-many":
        what = "lec clusters languages, and both languages of a many-to-many direction may be in different clusters"
        raise MnmtError("E104", what, where=str(path), remedy="leave lec out of systems")
    return Workflow(path, config, trainings)


def _training(config: WorkflowConfig, kind: str, table: dict[str, Any], path: Path) -> RunConfig:
    """The settings of one kind: the file, ``all``, the kind's own changes, and the method that it stands for."""
    changes = settings.merge(deepcopy(config.all), deepcopy(getattr(config, kind)))
    if "seed" in changes.get("train", {}):
        raise MnmtError("E104", "the seeds of a workflow are its own setting", where=str(path), remedy="seeds = [1, 2, 3]")
    merged = settings.merge(deepcopy(table), changes)
    method = dict(merged.get("method", {}))
    probing = kind == "universal" and any(system in MEASURED for system in config.systems)
    allowed = ("joint", "affinity") if kind == "universal" else ("joint", "affinity", "ftac")
    if method.get("name", "joint") not in allowed:
        what = f"method.name = {method['name']!r}, but a workflow decides the method of its {kind} trainings"
        raise MnmtError("E104", what, where=str(path.parent / config.training), remedy="leave method.name out")
    name = "ftac" if kind != "universal" else "affinity" if probing else "joint"
    merged["method"] = {**method, "name": name}
    merged["name"] = f"{config.name}-{kind}"
    return settings.validate(RunConfig, merged, f"{path} ({kind})")
