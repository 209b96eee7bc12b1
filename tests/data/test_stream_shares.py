"""What the stream realises: shares of every task, and the size of the steps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binom

from mnmt_scale.data.reader import COST, SOURCE_LENGTH, TARGET_LENGTH
from mnmt_scale.errors import MnmtError
from tests.support.streams import LIMIT, TASKS, make_stream, spent


def test_a_step_always_has_a_sentence():
    """A budget of one long sentence over eight tasks pays for none at first; the step is credited until one does."""
    stream = make_stream(batch_tokens=LIMIT)
    for step in range(200):
        plan = stream.plan()
        assert plan.step == step
        assert plan.table.shape[1] > 0
        assert sum(plan.step_tokens) > 0


SHARES = {
    "all tasks": {},
    "temperature 1": {"temperature": 1.0},
    "three of eight": {"tasks_per_batch": 3},
    "equal, three": {"tasks_per_batch": 3, "within": "equal", "temperature": 2.0},
    "one task a step": {"tasks_per_batch": 1},
    "one at 0.9, two a step": {
        "kind": "fixed",
        "weights": {"fr-en": 0.9, "en-fr": 0.04, "de-en": 0.03, "zu-en": 0.03},
        "tasks_per_batch": 2,
    },
    "one at 0.9, equal": {
        "kind": "fixed",
        "weights": {"fr-en": 0.9, "en-fr": 0.04, "de-en": 0.03, "zu-en": 0.03},
        "tasks_per_batch": 2,
        "within": "equal",
    },
}


@pytest.mark.parametrize("unit", ["tokens", "sentences"])
@pytest.mark.parametrize("case", SHARES)
def test_shares_over_ten_thousand_steps(case, unit):
    steps = 10_000
    stream = make_stream(batch_tokens=60, unit=unit, **SHARES[case])
    total, count = spent(stream, steps)
    realised = total if unit == "tokens" else count
    p = stream.shares
    low, high = binom.interval(0.99, steps, p)
    share = realised / realised.sum()
    assert (share >= low / steps).all(), (share - p).tolist()
    assert (share <= high / steps).all(), (share - p).tolist()
    assert (realised[p == 0] == 0).all()


def test_steps_are_as_large_as_asked():
    for unit in ("tokens", "sentences"):
        stream = make_stream(batch_tokens=300, unit=unit, tasks_per_batch=3)
        sizes = []
        for _ in range(2000):
            plan = stream.plan()
            sizes.append(int((np.maximum(plan.table[SOURCE_LENGTH], plan.table[TARGET_LENGTH]) + 2).sum()))
            assert plan.table[COST].min() >= 1
        assert np.mean(sizes) == pytest.approx(300, rel=0.01)
        if unit == "tokens":
            assert max(sizes) < 300 + 3 * LIMIT


def test_shares_that_a_method_sets_are_used_and_kept():
    stream = make_stream()
    for _ in range(3):
        stream.plan()
    p = np.zeros(len(TASKS))
    p[[1, 4]] = 3.0, 1.0
    stream.set_shares(p)
    assert stream.shares[[1, 4]].tolist() == [0.75, 0.25]
    total, _ = spent(stream, 400)
    assert total / total.sum() == pytest.approx(p / 4, abs=0.01)
    other = make_stream()
    other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert other.shares.tolist() == stream.shares.tolist()
    assert other.plan().tasks == stream.plan().tasks
    with pytest.raises(MnmtError, match="MNMT-E102"):
        stream.set_shares(np.full(len(TASKS), np.nan))
