"""What a few seeds say: means with t-intervals, and paired differences. Pure functions of numbers.

A seed is one training: its weights, its data order, its dropout. With three of them a 95 % t-interval is 4.3 standard
errors wide to either side, so what it shows as different is different in a big way; p-values are not corrected for how
many methods are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of ``count`` numbers; ``low`` to ``high`` its interval and ``sd`` their deviation, None for a single number."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Paired:
    """Mean difference over the seeds that both have; ``p`` two-sided, that there is none. None where one seed is all."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    seeds: tuple[int, ...]


def mean_interval(values: Sequence[float], level: float = 0.95) -> Mean:
    """Mean with its Student t interval: mean +- t * sd / sqrt(n), n - 1 degrees of freedom."""
    x = np.asarray(values, dtype=np.float64)
    assert x.ndim == 1
    assert len(x) > 0
    mean = float(x.mean())
    if len(x) == 1:
        return Mean(mean, None, None, None, 1)
    sd = float(x.std(ddof=1))
    half = float(stats.t.ppf((1.0 + level) / 2.0, len(x) - 1)) * sd / math.sqrt(len(x))
    return Mean(mean, mean - half, mean + half, sd, len(x))


def paired_difference(system: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95) -> Paired | None:
    """System minus baseline by seed: interval and p of the paired t test; None without a seed that both have.

    A seed gives both trainings the same first weights and the same order of data where their sampling is the same, so
    the difference within a seed varies less than the seeds do. Where all differences are equal, p is 0, or 1 if they are 0.
    """
    seeds = tuple(sorted(system.keys() & baseline.keys()))
    if not seeds:
        return None
    found = mean_interval([system[s] - baseline[s] for s in seeds], level)
    if found.sd is None:
        return Paired(found.mean, None, None, None, seeds)
    if found.sd == 0.0:
        return Paired(found.mean, found.low, found.high, 1.0 if found.mean == 0.0 else 0.0, seeds)
    t = found.mean / (found.sd / math.sqrt(found.count))
    return Paired(found.mean, found.low, found.high, float(2.0 * stats.t.sf(abs(t), found.count - 1)), seeds)
