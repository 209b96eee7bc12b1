"""What the systems of a clustering workflow reach, direction by direction: the data of the FTAC paper's Table 4.

A system (``ftac``, ``lec`` ...) trained with a seed is a bundle, OUT/SYSTEM/seed-S: groups.json, a run for each cluster, and
after its evaluation eval/SPLIT.json with the translations beside it. Of several seeds the scores are means. The gains of
FTAC over LEC and over the multilingual model are tested by paired bootstrap over the test sentences (all seeds on the same
resamples, two-sided; the paper's marks), and for means over directions also by a paired t test over the seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import settings
from ..errors import MnmtError
from ..evaluation.config import EvaluationConfig
from ..evaluation.paired import Key, Scores, add_scores, direction_scores, paired_test
from ..evaluation.resources import CLASSES, averages
from ..evaluation.statistics import mean_interval, paired_difference
from ..groups import read_groups
from ..runlog import training_cost

Results = dict[Key, dict[str, Any]]

SYSTEMS = {
    "bilingual": ("Bi.", "a model for each direction"),
    "multilingual": ("Multi.", "one model for all directions"),
    "lec": ("LEC", "clusters of the languages' embeddings (Tan et al. 2019)"),
    "linguistic": ("Families", "clusters are language families"),
    "average": ("Average", "clusters by average linkage on the symmetrised affinity"),
    "random": ("Random", "random clusters of the sizes of FTAC's"),
    "htac": ("HTAC", "FTAC's clusters without helpers"),
    "rand": ("Rand.", "FTAC's clusters, each with as many helpers chosen at random"),
    "temp": ("Temp.", "FTAC's clusters and helpers, all sampled by temperature alone"),
    "fix": ("Fix.", "FTAC's clusters and helpers, these not fading (lambda = 0)"),
    "ftac": ("FTAC", "clusters of the tasks' affinity with helpers that fade"),
}
"""Name -> the paper's label, and what it is; in the order of the columns."""

SUBJECT, BASELINES = "ftac", ("lec", "multilingual")
"""Whose gains are tested, and over which: Delta 1 and Delta 2 of the paper."""

METRICS = ("bleu", "chrf", "nll")
GROUPS = ("all", *CLASSES)
MARKS = ((0.01, "\N{DAGGER}"), (0.05, "\N{DOUBLE DAGGER}"))
"""p below this -> the mark of the paper's Table 4."""

_SAME = ("beam", "length_penalty", "early_stopping", "max_ratio", "max_extra", "bleu_tokenizer")
"""What of the decoding must be alike for scores to be compared."""


