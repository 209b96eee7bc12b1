"""Permutations by position: bijective, keyed, random enough, and computable in any stretch."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnmt_scale.data.order import SMALL, mix, name_key, rows, stretch, uniforms


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, SMALL - 1, SMALL, SMALL + 1, 1089, 1090, 4095, 4097, 10_007])
def test_an_epoch_is_a_permutation(n):
    for epoch in range(3):
        assert sorted(rows(7, 11, epoch, 0, n, n).tolist()) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), first=st.integers(0, 10_000), count=st.integers(0, 4000), seed=st.integers(0, 2**63))
def test_any_stretch_equals_its_sentences_one_by_one(n, first, count, seed):
    whole = stretch(seed, 5, first, count, n)
    assert len(whole) == count
    for i in {0, count // 2, count - 1} & set(range(count)):
        epoch, place = divmod(first + i, n)
        assert rows(seed, 5, epoch, place, 1, n).tolist() == [whole[i]]


@pytest.mark.parametrize("n", [100, 5000])
def test_epochs_tasks_and_seeds_have_different_orders(n):
    base = rows(1, 2, 0, 0, n, n)
    for other in (rows(1, 2, 1, 0, n, n), rows(1, 3, 0, 0, n, n), rows(2, 2, 0, 0, n, n)):
        assert np.mean(base == other) < 0.1
    assert (base == rows(1, 2, 0, 0, n, n)).all()


def test_all_orders_of_three_are_equally_likely():
    seen = np.array([rows(0, task, 0, 0, 3, 3) for task in range(6000)])
    counts = np.unique(seen @ [9, 3, 1], return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # 99.9 % point of chi-squared with 5 degrees


def test_neighbours_are_unrelated_in_a_large_corpus():
    n = 100_003
    values = rows(3, 4, 0, 0, n, n) / n
    for lag in (1, 2, 3, 64):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 5 / np.sqrt(n)
    pairs = np.array([rows(5, 6, epoch, 0, 2, 1500) for epoch in range(6000)])
    counts = np.bincount((pairs[:, 1] - pairs[:, 0]) % 1500, minlength=1500)[1:]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 1499 + 5 * np.sqrt(2 * 1499)


def test_memory_does_not_follow_the_corpus():
    tracemalloc.start()
    found = rows(1, 1, 0, 10**12, 1000, 10**13)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(set(found.tolist())) == 1000
    assert 0 <= found.min() <= found.max() < 10**13


def test_orders_are_the_same_everywhere():
    """A change here would silently change the data order of every run."""
    assert mix(0) == 0xE220A8397B1DCDAF  # the published first output of SplitMix64 with seed 0
    assert mix(1, 2, 3) != mix(1, 3, 2)
    assert rows(1, name_key("en-fr"), 0, 0, 5, 10).tolist() == [1, 4, 8, 0, 7]
    assert rows(1, name_key("en-fr"), 0, 0, 5, 5000).tolist() == [4376, 411, 234, 4780, 4399]


def test_uniforms_fill_the_unit_interval():
    values = uniforms(3, 20_000)
    assert 0 <= values.min() <= values.max() < 1
    assert np.histogram(values, bins=10, range=(0, 1))[0] == pytest.approx(2000, rel=0.12)
