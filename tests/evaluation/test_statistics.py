"""Means and differences over seeds: against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mnmt_scale.evaluation.statistics import mean_interval, paired_difference


def test_mean_interval_by_hand():
    # mean 2, sd 1, standard error 1/sqrt 3 = 0.57735, t(0.975, 2) = 4.302653
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.count) == (2.0, 1.0, 3)
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-6)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_mean_interval_is_scipys(count, level):
    values = np.random.default_rng(count).normal(20, 2, count)
    found = mean_interval(values, level)
    low, high = stats.t.interval(level, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_seed_has_no_interval():
    found = mean_interval([3.5])
    assert (found.mean, found.low, found.high, found.sd, found.count) == (3.5, None, None, None, 1)
    one = paired_difference({1: 3.0}, {1: 2.0})
    assert (one.mean, one.low, one.high, one.p, one.seeds) == (1.0, None, None, None, (1,))


def test_paired_difference_is_the_paired_t_test_over_the_seeds_of_both():
    system = {1: 21.0, 2: 22.5, 3: 20.1, 4: 30.0}
    baseline = {3: 19.0, 2: 21.9, 1: 20.6, 7: 0.0}
    found = paired_difference(system, baseline)
    theirs = stats.ttest_rel([21.0, 22.5, 20.1], [20.6, 21.9, 19.0])
    assert found.seeds == (1, 2, 3)
    assert found.mean == pytest.approx((0.4 + 0.6 + 1.1) / 3)
    assert found.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    back = paired_difference(baseline, system)
    assert (back.mean, back.p) == (pytest.approx(-found.mean), pytest.approx(found.p))


def test_equal_differences_and_no_common_seed():
    assert paired_difference({1: 2.0, 2: 3.0}, {1: 1.0, 2: 2.0}).p == 0.0
    assert paired_difference({1: 2.0, 2: 3.0}, {1: 2.0, 2: 3.0}).p == 1.0
    assert paired_difference({1: 2.0}, {2: 3.0}) is None


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(1000):
        found = mean_interval(rng.normal(5.0, 3.0, 3))
        inside += found.low <= 5.0 <= found.high
    low, high = stats.binom.interval(0.999, 1000, 0.95)
    assert low <= inside <= high
