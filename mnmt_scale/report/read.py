"""A run directory as plain data: settings, environment, metrics, evaluations, and what of them is missing.

Reads RUN/{config.toml, environment.json, metrics.jsonl, groups.json, eval/*.json, probes/*.safetensors} and nothing else; a
run that has only begun, or was killed while it wrote, gives what is there, and ``RunData.missing`` says what is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MnmtError
from ..evaluation import resources
from ..evaluation.config import EvaluationConfig
from ..groups import GroupsFile, read_groups
from .probes import Probe, read_probes

Rows = list[dict[str, Any]]
Points = list[tuple[float, float]]

CLASSES = tuple(reversed(resources.CLASSES))
"""Resource classes by training sentences, best-resourced first."""


@dataclass
class RunData:
    """Everything that a report shows of one run.

    Attributes:
        name: of the run's settings; made unique when several runs of a report share it.
        config: the resolved settings, table by table.
        tasks: the direction names in the order of the plan (of the metrics where there is no plan).
        sentences, shares: training sentences and sampling share p per task, from the plan.
        train, valid, checkpoints, events: lines of metrics.jsonl by kind, one per step, ascending.
        evaluations: split -> content of eval/<split>.json.
        classes: the settings that say what resource class a direction is of.
        method: what the table or legend calls the training method; ``observed``: its lines of metrics.jsonl.
        gradients, curvature: probes over the training, from metrics.jsonl or, where it has none, from the probe files.
        probes: kind -> the newest probe file of it.
        groups: which directions train together: what was decided from this run, or what it is a cluster of.
        missing: what a whole report would show and this run does not have, in sentences.
    """

    path: Path
    name: str
    config: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    sentences: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    train: Rows = field(default_factory=list)
    valid: Rows = field(default_factory=list)
    checkpoints: Rows = field(default_factory=list)
    events: Rows = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: EvaluationConfig = field(default_factory=EvaluationConfig)
    method: str = "joint"
    observed: Rows = field(default_factory=list)
    gradients: Rows = field(default_factory=list)
    curvature: Rows = field(default_factory=list)
    probes: dict[str, Probe] = field(default_factory=dict)
    groups: GroupsFile | None = None
    missing: list[str] = field(default_factory=list)


def read_runs(paths: Iterable[Path]) -> list[RunData]:
    """Each run of ``paths``, with names made unique: by directory name where settings share one, by two levels of it
    where that is not enough, else by a number."""
    runs = [read_run(Path(path)) for path in paths]
    by_folder = (lambda run: run.path.resolve().name, lambda run: "/".join(run.path.resolve().parts[-2:]))
    for key in (*by_folder, None):
        names = [run.name for run in runs]
        for i, run in enumerate(runs):
            if names.count(names[i]) > 1:
                run.name = key(run) if key else f"{names[i]} ({names[:i].count(names[i]) + 1})"
    return runs


def read_run(path: Path) -> RunData:
    """One run directory.

    Raises:
        MnmtError: E407 when it has no config.toml, E103 when that is not TOML.
    """
    from ..runs import run_table

    config = run_table(path)
    run = RunData(path=path, name=str(config.get("name", path.name)), config=config)
    run.classes = _classes(config)
    run.environment = _json(path / "environment.json", run.missing) or {}
    lines = _metrics(path / "metrics.jsonl", run.missing)
    run.plan = next((line for line in reversed(lines) if line["kind"] == "plan"), {})
    run.train, run.valid = _by_step(lines, "train"), _by_step(lines, "valid")
    run.checkpoints = _by_step(lines, "checkpoint")
    run.events = [line for line in lines if line["kind"] == "event"]
    run.observed = _by_step(lines, "method")
    run.method = method_label(config, run.observed)
    run.probes, measured = read_probes(path / "probes", run.missing)
    run.groups = groups_in(path, run.missing)
    run.gradients = _by_step(lines, "gradients") or measured["gradients"]
    run.curvature = _by_step(lines, "curvature") or measured["curvature"]
    planned = [task for task in run.plan.get("tasks", []) if isinstance(task, dict) and "name" in task]
    run.sentences = {str(t["name"]): int(t["sentences"]) for t in planned if t.get("sentences") is not None}
    run.shares = {str(t["name"]): float(t["share"]) for t in planned if t.get("share") is not None}
    seen = [str(task) for line in (*run.train, *run.valid) for task in (line.get("tasks") or {})]
    run.tasks = list(dict.fromkeys([*(str(t["name"]) for t in planned), *seen]))
    for file in sorted((path / "eval").glob("*.json")):
        content = _json(file, run.missing)
        if isinstance(content, dict):
            run.evaluations[file.stem] = content
    _say_what_is_missing(run)
    return run


def groups_in(path: Path, missing: list[str]) -> GroupsFile | None:
    """The groups file of a directory; one that cannot be used goes to ``missing``, in a sentence."""
    if not (path / "groups.json").is_file():
        return None
    try:
        return read_groups(path / "groups.json")
    except MnmtError as error:
        missing.append(f"groups.json: {error.what}; left out.")
        return None


def series(rows: Rows, key: str) -> Points:
    """(step, value) of a number in metrics lines; values that are absent or not finite are left out."""
    return [(row["step"], float(row[key])) for row in rows if _finite(row.get(key))]


def task_series(rows: Rows, task: str, key: str) -> Points:
    """(step, value) of a task's number; steps in which the task was not seen are left out."""
    return nested_series(rows, "tasks", task, key)


