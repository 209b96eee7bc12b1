"""The rewards of MultiDDS-S under ZeRO equal plain autograd in one process."""

from __future__ import annotations

import pytest

from mnmt_scale.train.alignment import draw_batches
from tests.support.alignment_cases import DIRECTIONS, cosines, small_store, tiny_model

MEASURED = "tests.support.alignment_cases:measured"


@pytest.fixture(scope="module")
def truth():
    store = small_store()
    options = dict(seed=5, step=7, max_tokens=14, batch_tokens=120)
    train, dev = (
        [draw_batches(store, t, split, **options) if store.has(t.pair, split) else [] for t in DIRECTIONS]
        for split in ("train", "dev")
    )
    rewards = cosines(tiny_model(), train, dev)
    assert max(rewards) - min(rewards) > 0.01
    return rewards


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks(two_ranks, truth, stage):
    first, second = two_ranks.run(MEASURED, stage=stage)
    assert first == second, "equal on all ranks, bit for bit"
    assert first == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize("stage", [1, 3])
def test_several_micro_batches(two_ranks, truth, stage):
    """50 tokens a step in training: three micro-batches a rank, of which some are empty."""
    first, second = two_ranks.run(MEASURED, stage=stage, batch_tokens=50)
    assert first == second
    assert first == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize("stage", [1, 3])
def test_one_rank(one_rank, truth, stage):
    (rewards,) = one_rank.run(MEASURED, stage=stage)
    assert rewards == pytest.approx(truth, abs=1e-5)
