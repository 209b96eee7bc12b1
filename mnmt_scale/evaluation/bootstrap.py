"""Is one system better than another on more than these test sentences? Paired bootstrap of the mean BLEU over directions.

Paired bootstrap resampling (Koehn 2004) over several directions and several trainings at once: a resample draws the
sentences of each direction's test set anew, with replacement, and looks at both systems, and at every seed of theirs, on the
same drawn sentences. Its statistic is the difference of the macro average: BLEU of each direction, mean over directions,
mean over seeds. So it says how much of a difference is owed to the choice of test sentences, given these trainings; how
much is owed to the trainings, ``evaluation.statistics`` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
ORDERS = 4
_CHUNK_CELLS = 4_000_000  # resamples x sentences drawn at a time: 32 MB of counts


@dataclass(frozen=True, slots=True)
class SentenceTest:
    """``difference`` of the macro average (system - baseline) with its interval and two-sided p over test sentences."""

    difference: float
    low: float
    high: float
    p: float
    resamples: int


def bleu(sums: Counts) -> Floats:
    """Corpus BLEU, 0 to 100, of summed counts as ``score.bleu_counts`` gives them by sentence: [..., 10] -> [...].

    As sacrebleu has it by default (orders 1 to 4, exponential smoothing of orders without a match; 0 where nothing matches
    or an order has no n-grams).
    """
    sums = np.asarray(sums, dtype=np.float64)
    hypothesis, reference = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    missed = correct == 0
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), correct)
    possible = (total > 0).all(axis=-1) & (correct > 0).any(axis=-1)
    precision = np.log(smoothed / np.where(total > 0, total, 1.0)).mean(axis=-1)
    penalty = np.minimum(0.0, 1.0 - reference / np.where(hypothesis > 0, hypothesis, 1.0))
    return np.where(possible, 100.0 * np.exp(precision + penalty), 0.0)


def resampled_bleu(
    systems: Mapping[Any, Counts], samples: int, seed: Sequence[int]
) -> tuple[dict[Any, float], dict[Any, Floats]]:
    """BLEU of each system on the test set of one direction, and on ``samples`` resamples of it, the same for all systems.

    Args:
        systems: [sentences, 10] counts, by any key.
        seed: of the draws: the same seed and number of sentences draw the same sentences.

    Returns:
        BLEU by key, and [samples] BLEU by key.
    """
    keys = list(systems)
    sentences = len(systems[keys[0]])
    assert all(len(counts) == sentences for counts in systems.values()), "systems were scored on different lines"
    rng = np.random.default_rng(list(seed))
    scores: dict[Any, list[Floats]] = {key: [] for key in keys}
    chunk = max(1, _CHUNK_CELLS // sentences)
    for first in range(0, samples, chunk):
        count = min(chunk, samples - first)
        times = rng.multinomial(sentences, np.full(sentences, 1.0 / sentences), size=count)
        for key in keys:
            scores[key].append(bleu(times @ systems[key]))
    whole = {key: float(bleu(counts.sum(axis=0))) for key, counts in systems.items()}
    return whole, {key: np.concatenate(parts) for key, parts in scores.items()}


def sentence_test(difference: float, resampled: Floats, level: float = 0.95) -> SentenceTest:
    """Interval and p of an observed difference from the differences on resamples: [samples].

    The interval holds the middle ``level`` of the resampled differences. p is the share of resamples that, moved to a mean
    of 0, lie at least as far from 0, on either side, as the observed difference, the observed one counted in: the smallest
    possible is 1 / (samples + 1). (sacrebleu's ``--paired-bs`` counts one side, so its p is about half of this.) Two equal
    systems have p = 1.
    """
    low, high = np.quantile(resampled, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    far = np.abs(resampled - resampled.mean()) >= abs(difference)
    p = (1.0 + float(far.sum())) / (len(resampled) + 1.0)
    return SentenceTest(difference, float(low), float(high), 1.0 if difference == 0.0 else p, len(resampled))
