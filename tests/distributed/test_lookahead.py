"""Lookaheads do not depend on ranks, stage or micro-batches."""

from __future__ import annotations

import pytest

CASE = "tests.support.lookahead_cases:changes"
WIDE = dict(steps=8, tokens=60)
ONE_SENTENCE = dict(steps=4, tokens=12, affected=[2])


@pytest.fixture(scope="module")
def alone(one_rank):
    wide, short = (one_rank.run(CASE, **what)[0] for what in (WIDE, ONE_SENTENCE))
    assert {f[0] for f in wide} == {0, 1, 2, 3}, "four single steps, each of another direction"
    return {60: wide, 12: short}


@pytest.mark.parametrize(
    ("what", "more"),
    [
        (WIDE, {"engine__zero_stage": 1}),
        (WIDE, {"engine__zero_stage": 2, "batch__accumulation": 2}),
        (ONE_SENTENCE, {"engine__zero_stage": 3, "batch__accumulation": 3}),
    ],
)
def test_two_ranks_and_one_give_the_same_table(two_ranks, alone, what, more):
    truth = alone[what["tokens"]]
    first, second = two_ranks.run(CASE, **what, **more)
    assert [f[:4] for f in first] == [f[:4] for f in second], "equal on all ranks, bit for bit"
    for (j, before, after, tokens, _), (j1, before1, after1, tokens1, _) in zip(first, truth, strict=True):
        assert (j, tokens) == (j1, tokens1), "the same step, the same sentences"
        assert before == pytest.approx(before1, rel=1e-5)
        # what ranks differ in is the order of sums in the updates until then
        for b, a, b1, a1, n in zip(before, after, before1, after1, tokens, strict=True):
            assert (b - a) / max(n, 1) == pytest.approx((b1 - a1) / max(n, 1), abs=1e-5)
            assert n == 0 or abs(b1 - a1) / n > 2e-4, "changes are far larger than what is tolerated"
    if what is ONE_SENTENCE:
        assert sorted(first[0][4] + second[0][4]) == [0, 1], "a rank without sentences took part"
