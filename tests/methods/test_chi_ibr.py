"""chi-IBR: the best response against scipy's constrained optimum and its limits, and the method around it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import Observation, Request, StepReport
from mnmt_scale.methods.catalog import make_method
from mnmt_scale.methods.chi_ibr.config import ChiIbrConfig
from mnmt_scale.methods.chi_ibr.method import ChiIbr
from mnmt_scale.methods.chi_ibr.resample import best_response, half_chi_square
from mnmt_scale.methods.joint import Joint
from mnmt_scale.methods.spec import Facts, MethodConfig
from mnmt_scale.settings import validate
from tests.support.batches import batch_of

FACTS = Facts(("de-en", "fr-en", "ru-en"), (0.6, 0.3, 0.1), 3, 1)


def scipy_optimum(p, losses, rho):
    """max sum q l over the simplex, half chi-square at most rho; in ratios q / p, which are all of one size."""
    found = minimize(
        lambda u: -(p * losses) @ u,
        np.ones_like(p),
        jac=lambda u: -p * losses,
        method="SLSQP",
        bounds=[(0.0, None)] * len(p),
        constraints=[
            {"type": "eq", "fun": lambda u: p @ u - 1.0, "jac": lambda u: p},
            {"type": "ineq", "fun": lambda u: rho - 0.5 * p @ (u - 1.0) ** 2, "jac": lambda u: -p * (u - 1.0)},
        ],
        options={"maxiter": 1000, "ftol": 1e-13},
    )
    assert found.success, found.message
    return p * found.x


@pytest.mark.parametrize("seed", range(20))
def test_best_response_is_the_constrained_optimum(seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(6, 3.0))
    losses = rng.uniform(2.0, 6.0, 6)
    for rho in (0.01, 0.05, 0.3):
        q = best_response(p, losses, rho=rho)
        best = scipy_optimum(p, losses, rho)
        assert q == pytest.approx(best, abs=2e-5)
        assert q @ losses >= best @ losses - 1e-8
        assert q.sum() == pytest.approx(1.0, abs=1e-12)
        assert half_chi_square(q, p) == pytest.approx(rho, rel=1e-6)


def test_easy_tasks_get_nothing_in_a_large_ball():
    """With a radius of 1 the relu is at work: tasks below eta are out, and scipy agrees."""
    p, losses = np.array([0.25, 0.25, 0.25, 0.25]), np.array([1.0, 1.5, 3.0, 5.0])
    q = best_response(p, losses, rho=1.0)
    assert q[0] == q[1] == 0.0
    assert q[2] > 0.0
    assert q == pytest.approx(scipy_optimum(p, losses, 1.0), abs=1e-5)


def test_by_hand():
    """Two equal tasks, losses 0 and 1: q = 1/2 +- d with half chi-square 2 d^2; rho = 0.02 gives d = 0.1."""
    assert best_response([0.5, 0.5], [0.0, 1.0], rho=0.02) == pytest.approx([0.4, 0.6], abs=1e-9)


@pytest.mark.parametrize("min_ratio", [0.0, 0.2])
def test_limits(min_ratio):
    p = np.array([0.6, 0.3, 0.1])
    assert best_response(p, [1.0, 5.0, 2.0], rho=0.0, min_ratio=min_ratio).tolist() == p.tolist()
    assert best_response(p, [4.0, 4.0, 4.0], rho=0.05, min_ratio=min_ratio) == pytest.approx(p)
    huge = best_response(p, [1.0, 5.0, 2.0], rho=1e9, min_ratio=min_ratio)
    raised = np.maximum([0.0, 1.0 / 0.3, 0.0], min_ratio) * p
    assert huge == pytest.approx(raised / raised.sum())
    shared = best_response(p, [1.0, 5.0, 5.0], rho=1e9, min_ratio=min_ratio)
    assert shared[1] / shared[2] == pytest.approx(3.0), "equal losses keep their proportion"


@pytest.mark.parametrize("rho", [1e-6, 0.05, 0.4])
def test_the_floor_holds_and_the_radius_is_reached(rho):
    rng = np.random.default_rng(5)
    floored = 0
    for _ in range(200):
        p, losses = rng.dirichlet(np.full(8, 1.0)) * 0.99 + 0.01 / 8, rng.exponential(1.0, 8)
        q = best_response(p, losses, rho=rho, min_ratio=0.2)
        ratios = q / p
        order = np.argsort(losses)
        assert (np.diff(ratios[order]) >= -1e-9).all(), "a higher loss never gets a lower ratio"
        divergence = half_chi_square(q, p)
        assert divergence <= rho * (1 + 1e-6) + 1e-12
        if (q[losses < losses.max()] / p[losses < losses.max()]).max() > ratios.min() * 1.001:
            assert divergence == pytest.approx(rho, rel=1e-5)
        assert ratios.min() >= 0.2 / (1 + 0.2), "the floor, divided by a sum that is 1.2 at most"
        floored += ratios.min() < 0.2 * 1.0001
    assert floored > 50 or rho < 0.4, "the floor must have been at work"


def test_invariances():
    rng = np.random.default_rng(6)
    p, losses, order = rng.dirichlet(np.ones(7)), rng.uniform(1, 9, 7), rng.permutation(7)
    q = best_response(p, losses, rho=0.1, min_ratio=0.2)
    assert best_response(p[order], losses[order], rho=0.1, min_ratio=0.2) == pytest.approx(q[order], abs=1e-9)
    assert best_response(p, 5.0 + 3.0 * losses, rho=0.1, min_ratio=0.2) == pytest.approx(q, abs=1e-9)


def test_a_task_that_is_never_sampled_stays_out():
    q = best_response([0.5, 0.0, 0.5], [1.0, math.nan, 2.0], rho=0.02)
    assert q == pytest.approx([0.4, 0.0, 0.6], abs=1e-9)


def report(step, losses, tasks=(0, 1, 2), tokens=None):
    tokens = tokens or (10,) * len(tasks)
    return Observation(StepReport(step, tuple(tasks), tuple(losses), tuple(losses), tuple(tokens), 1e-3, 1.0))


def test_running_losses():
    method = ChiIbr(ChiIbrConfig(), FACTS)
    method.observe(report(1, (4.0, 6.0), tasks=(0, 1)))
    assert method.losses() == pytest.approx([4.0, 6.0, (0.6 * 4 + 0.3 * 6) / 0.9]), "one observation is its own mean"
    method.observe(report(2, (2.0, 5.0, math.nan), tokens=(10, 0, 10)))
    assert method.losses()[:2] == pytest.approx([(0.9 * 0.1 * 4 + 0.1 * 2) / (0.9 * 0.1 + 0.1), 6.0])
    assert method.losses()[2] == pytest.approx((0.6 * method.losses()[0] + 0.3 * 6) / 0.9)


def test_a_task_that_is_rarely_seen_does_not_look_easy():
    """A mean that starts at 0 would: after 3 of 40 steps it stands at 27 % of the loss, and the task would be starved."""
    method = ChiIbr(ChiIbrConfig(every_steps=40, warmup_steps=0), FACTS)
    for step in range(1, 41):
        rare = step % 13 == 0
        method.observe(report(step, (3.0, 3.0, 3.3)[: 2 + rare], tasks=(0, 1, 2)[: 2 + rare]))
    q = method.shares()
    assert q[2] > FACTS.shares[2]


def test_responses_come_when_due_and_once():
    method = ChiIbr(ChiIbrConfig(every_steps=10, warmup_steps=25), FACTS)
    assert method.wants(0) == Request()
    given = {}
    for step in range(1, 51):
        method.observe(report(step, (3.0, 4.0, 5.0)))
        p = method.shares()
        if p is not None:
            given[step] = p
        assert method.shares() is None
    assert sorted(given) == [30, 40, 50]
    assert given[50] == pytest.approx(best_response(FACTS.shares, [3.0, 4.0, 5.0], rho=0.05, min_ratio=0.2), abs=1e-12)
    assert given[50] == pytest.approx(given[30], abs=1e-12), "around the base shares, not around the last response"
    log = method.log()
    assert log["weights"] == dict(enumerate(given[50]))
    assert log["half_chi_square"] == pytest.approx(0.05)
    assert log["losses"] == pytest.approx({"de-en": 3.0, "fr-en": 4.0, "ru-en": 5.0})
    assert log["worst_case_loss"] > log["expected_loss"] == pytest.approx(3.5)


def test_resumed_equals_uninterrupted():
    config = ChiIbrConfig(every_steps=3, warmup_steps=0)
    rows = np.random.default_rng(2).uniform(2, 6, (12, 3))
    whole, first, second = (ChiIbr(config, FACTS) for _ in range(3))
    for step, row in enumerate(rows, 1):
        whole.observe(report(step, row))
    for step, row in enumerate(rows[:7], 1):
        first.observe(report(step, row))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.log() == first.log()
    assert second.shares() is None, "the stream keeps the shares itself"
    for step, row in enumerate(rows[7:], 8):
        second.observe(report(step, row))
    assert second.shares() == whole.shares()
    assert second.state_dict() == whole.state_dict()


def test_the_loss_is_the_token_mean():
    batch = batch_of([(4, 5, 0), (6, 7, 0), (3, 9, 2)], tasks=3)
    assert ChiIbr(ChiIbrConfig(), FACTS).scales(batch) == Joint().scales(batch)


def test_settings():
    config = validate(MethodConfig, {"name": "chi_ibr", "chi_ibr": {"rho": 0.1}}, "test")
    assert make_method(config, FACTS).wants(0) == Request()
    for wrong in ({"rho": -0.1}, {"min_ratio": 1.0}, {"ema": 0.0}, {"every_steps": 0}, {"baseline": 1.0}):
        with pytest.raises(MnmtError):
            validate(ChiIbrConfig, wrong, "test")
