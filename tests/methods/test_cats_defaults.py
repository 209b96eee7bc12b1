"""What each setting of CATS does in a made-up training with ordinary numbers; ``docs/cats.md`` prints these figures."""

from __future__ import annotations

import numpy as np
import pytest

from ..support.cats_cases import simulate

FLOOR = 0.005 * (1 + 1e-9)


@pytest.mark.parametrize(
    "settings", [{}, {"K": 4}, {"lambda_learning_rate": 0.01}, {"lambda_learning_rate": 1.0}, {"lambda_cap": 1.0}]
)
def test_defaults_come_near_the_minimum_whatever_the_multiplier_does(settings):
    course = simulate(**settings)
    assert len(course.weights) == 914
    assert course.equal_excess == pytest.approx(1.391, abs=0.001)
    assert course.excess < 1.01
    assert course.weights[-1].min() > 0.02
    assert course.weights.max() < 0.22


def test_half_of_the_way_takes_15_updates():
    """40 with K = 4 of 8 tasks, 9 with a learning rate of 0.2."""
    for settings, updates in (({}, 15), ({"learning_rate": 0.2}, 9), ({"K": 4}, 40)):
        course = simulate(steps=8_000, **settings)
        away = np.abs(course.weights - course.best).max(axis=1)
        assert abs(int(np.argmax(away < away[0] / 2)) - updates) <= 5


def test_the_loss_term_takes_over_where_lambda_c_is_small():
    assert simulate(loss_term=True).excess < 1.01
    capped = simulate(loss_term=True, lambda_cap=1.0)
    assert (capped.weights[-1] < FLOOR).sum() == 5
    assert capped.excess > 2.0
    slack = simulate(loss_term=True, eps_curvature=1.0, lambda_learning_rate=1.0)
    assert slack.lambda_c[-1] == 0.0
    assert slack.weights[-1].max() > 0.96
    assert slack.excess > 8.0


def test_the_loss_term_starves_tasks_when_training_begins_with_a_trained_model():
    with_losses, without = simulate(trained=True, loss_term=True), simulate(trained=True)
    assert with_losses.weights[0].max() == pytest.approx(0.235, abs=0.001)
    assert (with_losses.weights[400] < FLOOR).sum() >= 2
    assert with_losses.excess > 1.3
    assert without.weights.min() > 0.015
    assert without.excess < 1.01


def test_slack_curvature_lets_lambda_c_fall():
    course = simulate(eps_curvature=1.0, lambda_learning_rate=1.0)
    assert course.lambda_c.max() == 100.0
    assert course.lambda_c[-1] == 0.0
    resting = course.weights[course.lambda_c == 0.0]
    assert len(resting) > 10
    assert np.abs(np.diff(resting[1:], axis=0)).max() < 1e-12