def nested_series(rows: Rows, *keys: str) -> Points:
    """(step, value) of a number below tables of the lines; where a table or the number is absent, or is something else
    than that, the step is left out."""
    points = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if _finite(value):
            points.append((row["step"], float(value)))
    return points


def keys_of(rows: Rows, *keys: str) -> list[str]:
    """Keys of the tables at ``keys`` of the lines, in order of appearance."""
    found: dict[str, None] = {}
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        found |= dict.fromkeys(value if isinstance(value, dict) else ())
    return list(found)


def method_label(config: dict[str, Any], observed: Rows) -> str:
    """What the training called its method: by its settings, or by its log where those are of another version."""
    from ..methods.spec import MethodConfig, label

    table = config.get("method", {})
    try:
        return label(MethodConfig.model_validate(table))
    except ValueError:  # settings of another version
        logged = observed[-1].get("name") if observed else None
        return str(logged or (table.get("name", "unknown") if isinstance(table, dict) else "unknown"))


def drawn_tokens(run: RunData) -> dict[str, int]:
    """Target tokens per task over all logged intervals: what was really trained on."""
    total = dict.fromkeys(run.tasks, 0)
    for row in run.train:
        for task, cell in (row.get("tasks") or {}).items():
            if _finite(cell.get("tokens")):
                total[task] = total.get(task, 0) + int(cell["tokens"])
    return total


def resource_class(run: RunData, task: str) -> str | None:
    """``high``, ``medium`` or ``low`` as the run's settings name it, else by training sentences; None where neither is
    known."""
    size = run.sentences.get(task)
    try:
        if size is not None:
            return resources.class_of(task, size, run.classes)
        either = {resources.class_of(task, size, run.classes) for size in (0, run.classes.high_from)}
    except ValueError:  # named in two classes, or not the name of a direction
        return None
    return either.pop() if len(either) == 1 else None  # whatever the size: the settings name it


def _classes(config: dict[str, Any]) -> EvaluationConfig:
    """The run's ``evaluation.classes``, ``low_below`` and ``high_from``, or their defaults; settings of other versions do no
    harm."""
    table = config.get("evaluation")
    kept = {key: table[key] for key in ("classes", "low_below", "high_from") if key in table} if isinstance(table, dict) else {}
    try:
        return EvaluationConfig.model_validate(kept)
    except ValueError:
        return EvaluationConfig()


def normalised(values: dict[str, float] | dict[str, int]) -> dict[str, float]:
    """Shares that sum to 1; empty when everything is 0."""
    total = sum(values.values())
    return {name: value / total for name, value in values.items()} if total else {}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _by_step(lines: Rows, kind: str) -> Rows:
    """The lines of a kind by ascending step; of a step written twice (before and after a resume) the later one."""
    found = {line["step"]: line for line in lines if line["kind"] == kind and _finite(line.get("step"))}
    return [found[step] for step in sorted(found)]


def _metrics(path: Path, missing: list[str]) -> Rows:
    if not path.is_file():
        return []
    lines, damaged = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            damaged += 1
            continue
        if isinstance(line, dict) and "kind" in line:
            lines.append(line)
    if damaged:
        missing.append(f"{damaged} line(s) of metrics.jsonl are not JSON (a process was killed while it wrote) and left out.")
    return lines


def _json(path: Path, missing: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        missing.append(f"{path.name} is not JSON and left out.")
        return None


def _say_what_is_missing(run: RunData) -> None:
    if not run.plan:
        run.missing.append("No plan in metrics.jsonl: sizes, shares and resource classes are unknown.")
    if not run.train:
        run.missing.append("No training metrics: the run has not logged a step.")
    if not run.valid:
        run.missing.append("No validation: no dev text, or training stopped before train.validate_steps.")
    if not run.evaluations:
        run.missing.append("No evaluation: run mnmt evaluate on this directory for BLEU and chrF++.")
    if not run.environment:
        run.missing.append("No environment.json: machine and versions are unknown.")
