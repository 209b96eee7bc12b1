"""What the finished runs of a comparison say: means by resource class over seeds, and whether they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MnmtError
from ..evaluation.bootstrap import resampled_bleu, sentence_test
from ..evaluation.config import EvaluationConfig
from ..evaluation.evaluate import read_lines
from ..evaluation.resources import CLASSES
from ..evaluation.score import bleu_counts
from ..tasks import parse_direction
from .plan import Entry, Job, is_evaluated, is_trained, read_json
from .statistics import mean_interval, paired_difference

METRICS = ("bleu", "chrf", "nll")
GROUPS = ("all", *CLASSES)
Key = tuple[str, int]
"""Name of an entry, and a seed."""


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
    cost = [_cost(finished[entry.name, seed].run) for seed in seeds]
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
    sums: dict[tuple[Key, str], list[Any]] = {}  # per run and group: BLEU summed over directions, and on the resamples
    counts = {group: sum(c == group for c in classes.values()) for group in CLASSES}
    counts["all"] = sum(counts[group] for group in CLASSES)
    trained = [name for name, group in sorted(classes.items()) if group in CLASSES]
    for number, direction in enumerate(trained):
        whole, resampled = resampled_bleu(
            _counts(finished, direction, split, config), config.bootstrap_samples, [config.bootstrap_seed, number]
        )
        for key in finished:
            for group in ("all", classes[direction]):
                total = sums.setdefault((key, group), [0.0, np.zeros(config.bootstrap_samples)])
                total[0] += whole[key]
                total[1] += resampled[key]
    out: dict[str, dict[str, Any]] = {}
    for name in {name for name, _ in finished} - {baseline.name}:
        shared = [seed for entry, seed in finished if entry == name and (baseline.name, seed) in finished]
        for group in GROUPS:
            if shared and counts[group]:
                scale = counts[group] * len(shared)
                pairs = [(sums[(name, seed), group], sums[(baseline.name, seed), group]) for seed in shared]
                difference = sum(own[0] - base[0] for own, base in pairs) / scale
                resampled_difference = sum(own[1] - base[1] for own, base in pairs) / scale
                test = sentence_test(difference, resampled_difference)
                out.setdefault(name, {})[group] = {**asdict(test), "seeds": shared}
    return out


def _counts(finished: dict[Key, Job], direction: str, split: str, config: EvaluationConfig) -> dict[Key, Any]:
    references: list[str] | None = None
    out = {}
    for key, job in finished.items():
        stem = job.run / "eval" / f"{split}.{direction}"
        hypotheses, lines = (read_lines(Path(f"{stem}.{kind}")) for kind in ("hyp", "ref"))
        if references is not None and lines != references:
            raise MnmtError("E603", f"the runs were evaluated on different lines of {direction}", where=f"{stem}.ref")
        references = lines
        out[key] = bleu_counts(hypotheses, references, parse_direction(direction)[1], config)
    return out


def _cost(run: Path) -> tuple[int | None, float | None]:
    """Target tokens trained on, and seconds of training steps (validation and checkpoints left out), by the run's metrics."""
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None, None
    rows = [line for line in lines if line.get("kind") == "train"]
    if not rows:
        return None, None
    return int(rows[-1]["tokens"]), round(sum(row["seconds"] for row in rows), 1)