def collect_systems(out: Path, workflow: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of a workflow directory from the bundles that are evaluated; None where none is.

    Args:
        workflow: what OUT/workflow.json holds: ``systems``, ``seeds``, ``split`` and ``limit`` are read.

    Returns:
        ``systems``: a row each with means by resource class, their intervals over seeds, differences, clusters and cost;
        ``directions``: a row each, largest corpus first, with ``bleu`` and ``chrf`` by system and the ``deltas``;
        ``average``: the same for the mean over directions. ``second``: such a table for every other corpus' test sets that
        the bundles were evaluated on, by its name; those of which there is none are ``left_out``, with the reason.

    Raises:
        MnmtError: E603 when bundles were evaluated on other lines or directions, or decoded otherwise, than the first.
    """
    split = str(workflow.get("split") or "test")
    asked = [(system, int(seed)) for system in in_order(workflow.get("systems") or ()) for seed in workflow.get("seeds") or ()]
    bundles = {key: out / key[0] / f"seed-{key[1]}" for key in asked}
    results = {key: result for key, result in _results(bundles, split).items() if result.get("limit") == workflow.get("limit")}
    if not results:
        return None
    found = _table(bundles, split, results)
    stems = {p.stem for path in bundles.values() for p in (path / "eval").glob(f"*.{split}.json")}
    second: dict[str, Any] = {}
    left_out: list[str] = []
    for stem in sorted(stems):
        name, other = stem.removesuffix(f".{split}"), _results(bundles, stem)
        try:
            second |= {name: _table(bundles, stem, other)} if other else {}
        except MnmtError as error:
            left_out.append(f"No table of the test sets of {name}: {error.what} ({error.where}).")
    return {
        "version": 1,
        "kind": "systems",
        "name": workflow.get("name"),
        **found,
        "second": second,
        "left_out": left_out,
    }


def mark(delta: Mapping[str, Any] | None) -> str:
    """The paper's sign for a difference that the bootstrap finds significant, better or worse; else nothing."""
    return "" if delta is None else next((sign for bound, sign in MARKS if delta["p"] < bound), "")


def label(system: str) -> str:
    """What the tables call a system."""
    return SYSTEMS[system][0] if system in SYSTEMS else system


def in_order(systems: Sequence[str]) -> list[str]:
    """In the order of ``SYSTEMS``, unknown ones at the end."""
    names = list(dict.fromkeys(map(str, systems)))
    return [s for s in SYSTEMS if s in names] + [s for s in names if s not in SYSTEMS]


def _table(bundles: dict[Key, Path], stem: str, results: Results) -> dict[str, Any]:
    """One table, of the evaluations called ``stem``."""
    first = next(iter(results.values()))
    classes, config = _comparable(results, bundles)
    trained = sorted(name for name, group in classes.items() if group in CLASSES)
    by_direction, sums = _bootstrap({key: bundles[key] / "eval" for key in results}, stem, classes, trained, config)
    sizes = {name: first["directions"][name].get("train_sentences") or 0 for name in trained}
    deltas = _baselines(results)
    whole = {group: sum(group in ("all", classes[name]) for name in trained) for group in GROUPS}
    rows = first["directions"]
    return {
        "split": stem,
        "limit": first.get("limit"),
        "subject": SUBJECT if deltas else None,
        "baselines": deltas,
        "systems": [_system(name, results, bundles, sums, whole) for name in dict.fromkeys(name for name, _ in results)],
        "directions": [
            _direction(name, rows[name], results, by_direction[name], deltas)
            for name in sorted(trained, key=lambda name: (-sizes[name], name))
        ],
        "average": {
            "directions": len(trained),
            "deltas": {base: paired_test(sums["all"], SUBJECT, base, len(trained)) for base in deltas},
        },
        "groups": [group for group in GROUPS if whole[group]],
        "signatures": sorted({rows[name]["bleu_signature"] for name in trained}),
        "decoding": {key: first["decoding"].get(key) for key in _SAME},
        "resamples": config.bootstrap_samples,
        "unfinished": [f"{label(name)} seed {seed}" for name, seed in bundles if (name, seed) not in results],
    }


def _results(bundles: dict[Key, Path], stem: str) -> Results:
    """The evaluations of all directions that there are and that can be read."""
    results: Results = {}
    for key, path in bundles.items():
        try:
            found = json.loads((path / "eval" / f"{stem}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and not found.get("only") and found.get("directions") and found.get("decoding"):
            results[key] = found
    return results


def _comparable(results: Results, bundles: dict[Key, Path]) -> tuple[dict[str, str], EvaluationConfig]:
    """Direction -> class, and how all were decoded and scored; E603 where a bundle differs from the first."""
    expected: tuple[dict[str, str], dict[str, Any]] | None = None
    for key, result in results.items():
        classes = {name: str(row["class"]) for name, row in result["directions"].items() if row["class"] != "zero-shot"}
        decoding = {name: result["decoding"].get(name) for name in _SAME}
        if expected is None:
            expected = classes, decoding
        differing = sorted(name for name in classes.keys() | expected[0].keys() if classes.get(name) != expected[0].get(name))
        if differing:
            what = f"directions or their classes differ from the first system's: {', '.join(differing[:5])}"
            raise MnmtError("E603", what, where=str(bundles[key]))
        for name in _SAME:
            if decoding[name] != expected[1][name]:
                what = f"decoded with {name} = {decoding[name]!r}, the first system with {expected[1][name]!r}"
                raise MnmtError("E603", what, where=str(bundles[key]), remedy=f"evaluate again: mnmt evaluate {bundles[key]}")
    assert expected is not None
    first = next(iter(results))
    config = settings.validate(EvaluationConfig, results[first]["decoding"], str(bundles[first] / "eval"))
    return expected[0], config


def _bootstrap(
    folders: dict[Key, Path], stem: str, classes: dict[str, str], trained: list[str], config: EvaluationConfig
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Scores on common resamples by direction, of the two systems and more that are tested, and summed by group."""
    by_direction: dict[str, Scores] = {}
    sums: dict[str, Scores] = {}
    for number, name in enumerate(trained):
        scores = direction_scores(folders, stem, name, config, number)
        by_direction[name] = {key: score for key, score in scores.items() if key[0] in (SUBJECT, *BASELINES)}
        for group in ("all", classes[name]):
            add_scores(sums.setdefault(group, {}), scores)
    return by_direction, sums


def _baselines(results: Results) -> list[str]:
    names = {name for name, _ in results}
    return [base for base in BASELINES if base in names] if SUBJECT in names else []


def _direction(name: str, row: dict[str, Any], results: Results, scores: Scores, baselines: Sequence[str]) -> dict[str, Any]:
    by_seed: dict[str, dict[str, dict[int, float]]] = {metric: {} for metric in METRICS}
    for (system, seed), result in results.items():
        for metric in METRICS:
            by_seed[metric].setdefault(system, {})[seed] = float(result["directions"][name][metric])
    means = {m: {s: sum(v.values()) / len(v) for s, v in table.items()} for m, table in by_seed.items()}
    return {
        "direction": name,
        "class": row["class"],
        "sentences": row.get("train_sentences"),
        **means,
        "bleu_by_seed": by_seed["bleu"],
        "deltas": {base: paired_test(scores, SUBJECT, base) for base in baselines},
    }


def _system(
    name: str, results: Results, bundles: dict[Key, Path], sums: dict[str, Scores], sizes: dict[str, int]
) -> dict[str, Any]:
    """Means of a system by resource class, and their differences to the multilingual model's."""
    seeds = [seed for system, seed in results if system == name]
    groups: dict[str, dict[str, Any]] = {}
    for group in (group for group in GROUPS if sizes[group]):
        groups[group] = {}
        for metric in METRICS:
            own = _by_seed(results, name, group, metric)
            cell: dict[str, Any] = {**asdict(mean_interval(list(own.values()))), "by_seed": own}
            base = _by_seed(results, BASELINES[1], group, metric)
            if base and name != BASELINES[1]:
                over = paired_difference(own, base)
                cell["against"] = None if over is None else asdict(over)
                if metric == "bleu":
                    cell["against_sentences"] = paired_test(sums[group], name, BASELINES[1], sizes[group])
            groups[group][metric] = cell
    title = SYSTEMS[name][1] if name in SYSTEMS else ""
    return {"system": name, "label": label(name), "about": title, "seeds": seeds, "groups": groups} | _bundles(
        [bundles[name, seed] for seed in seeds]
    )


def _by_seed(results: Results, name: str, group: str, metric: str) -> dict[int, float]:
    found = {seed: averages(result["directions"]) for (system, seed), result in results.items() if system == name}
    return {seed: float(means[group][metric]) for seed, means in found.items()}


def _bundles(paths: Sequence[Path]) -> dict[str, Any]:
    """Per seed: number of models, helpers over all of them, and what their trainings cost together (None where unknown)."""
    rows: dict[str, list[Any]] = {"clusters": [], "helpers": [], "target_tokens": [], "training_seconds": []}
    for path in paths:
        try:
            grouping = read_groups(path / "groups.json").grouping
        except MnmtError:
            number, helpers = None, None
        else:
            number, helpers = len(grouping.clusters), sum(map(len, grouping.helpers))
        costs = [training_cost(path / f"cluster-{k}") for k in range(number or 0)]
        rows["clusters"].append(number)
        rows["helpers"].append(helpers)
        for place, key in enumerate(("target_tokens", "training_seconds")):
            values = [cost[place] for cost in costs]
            rows[key].append(None if not values or None in values else sum(values))
    return rows
