"""``mnmt cluster``: from what was measured to a grouping, and what the groups file says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import MnmtError, nearest
from ...flow import Grouping
from ...tasks import parse_direction
from . import families as known_families
from .agreement import adjusted_rand, family_effect
from .fuzzy import TOLERANCE, Clusters, fuzzy_clusters, helpers_of, random_helpers, remarks, score
from .language import language_clusters, languages_of
from .linkage import Kind, affinity_distances, average_clusters
from .sources import Affinity, Statistic, check_covers, directions_in, find_groups, find_probe, owner, passed_over, pool

Helpers = Literal["fuzzy", "random", "none"]

MEANING = {
    "ftac": ("clusters", "at_least", "since", "statistic", "min_count", "tolerance", "helpers", "seed"),
    "htac": ("clusters", "at_least", "since", "statistic", "min_count", "tolerance"),
    "average": ("clusters", "since", "statistic", "min_count", "helpers", "seed"),
    "lec": ("clusters", "linkage"),
    "linguistic": (),
    "random": ("helpers", "seed"),
    "bilingual": (),
    "universal": (),
}
"""Method -> the options that it has a use for; ``families`` and ``tasks`` are for all."""


@dataclass(frozen=True)
class Options:
    """Of a clustering; None takes what the method takes.

    Attributes:
        clusters: ftac, htac: at most so many; lec, average: exactly (default: the elbow).
        at_least: ftac, htac: stop uniting at so many.
        families: file with the families of the languages, or ``table`` (``families.read_families``).
        tasks: run directory or settings file whose directions must be those that were measured.
    """

    clusters: int | None = None
    at_least: int | None = None
    since: int | None = None
    statistic: Statistic | None = None
    min_count: int | None = None
    tolerance: float | None = None
    helpers: Helpers | None = None
    seed: int | None = None
    linkage: Kind | None = None
    families: Path | None = None
    tasks: Path | None = None


@dataclass(frozen=True)
class Decision:
    """A grouping, the ``about`` of its file, and what a person should know of it."""

    grouping: Grouping
    about: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        return list(self.about["warnings"])


@dataclass(frozen=True)
class _Found:
    """Clusters of task indices, before they get names; ``affinity`` where the method has one."""

    tasks: tuple[str, ...]
    clusters: Clusters
    helpers: Clusters
    about: dict[str, Any]
    affinity: Affinity | None = None
    warnings: tuple[str, ...] = ()


def decide(method: str, sources: Sequence[Path], options: Options) -> Decision:
    """Clusters directions.

    Args:
        method: a key of ``MEANING``.
        sources: probe files or run directories (ftac, htac, average: any number, pooled; lec: one); a groups file for
            random; anything that has directions for the others.

    Raises:
        MnmtError: E608 when it cannot be done as asked, E607 when the affinity does not allow it, E105, E407, E605, E606 for
            the sources.
    """
    if method not in MEANING:
        raise MnmtError("E608", f"no method {method!r}", where="METHOD", remedy=nearest(method, MEANING) or ", ".join(MEANING))
    _check_options(method, options)
    pooled = METHODS[method] in (_fuzzy, _average)
    if not pooled and len(sources) != 1:
        what = f"{method} takes one source, not {len(sources)}"
        raise MnmtError("E608", what, where="SOURCE", remedy="only the affinity of several runs can be pooled")
    found = METHODS[method](method, sources, options)
    if options.tasks is not None:
        check_covers(found.tasks, directions_in(options.tasks), str(sources[0]))
    names = found.tasks
    grouping = Grouping(
        method,
        tuple(tuple(names[i] for i in cluster) for cluster in found.clusters),
        tuple(tuple(names[i] for i in helpers) for helpers in found.helpers),
    )
    warnings = [*found.warnings, *([] if found.affinity is None else passed_over(sources, "affinity"))]
    about = found.about | {"options": _given(method, options), "warnings": warnings}
    if options.families is not None:
        about["agreement"] = _agreement(found, known_families.read_families(options.families))
    return Decision(grouping, about)


def _check_options(method: str, options: Options) -> None:
    for name, value in vars(options).items():
        if value is not None and name not in (*MEANING[method], "families", "tasks"):
            with_it = [other for other, used in MEANING.items() if name in used]
            option = "--" + name.replace("_", "-")
            raise MnmtError(
                "E608", f"{option} has no meaning for {method}", where=option, remedy=f"it is for {', '.join(with_it)}"
            )
    if method == "random" and options.helpers == "fuzzy":
        what = "random clusters have no affinity to choose helpers by"
        raise MnmtError("E608", what, where="--helpers", remedy="take random or none")


def _given(method: str, options: Options) -> dict[str, Any]:
    """What was decided with, defaults filled in."""
    defaults: dict[str, Any] = {
        "statistic": "mean", "since": 0, "min_count": 2, "tolerance": TOLERANCE, "at_least": 1, "linkage": "ward", "seed": 1,
        "helpers": {"ftac": "fuzzy"}.get(method, "none"),
    }  # fmt: skip
    return {name: defaults.get(name) if (v := getattr(options, name)) is None else v for name in MEANING[method]}


def _fuzzy(method: str, sources: Sequence[Path], options: Options) -> _Found:
    """FTAC; HTAC is the same without helpers."""
    given = _given(method, options)
    affinity = _measured(sources, given)
    N = len(affinity.tasks)
    _check_number(options.clusters, N, "--clusters")
    at_least = given["at_least"]
    _check_number(at_least, N if options.clusters is None else options.clusters, "--at-least")
    result = fuzzy_clusters(affinity.cells, tolerance=given["tolerance"], at_most=options.clusters, at_least=at_least)
    names = affinity.tasks
    merges = [
        {"of": [names[m.first], names[m.second]], "gain": m.gain, "forced": m.forced, "ties": m.ties} for m in result.merges
    ]
    about = affinity.about | {"scores": list(result.scores), "overall": result.total, "merges": merges}
    trained = result if given.get("helpers") == "fuzzy" else replace(result, helpers=((),) * len(result.clusters))
    warnings = tuple(remarks(affinity.cells, affinity.error, trained, names))
    found = _Found(names, result.clusters, result.helpers, about, affinity, warnings)
    return _with_helpers(found, given.get("helpers", "none"), given.get("seed", 1))


def _average(method: str, sources: Sequence[Path], options: Options) -> _Found:
    given = _given(method, options)
    affinity = _measured(sources, given)
    distances = affinity_distances(affinity.cells)
    _check_elbow(options.clusters, len(distances))
    clusters = average_clusters(distances, options.clusters)
    about = affinity.about | {"scores": [score(affinity.cells, c, helpers_of(affinity.cells, c)) for c in clusters]}
    about["overall"] = float(np.sum(about["scores"]))
    found = _Found(affinity.tasks, clusters, tuple(helpers_of(affinity.cells, c) for c in clusters), about, affinity)
    return _with_helpers(found, given["helpers"], given["seed"])


def _lec(method: str, sources: Sequence[Path], options: Options) -> _Found:
    probe = find_probe(sources[0], "vectors")
    tasks = tuple(sorted(probe.about["tasks"]))
    directions = [parse_direction(name) for name in tasks]
    languages = languages_of(directions)
    if languages is None:
        raise MnmtError(
            "E608",
            "lec is not defined for many-to-many: the two languages of a direction may fall into different clusters",
            where=str(probe.path),
            remedy="use ftac, htac or average, which cluster directions",
        )
    vectors, have = probe.tensors["vectors"].numpy(), probe.about["languages"]
    missing = sorted(set(languages) - set(have))
    if missing:
        raise MnmtError("E607", f"no vectors of {', '.join(missing)}", where=str(probe.path), remedy="run mnmt probe vectors")
    chosen = vectors[[have.index(code) for code in languages]]
    if not np.isfinite(chosen).all():
        bad = sorted(code for code, row in zip(languages, chosen, strict=True) if not np.isfinite(row).all())
        raise MnmtError("E607", f"vectors of {', '.join(bad)} are not finite", where=str(probe.path), remedy="train again")
    _check_elbow(options.clusters, len(tasks))
    clusters = language_clusters(chosen, options.clusters, _given(method, options)["linkage"])
    return _Found(tasks, clusters, ((),) * len(clusters), {"sources": [str(probe.path)], "runs": [probe.about["run"]]})


def _linguistic(method: str, sources: Sequence[Path], options: Options) -> _Found:
    tasks = _tasks(sources[0])
    table = known_families.FAMILIES if options.families is None else known_families.read_families(options.families)
    labels = known_families.labels([parse_direction(name) for name in tasks], table)
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    clusters = tuple(map(tuple, groups.values()))
    return _Found(tasks, clusters, ((),) * len(clusters), {"sources": [str(sources[0])], "families": list(groups)})


def _random(method: str, sources: Sequence[Path], options: Options) -> _Found:
    """Clusters of the sizes of a given grouping, dealt out at random; helpers as many as it has, if asked for."""
    given = _given(method, options)
    model = find_groups(sources[0]).grouping
    tasks = model.tasks
    shuffled = np.random.default_rng(given["seed"]).permutation(len(tasks)).tolist()
    clusters, counts = [], []
    for cluster, helpers in zip(model.clusters, model.helpers, strict=True):
        clusters.append((tuple(sorted(shuffled[: len(cluster)])), len(helpers)))
        shuffled = shuffled[len(cluster) :]
    clusters.sort()
    counts = [count if given["helpers"] == "random" else 0 for _, count in clusters]
    drawn = tuple(cluster for cluster, _ in clusters)
    return _Found(tasks, drawn, random_helpers(drawn, counts, given["seed"] + 1), {"sources": [str(sources[0])]})


def _trivial(method: str, sources: Sequence[Path], options: Options) -> _Found:
    tasks = _tasks(sources[0])
    every = tuple(range(len(tasks)))
    clusters: Clusters = tuple((i,) for i in every) if method == "bilingual" else (every,)
    return _Found(tasks, clusters, ((),) * len(clusters), {"sources": [str(sources[0])]})


METHODS: dict[str, Callable[[str, Sequence[Path], Options], _Found]] = {
    "ftac": _fuzzy,
    "htac": _fuzzy,
    "average": _average,
    "lec": _lec,
    "linguistic": _linguistic,
    "random": _random,
    "bilingual": _trivial,
    "universal": _trivial,
}


def _measured(sources: Sequence[Path], given: Mapping[str, Any]) -> Affinity:
    """The affinity of all sources; each must cover the directions of the run that it lies in."""
    files = [find_probe(source, "affinity") for source in sources]
    for file in files:
        if (run := owner(file.path)) is not None:
            check_covers(file.about["tasks"], directions_in(run), str(file.path))
    return pool(files, statistic=given["statistic"], since=given["since"], min_count=given["min_count"])


def _tasks(source: Path) -> tuple[str, ...]:
    tasks = tuple(sorted(directions_in(source)))
    if not tasks:
        raise MnmtError("E608", "it has no directions", where=str(source))
    return tasks


def _with_helpers(found: _Found, helpers: Helpers, seed: int) -> _Found:
    """``found`` has the fuzzy ones, by which its clusters were chosen; the scores are those of what is trained."""
    if helpers == "fuzzy":
        return found
    chosen: Clusters = ((),) * len(found.clusters)
    if helpers == "random":
        chosen = random_helpers(found.clusters, [len(h) for h in found.helpers], seed)
    assert found.affinity is not None
    scores = [score(found.affinity.cells, c, h) for c, h in zip(found.clusters, chosen, strict=True)]
    about = found.about | {"scores": scores, "overall": float(sum(scores))}
    return replace(found, helpers=chosen, about=about)


def _check_elbow(count: int | None, N: int) -> None:
    if count is None and N == 2:
        raise MnmtError("E608", "two directions have no elbow to choose a number by", remedy="give --clusters 1 or 2")
    _check_number(count, N, "--clusters")


def _check_number(count: int | None, most: int, option: str) -> None:
    if count is not None and not 1 <= count <= most:
        what = (
            f"{count} clusters at least, but {most} at most"
            if option == "--at-least"
            else f"{count} clusters of {most} directions"
        )
        raise MnmtError("E608", what, where=option, remedy=f"give 1 to {most}")


def _agreement(found: _Found, table: Mapping[str, str]) -> dict[str, Any]:
    labels = known_families.labels([parse_direction(name) for name in found.tasks], table)
    effect = None if found.affinity is None else family_effect(found.affinity.cells, labels)
    return {
        "families": dict(zip(found.tasks, labels, strict=True)),
        "adjusted_rand": adjusted_rand(found.clusters, labels),
        "effect": None if effect is None else asdict(effect),
    }
