"""Systems that were evaluated on the same lines, and their differences: the paired bootstrap from what evaluations wrote.

A system may have been trained with several seeds: a training is a (system, seed). All trainings are scored on the same
resamples of the test sentences, and a difference is one of means over the seeds that both systems have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MnmtError
from ..tasks import parse_direction
from .bootstrap import Counts, Floats, resampled_bleu, sentence_test
from .config import EvaluationConfig
from .results import read_lines
from .score import bleu_counts

Key = tuple[str, int]
"""Name of a system, and a seed."""
Scores = dict[Key, tuple[float, Floats]]
"""BLEU of each training, and [resamples] BLEU on the resamples; sums of these over directions, too."""


def direction_scores(folders: Mapping[Key, Path], stem: str, direction: str, config: EvaluationConfig, number: int) -> Scores:
    """BLEU of every training on the test set of one direction and on resamples of it.

    Args:
        folders: where each training's evaluation lies: FOLDER/STEM.DIRECTION.{hyp,ref}.
        stem: the split, with the name of the corpus before it where that is another than the run's own.
        number: of the direction among those that are compared: part of the seed of its resamples.

    Raises:
        MnmtError: E603 when lines cannot be read, or a training was evaluated on other lines than the first.
    """
    references: list[str] | None = None
    counts: dict[Key, Counts] = {}
    for key, folder in folders.items():
        path = folder / f"{stem}.{direction}"
        hypotheses, lines = (read_lines(Path(f"{path}.{kind}")) for kind in ("hyp", "ref"))
        if references is not None and lines != references:
            raise MnmtError("E603", f"the runs were evaluated on different lines of {direction}", where=f"{path}.ref")
        references = lines
        counts[key] = bleu_counts(hypotheses, references, parse_direction(direction)[1], config)
    whole, resampled = resampled_bleu(counts, config.bootstrap_samples, [config.bootstrap_seed, number])
    return {key: (whole[key], resampled[key]) for key in whole}


def add_scores(total: Scores, scores: Scores) -> None:
    """Adds the scores of a direction to a sum over directions."""
    for key, (whole, resampled) in scores.items():
        before = total.get(key, (0.0, np.zeros_like(resampled)))
        total[key] = (before[0] + whole, before[1] + resampled)


def paired_test(scores: Scores, system: str, baseline: str, directions: int = 1) -> dict[str, Any] | None:
    """The bootstrap over sentences of ``system`` - ``baseline``, mean over the seeds that both have.

    Args:
        directions: how many the scores are sums over.

    Returns:
        ``bootstrap.SentenceTest`` as a table, with the ``seeds``; None without a seed that both have.
    """
    shared = sorted({seed for name, seed in scores if name == system} & {seed for name, seed in scores if name == baseline})
    if not shared:
        return None
    pairs = [(scores[system, seed], scores[baseline, seed]) for seed in shared]
    scale = len(shared) * directions
    difference = sum(own[0] - base[0] for own, base in pairs) / scale
    resampled = sum((own[1] - base[1] for own, base in pairs), np.zeros_like(pairs[0][0][1])) / scale
    return {**asdict(sentence_test(difference, resampled)), "seeds": shared}
