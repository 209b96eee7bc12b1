"""The schedules at points that can be computed by hand."""

from __future__ import annotations

import pytest

from mnmt_scale.engine.config import ScheduleConfig
from mnmt_scale.engine.schedule import rate_factor


@pytest.mark.parametrize("name", ["inverse_sqrt", "linear", "cosine", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak(name):
    config = ScheduleConfig(name=name, warmup_steps=4)
    assert [rate_factor(config, step, 20) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("name", "final", "step", "factor"),
    [
        ("inverse_sqrt", 0.0, 16, 0.5),
        ("inverse_sqrt", 0.0, 64, 0.25),
        ("linear", 0.0, 12, 0.5),
        ("linear", 0.2, 12, 0.6),
        ("linear", 0.2, 99, 0.2),
        ("cosine", 0.0, 12, 0.5),
        ("cosine", 0.1, 8, 0.1 + 0.9 * 0.5 * (1 + 2**-0.5)),
        ("cosine", 0.1, 20, 0.1),
        ("constant", 0.0, 99, 1.0),
    ],
)
def test_after_the_warm_up(name, final, step, factor):
    config = ScheduleConfig(name=name, warmup_steps=4, final_ratio=final)
    assert rate_factor(config, step, 20) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("name", ["inverse_sqrt", "linear", "cosine", "constant"])
def test_without_warm_up_it_begins_near_the_peak(name):
    assert rate_factor(ScheduleConfig(name=name, warmup_steps=0), 1, 1000) == pytest.approx(1.0, abs=2e-3)


def test_max_steps_within_the_warm_up_never_divides_by_zero():
    assert rate_factor(ScheduleConfig(name="linear", warmup_steps=10), 10, 5) == 1.0
