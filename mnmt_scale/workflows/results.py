"""What the finished runs of a comparison say: means by resource class over seeds, and whether they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..errors import MnmtError
from ..evaluation.paired import Key, Scores, add_scores, direction_scores, paired_test
from ..evaluation.resources import CLASSES
from ..evaluation.statistics import mean_interval, paired_difference
from ..runlog import training_cost
from .plan import Entry, Job, is_evaluated, is_trained, read_json

METRICS = ("bleu", "chrf", "nll")
GROUPS = ("all", *CLASSES)


def collect(jobs: Sequence[Job], baseline: Entry, split: str, limit: int | None) -> dict[str, Any] | None:
    """The table of a comparison from the runs that are finished; None where none is.

    Raises:
        MnmtError: E603 when runs were evaluated on other lines or directions than the first.
    """
    done = [job for job in jobs if is_trained(job) and is_evaluated(job, split, limit)]
    finished = {(job.entry.name, job.seed): job for job in done}
    if not finished:
        return None
    results = {key: read_json(job.run / "eval" / f"{split}.json") or {} for key, job in finished.items()}
    classes = _same_directions(finished, results)
    entries = list({job.entry.name: job.entry for job in jobs}.values())
    tests = _sentence_tests(finished, classes, baseline, split)
    rows = []
    for entry in entries:
        seeds = [seed for name, seed in finished if name == entry.name]
        if seeds:
            rows.append(_row(entry, seeds, results, baseline, tests.get(entry.name, {}), finished))
    first = next(iter(results.values()))
    signatures = sorted({row["bleu_signature"] for row in first["directions"].values()})
    return {
        "split": split,
        "limit": limit,
        "baseline": baseline.name,
        "seeds": sorted({job.seed for job in jobs}),
        "classes": classes,
        "groups": [group for group in GROUPS if group in first["averages"]],
        "signatures": signatures,
        "decoding": first["decoding"],
        "resamples": baseline.config.evaluation.bootstrap_samples,
        "rows": rows,
        "unfinished": [job.name for job in jobs if (job.entry.name, job.seed) not in finished],
    }


def _row(
    entry: Entry,
    seeds: list[int],
    results: dict[Key, dict[str, Any]],
    baseline: Entry,
    tests: dict[str, Any],
    finished: dict[Key, Job],
) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        for metric in METRICS:
            own = _by_seed(entry.name, group, metric, results)
            if not own:
                continue
            cell: dict[str, Any] = {**asdict(mean_interval(list(own.values()))), "by_seed": own}
            if entry.name != baseline.name:
                found = paired_difference(own, _by_seed(baseline.name, group, metric, results))
                cell["against"] = asdict(found) if found is not None else None
            groups.setdefault(group, {})[metric] = cell
        if group in tests:
            groups[group]["bleu"]["against_sentences"] = tests[group]
    directions = {
        name: mean_interval([results[entry.name, seed]["directions"][name]["bleu"] for seed in seeds]).mean
        for name in results[entry.name, seeds[0]]["directions"]
    }
    cost = [training_cost(finished[entry.name, seed].run) for seed in seeds]
    return {
        "name": entry.name,
        "label": entry.label,
        "seeds": seeds,
        "groups": groups,
        "directions": directions,
        "target_tokens": [tokens for tokens, _ in cost],
        "training_seconds": [seconds for _, seconds in cost],
    }


def _by_seed(name: str, group: str, metric: str, results: dict[Key, dict[str, Any]]) -> dict[int, float]:
    out = {}
    for (entry, seed), result in results.items():
        value = result["averages"].get(group, {}).get(metric)
        if entry == name and value is not None:
            out[seed] = float(value)
    return out


def _same_directions(finished: dict[Key, Job], results: dict[Key, dict[str, Any]]) -> dict[str, str]:
    """Direction -> class, which must be the same in all runs (E603)."""
    classes: dict[str, str] | None = None
    for key, result in results.items():
        own = {name: row["class"] for name, row in result["directions"].items()}
        if classes is not None and own != classes:
            differing = sorted(name for name in own.keys() | classes.keys() if own.get(name) != classes.get(name))
            what = f"directions or their classes differ from the first run's: {', '.join(differing[:5])}"
            raise MnmtError("E603", what, where=str(finished[key].run))
        classes = classes or own
    assert classes is not None
    return classes


def _sentence_tests(
    finished: dict[Key, Job], classes: dict[str, str], baseline: Entry, split: str
) -> dict[str, dict[str, Any]]:
    """Name -> group -> the bootstrap over sentences of its mean BLEU against the baseline's, over the seeds of both."""
    config = baseline.config.evaluation
    sums: dict[str, Scores] = {}  # by group, over its directions
    trained = [name for name, group in sorted(classes.items()) if group in CLASSES]
    folders = {key: job.run / "eval" for key, job in finished.items()}
    for number, direction in enumerate(trained):
        scores = direction_scores(folders, split, direction, config, number)
        for group in ("all", classes[direction]):
            add_scores(sums.setdefault(group, {}), scores)
    out: dict[str, dict[str, Any]] = {}
    for name in {name for name, _ in finished} - {baseline.name}:
        for group, total in sums.items():
            count = sum(group in ("all", classes[direction]) for direction in trained)
            test = paired_test(total, name, baseline.name, count)
            if test is not None:
                out.setdefault(name, {})[group] = test
    return out
