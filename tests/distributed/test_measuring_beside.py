"""What measuring the gradients of single tasks leaves behind: nothing; and what a gradient that is not finite does."""

from __future__ import annotations

import math

import pytest
import torch

CASES = "tests.support.gram_cases:"
LIMIT = 1e-5  # of sqrt(G_ii G_jj), fp32
PLAIN_SGD = {"optimizer": {"name": "sgd", "learning_rate": 0.3}, "schedule": {"name": "constant", "warmup_steps": 0}}
BOTH = ({"route": "per_task"}, {})  # the watched one last: it ends in an update
ALPHA = (1.0, 0.0, 2.5)


@pytest.mark.parametrize(("stage", "dtype"), [(1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")])
def test_measuring_leaves_nothing_behind(two_ranks, stage, dtype):
    """Weights, moments and dropout of later steps are those of a training that never measured, bit for bit."""
    settings = {"zero_stage": stage, "dtype": dtype}
    alone = two_ranks.run(CASES + "disturbed", settings=settings, measure=False)
    measured = two_ranks.run(CASES + "disturbed", settings=settings, measure=True)
    for a, b in zip(alone, measured, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_task_that_is_not_finite_on_one_rank(two_ranks, stage, kind):
    """All ranks name it, none hangs, the update is left out under ``on_nan = "stop"`` too, and training goes on."""
    for result in two_ranks.run(CASES + "poisoned", settings={"zero_stage": stage}, kind=kind):
        assert result["bad"] == [(1,), (1,), (1,), ()]
        assert result["skipped"] == [True, False]
        assert result["same"]
        for losses in result["losses"]:
            assert [math.isfinite(x) for x in losses] == [True, kind == "gradient" or losses is result["losses"][-1], True]


def test_tolerated_updates_are_counted_and_end_nothing(two_ranks):
    for text in two_ranks.run(CASES + "tolerated", settings={"zero_stage": 2, "on_nan": "skip", "max_skips": 2}):
        assert text.startswith("11 MNMT-E501")
        assert "11 updates in a row" in text


@pytest.mark.parametrize("accumulation", [1, 2])
def test_nothing_of_an_observation_outlives_it(one_rank, accumulation):
    """Tapes hold gradients, and graphs hold tapes: a circle between the two would never be freed."""
    (alive,) = one_rank.run(CASES + "tapes_alive", settings={}, accumulation=accumulation)
    assert alive == [(0, 0)] * 4
