"""At the minimum of alpha' G alpha a task whose gradient grows gets less weight: where this holds, and where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ..support.cats_cases import minimum, random_gram
from .test_cats_curvature import RATES, rates, settle


def scaled(gram: np.ndarray, task: int, factor: float) -> np.ndarray:
    lengths = np.ones(len(gram))
    lengths[task] = factor
    return gram * np.outer(lengths, lengths)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 7), st.floats(1.02, 5.0))
def test_a_longer_gradient_gets_less_weight_at_the_minimum(seed, K, factor):
    """Without a lower bound for any Gram matrix, conflicts included (proof: docs/cats.md)."""
    rng = np.random.default_rng(seed)
    gram, task = random_gram(rng, K, norms=(0.3, 5.0), cosines=(-0.9 / (K - 1), 0.9)), int(rng.integers(K))
    before, after = minimum(gram, 0.0)[task], minimum(scaled(gram, task, factor), 0.0)[task]
    assert after <= before + 1e-10
    if 1e-3 < before < 1 - 1e-3:
        assert after < before - 1e-7


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 8), st.floats(1.02, 5.0))
def test_a_longer_gradient_gets_less_weight_above_the_default_bound(seed, K, factor):
    """With norms 0.3 to 5 and cosines 0 to 0.5."""
    rng = np.random.default_rng(seed)
    gram, task, floor = random_gram(rng, K), int(rng.integers(K)), RATES.eps_alpha
    before, after = minimum(gram, floor)[task], minimum(scaled(gram, task, factor), floor)[task]
    assert after <= before + 1e-10
    if floor + 1e-3 < before < 1 - (K - 1) * floor - 1e-3:
        assert after < before - 1e-7


@pytest.mark.parametrize("floor", [0.0, 0.005])
def test_a_longer_gradient_gets_less_weight_where_the_update_settles(floor):
    rule, rng, interior = rates(learning_rate=1.0, eps_alpha=floor), np.random.default_rng(2), 0
    for _ in range(8):
        gram, task = random_gram(rng, 4, norms=(0.5, 2.0), cosines=(-0.2, 0.5)), int(rng.integers(4))
        before, after = settle(gram, rule)[task], settle(scaled(gram, task, 1.3), rule)[task]
        assert after <= before + 1e-10
        if floor + 1e-3 < before < 1 - 3 * floor - 1e-3:
            interior += 1
            assert after < before - 1e-4
    assert interior >= 4


def test_a_longer_gradient_may_get_more_weight_against_a_conflicting_task_at_its_bound():
    """Where the bound holds a task fast whose weighted gradient is longer than the others and against them, the others are
    there to cancel it, and the longer of them does that better: the one way found in which the rule above fails."""
    W = 1.2 / 0.05
    gram = np.array([[1.0, 0.0, -W], [0.0, 1.0, -W], [-W, -W, 2 * W * W]])
    rule = rates(learning_rate=1.0, eps_alpha=0.05)
    np.testing.assert_allclose(settle(gram, rule), [0.475, 0.475, 0.05], atol=1e-9)
    np.testing.assert_allclose(settle(scaled(gram, 0, 1.2), rule), [0.4877049, 0.4622951, 0.05], atol=1e-7)
    assert minimum(scaled(gram, 0, 1.2), 0.0)[0] < minimum(gram, 0.0)[0]
