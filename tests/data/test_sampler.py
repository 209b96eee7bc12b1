"""Shares: p by each rule, and that what is composed realises p."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from mnmt_scale.data.config import SamplingConfig
from mnmt_scale.data.sampler import BLOCK, NEGLIGIBLE, TaskSampler, compose, deal_slots, task_shares
from mnmt_scale.errors import MnmtError
from mnmt_scale.settings import load
from mnmt_scale.tasks import TaskSet

TASKS = TaskSet([("af", "en"), ("en", "fr"), ("fr", "en"), ("zu", "en")])
SIZES = {"af-en": 100, "en-fr": 10_000, "en-zu": 1}


def test_temperature_shares_by_hand():
    p = task_shares(SamplingConfig(temperature=2.0), TASKS, SIZES)
    assert p == pytest.approx(np.array([10, 100, 100, 1]) / 211)  # both directions of en-fr count its full size
    assert task_shares(SamplingConfig(temperature=1.0), TASKS, SIZES) == pytest.approx(np.array([100, 1e4, 1e4, 1]) / 20101)


def test_infinite_temperature_is_uniform_and_can_be_written_in_toml():
    config = load(SamplingConfig, None, ["temperature=inf"])
    assert task_shares(config, TASKS, SIZES).tolist() == [0.25] * 4
    assert task_shares(SamplingConfig(kind="uniform"), TASKS, SIZES).tolist() == [0.25] * 4


def test_a_cold_temperature_does_not_overflow():
    p = task_shares(SamplingConfig(temperature=1e-3), TASKS, SIZES)
    assert p == pytest.approx([0, 0.5, 0.5, 0])


def test_fixed_weights_are_normalised_and_zero_where_left_out():
    config = SamplingConfig(kind="fixed", weights={"fr-en": 3, "af-en": 1.0})
    assert task_shares(config, TASKS, SIZES) == pytest.approx([0.25, 0, 0.75, 0])


def test_bad_weights_are_refused_with_the_nearest_name():
    with pytest.raises(MnmtError, match=r"MNMT-E105.*'fr-em'.*'fr-en'"):
        task_shares(SamplingConfig(kind="fixed", weights={"fr-em": 1}), TASKS, SIZES)
    with pytest.raises(MnmtError, match=r"MNMT-E102.*weights"):
        task_shares(SamplingConfig(kind="fixed", weights={"fr-en": 0}), TASKS, SIZES)
    for table in (["kind='fixed'"], ["weights={'fr-en'=1}"]):
        with pytest.raises(MnmtError, match="MNMT-E104"):
            load(SamplingConfig, None, table)
    for table in (["kind='fixed'", "weights={'fr-en'=-1}"], ["kind='fixed'", "weights={'fr-en'=inf}"], ["temperature=0"]):
        with pytest.raises(MnmtError, match="MNMT-E102"):
            load(SamplingConfig, None, table)


shares = st.lists(st.floats(0, 1) | st.floats(1e-6, 1e-3), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-6)


@settings(max_examples=200, deadline=None)
@given(weights=shares, k=st.integers(0, 14), within=st.sampled_from(["proportional", "equal"]))
def test_expected_shares_equal_p(weights, k, within):
    p = np.array(weights) / sum(weights)
    c = compose(p, k, within)
    assert c.fixed + c.chance * c.slot_share == pytest.approx(p, abs=2e-9)
    assert c.chance.sum() == pytest.approx(c.slots)
    assert (c.chance < 1).all()
    never = p < NEGLIGIBLE
    assert (c.fixed[never] == 0).all()
    assert (c.chance[never] == 0).all()
    k = min(k or 99, np.count_nonzero(~never))
    if within == "proportional":
        assert np.count_nonzero(c.fixed) + c.slots == k
        assert not (c.fixed * c.chance).any()
    else:
        assert c.fixed * k == pytest.approx(np.round(c.fixed * k))


def test_vanishing_shares_are_none():
    c = compose(np.array([5e-324, 1e-200, 5e-324, 1.0]), 3, "proportional")
    assert c.fixed.tolist() == [0, 0, 0, 1]
    assert TaskSampler(np.array([5e-324, 1e-200, 0.5, 0.5]), 0, "equal", seed=0).shares(3) == ([2, 3], [0.5, 0.5])


def test_the_take_all_stratum_is_found_iteratively():
    c = compose(np.array([0.6, 0.25, 0.1, 0.05]), 3, "proportional")
    # 0.6 * 3 >= 1; then 0.25 * 2 / 0.4 >= 1; the other two share one slot of 0.15
    assert c.fixed.tolist() == [0.6, 0.25, 0, 0]
    assert c.chance == pytest.approx([0, 0, 2 / 3, 1 / 3])
    assert (c.slots, c.slot_share) == (1, pytest.approx(0.15))


def test_equal_slots_give_whole_parts_for_certain():
    p = np.array([0.625, 0.1, 0.1, 0.1, 0.075])
    c = compose(p, 4, "equal")
    assert c.fixed.tolist() == [0.5, 0, 0, 0, 0]  # 2.5 slots of 4: two for certain
    assert c.chance == pytest.approx([0.5, 0.4, 0.4, 0.4, 0.3])
    held = {TaskSampler(p, 4, "equal", seed=1).shares(i)[1][0] for i in range(99)}
    assert held == {0.5, 0.75}


@settings(max_examples=40, deadline=None)
@given(weights=shares, k=st.integers(1, 6), within=st.sampled_from(["proportional", "equal"]), seed=st.integers(0, 99))
def test_every_step_is_composed_rightly(weights, k, within, seed):
    p = np.array(weights) / sum(weights)
    sampler = TaskSampler(p, k, within, seed)
    for index in (0, 1, BLOCK - 1, BLOCK, 10**6):
        tasks, parts = sampler.shares(index)
        assert tasks == sorted(set(tasks))
        assert sum(parts) == pytest.approx(1)
        assert (p[tasks] >= NEGLIGIBLE).all()
        if within == "proportional":
            assert len(tasks) == min(k, np.count_nonzero(p >= NEGLIGIBLE))


@settings(max_examples=25, deadline=None)
@given(weights=shares, k=st.integers(1, 6), seed=st.integers(0, 99))
def test_blocks_allot_rounded_counts_and_no_task_twice_in_a_step(weights, k, seed):
    c = compose(np.array(weights) / sum(weights), k, "proportional")
    if not c.slots:
        return
    grid = deal_slots(c, seed, block=3)
    assert grid.shape == (BLOCK, c.slots)
    assert all(len(set(row)) == c.slots for row in grid.tolist())
    counts = np.bincount(grid.ravel(), minlength=len(c.chance))
    assert (np.abs(counts - c.chance * BLOCK) < 1 + 1e-6).all()


CASES = {
    "one at 0.9, K = 1": ([0.9, 0.06, 0.03, 0.01], 1),
    "one at 0.9, K = 2": ([0.9, 0.06, 0.03, 0.01], 2),
    "heavy tail, K = 4": ((np.arange(1, 41) ** -1.5).tolist(), 4),
    "uniform, K = 3": ([1.0] * 10, 3),
    "zeros, K = 2": ([0.5, 0, 0.3, 0, 0.2], 2),
    "all": ([5.0, 3.0, 1.0], 0),
}


@pytest.mark.parametrize("within", ["proportional", "equal"])
@pytest.mark.parametrize("case", CASES)
def test_realised_shares_are_within_the_99_percent_interval(case, within):
    """Of independent draws, for every task at once: what the composition realises is nearer to p than that."""
    weights, k = CASES[case]
    p, steps = np.array(weights) / sum(weights), 10_000
    total = np.zeros(len(p))
    sampler = TaskSampler(p, k, within, seed=12)
    for index in range(steps):
        tasks, parts = sampler.shares(index)
        total[tasks] += parts
    low, high = binom.interval(0.99, steps, p)
    assert (total >= low - 1e-6).all()
    assert (total <= high + 1e-6).all()
    assert total.sum() == pytest.approx(steps)
    # far nearer, in fact: the number of slots held strays by a few, not by the root of the number of steps
    c = sampler.composition
    if c.slots:
        held = (total - steps * c.fixed) / c.slot_share
        assert np.abs(held - steps * c.chance).max() < 15


def test_each_step_alone_has_the_right_chances():
    """Over seeds, at fixed steps: no step is special, so the expectation is p step by step and not only on average."""
    p, seeds = np.array([0.5, 0.25, 0.15, 0.1]), 1500
    for index in (0, 37, 3 * BLOCK + 5):
        held = np.zeros(4)
        for seed in range(seeds):
            held[TaskSampler(p, 1, "proportional", seed).shares(index)[0]] += 1
        assert (np.abs(held - seeds * p) < 4 * np.sqrt(seeds * p * (1 - p))).all(), index


def test_every_two_tasks_meet():
    p = np.full(12, 1 / 12)
    sampler, met = TaskSampler(p, 3, "proportional", seed=5), np.zeros((12, 12))
    steps = 8 * BLOCK
    for index in range(steps):
        tasks, _ = sampler.shares(index)
        met[np.ix_(tasks, tasks)] += 1
    apart = met[~np.eye(12, dtype=bool)]
    expected = steps * (3 * 2) / (12 * 11)
    assert apart.min() > 0.55 * expected
    assert apart.max() < 1.45 * expected


def test_a_single_task_fills_every_step():
    for within in ("proportional", "equal"):
        assert TaskSampler(np.ones(1), 3, within, seed=0).shares(5) == ([0], [1.0])
    assert math.isclose(compose(np.ones(1), 0, "equal").fixed[0], 1.0)
