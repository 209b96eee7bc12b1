"""The deciding part of CATS: Eq. 4 to the letter, and the projected update as a way to the least alpha' G alpha."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mnmt_scale.methods.cats.curvature import Multipliers, Rates, curvature, divergence, project, update

from ..support.cats_cases import minimum, random_gram

RATES = Rates(learning_rate=0.1, lambda_learning_rate=0.1, lambda_cap=100.0, eps_curvature=0.0, eps_alpha=0.005)


def rates(**changes) -> Rates:
    return Rates(**{**{name: getattr(RATES, name) for name in RATES.__slots__}, **changes})


def zero(K: int) -> Multipliers:
    return Multipliers(0.0, 0.0, np.zeros(K))


def settle(gram: np.ndarray, rule: Rates, most: int = 60_000) -> np.ndarray:
    """Weights that the projected update, loss term off, does not move any more."""
    alpha, state = np.full(len(gram), 1 / len(gram)), Multipliers(rule.lambda_cap, 0.0, np.zeros(len(gram)))
    for _ in range(most):
        new, state, _ = update(gram, np.zeros(len(gram)), alpha, state, rule, paper=False)
        if np.abs(new - alpha).max() < 1e-14:
            return new
        alpha = new
    raise AssertionError("still moving")


def slsqp(gram: np.ndarray, floor: float) -> np.ndarray:
    K = len(gram)
    found = minimize(
        lambda a: a @ gram @ a,
        np.full(K, 1 / K),
        jac=lambda a: 2 * gram @ a,
        bounds=[(floor, None)] * K,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(K)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert found.success, found.message
    return found.x


# the paper's update


@pytest.mark.parametrize("seed", range(5))
def test_paper_step_is_the_gradient_of_equation_4(seed):
    rng = np.random.default_rng(seed)
    K, lr, lambda_lr, eps = 4, 0.2, 0.3, 0.05
    gram, losses = random_gram(rng, K), rng.uniform(3, 9, K)
    alpha, c, s, n = (
        torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for x in (rng.uniform(0, 1, K), rng.uniform(0, 2), rng.uniform(0, 2), rng.uniform(-1, 1, K))
    )
    norm2 = alpha @ torch.tensor(gram) @ alpha
    lagrangian = alpha @ torch.tensor(losses) - c * (eps - norm2) + s * (alpha.sum() - 1) ** 2 - (n * (alpha - eps)).sum()
    lagrangian.backward()
    rule = rates(learning_rate=lr, lambda_learning_rate=lambda_lr, eps_curvature=eps, eps_alpha=eps)
    state = Multipliers(c.item(), s.item(), n.detach().numpy())
    new, after, seen = update(gram, losses, alpha.detach().numpy(), state, rule, paper=True)
    np.testing.assert_allclose(new, (alpha - lr * alpha.grad).detach(), rtol=1e-12)
    assert after.lambda_c == pytest.approx((c + lambda_lr * c.grad).item(), rel=1e-12)
    assert after.lambda_s == pytest.approx((s + lambda_lr * s.grad).item(), rel=1e-12)
    np.testing.assert_allclose(after.lambda_n, (n + lambda_lr * n.grad).detach(), rtol=1e-12)
    assert seen == pytest.approx(norm2.item(), rel=1e-12)


@pytest.mark.parametrize("start", [1.0, 0.25])
def test_paper_step_is_negative_within_two_updates(start):
    rng = np.random.default_rng(0)
    alpha, state = np.full(4, start), zero(4)
    for _ in range(2):
        alpha, state, _ = update(random_gram(rng, 4), rng.uniform(8.8, 9.2, 4), alpha, state, RATES, paper=True)
        if (found := divergence(alpha, 4 * start)) is not None:
            break
    assert found is not None
    assert found[1] == "is negative"
    assert found[0] == alpha.argmin()


@pytest.mark.parametrize(
    ("alpha", "slot", "clause"),
    [
        ([0.2, np.nan, -1.0], 1, "not finite"),
        ([0.2, 0.3, np.inf], 2, "not finite"),
        ([0.2, -1e-9, 0.8], 1, "negative"),
        ([30.0, 60.0, 20.0], 1, "sum to 110"),
        ([2e-3, 1e-3, 1e-3], 1, "sum to 0.004"),
        ([0.5, 0.0, 0.6], None, None),
        ([5.0, 2.0, 3.0], None, None),
    ],
)
def test_divergence(alpha, slot, clause):
    found = divergence(np.array(alpha), 1.0)
    assert (found is None) == (slot is None)
    if found is not None:
        assert found[0] == slot
        assert clause in found[1]


def test_a_sum_that_was_large_from_the_start_has_not_diverged():
    assert divergence(np.full(200, 1.0), 200.0) is None
    assert divergence(np.full(4, 0.002), 0.008) is None
    assert divergence(np.full(200, 1.0), 1.0) is not None


# the projection


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9),
    st.floats(0.0, 0.1),
)
def test_projection_is_the_nearest_point(point, floor):
    x = project(np.array(point), floor)
    assert x.sum() == pytest.approx(1.0, abs=1e-9)
    assert (x >= floor).all()
    # nearest: where x is above its floor the step back to the point is the same, and nowhere larger
    back = np.array(point) - x
    free = x > floor + 1e-9
    assert np.ptp(back[free]) < 1e-8
    assert (back <= back[free].max() + 1e-8).all()


def test_projection_survives_large_numbers():
    np.testing.assert_allclose(project(np.array([1e18, -1e18, 1e18]), 0.01), [0.495, 0.01, 0.495])


# the projected update


def test_the_truth_of_these_tests_is_what_slsqp_finds():
    rng = np.random.default_rng(3)
    for floor in (0.0, 0.005, 0.1):
        gram = random_gram(rng, 5, norms=(0.5, 2.0))
        np.testing.assert_allclose(minimum(gram, floor), slsqp(gram, floor), atol=2e-6)


@pytest.mark.parametrize(
    ("K", "floor", "norms", "cosines"),
    [
        (4, 0.005, (0.5, 1.5), (0.0, 0.5)),
        (8, 0.0, (0.5, 1.5), (-0.1, 0.3)),
        (3, 0.2, (0.5, 2.0), (-0.4, 0.5)),
    ],
)
def test_frozen_gram_leads_to_the_minimum_and_stays_there(K, floor, norms, cosines):
    gram = random_gram(np.random.default_rng(K), K, norms, cosines)
    best, rule = minimum(gram, floor), rates(eps_alpha=floor)
    alpha, state = np.full(K, 1 / K), zero(K)
    for _ in range(2_000):
        alpha, state, _ = update(gram, np.zeros(K), alpha, state, rule, paper=False)
    np.testing.assert_allclose(alpha, best, atol=1e-9)
    for _ in range(10_000):
        alpha, state, _ = update(gram, np.zeros(K), alpha, state, rule, paper=False)
        assert np.abs(alpha - best).max() < 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_minimum_for_gradients_of_very_different_length(seed):
    gram = random_gram(np.random.default_rng(seed), 4)
    for floor in (0.0, 0.005):
        alpha = settle(gram, rates(learning_rate=1.0, eps_alpha=floor))
        np.testing.assert_allclose(alpha, minimum(gram, floor), atol=1e-8)


@pytest.mark.parametrize(
    "vectors",
    [
        [[1.0, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.8]],  # all three count
        [[1.0, 0.0], [-0.5, 1.0]],
        [[0.3, 0.0], [1.0, 2.0], [0.5, 4.0]],  # the shortest alone
    ],
)
def test_equals_mgda(vectors):
    aggregation = pytest.importorskip("torchjd.aggregation")  # its Frank-Wolfe is slow where some tasks count and some do not
    rows = torch.tensor(vectors, dtype=torch.float64)
    theirs = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=5_000)(rows @ rows.T).numpy()
    ours = settle((rows @ rows.T).numpy(), rates(learning_rate=1.0, eps_alpha=0.0))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@settings(max_examples=200)
@given(st.integers(0, 2**31), st.integers(1, 8), st.floats(0.0, 20.0), st.floats(0.0, 90.0), st.sampled_from([0.01, 0.1, 2.0]))
def test_lambda_c_rises_above_eps_curvature_and_falls_below(seed, K, eps, before, rate):
    rng = np.random.default_rng(seed)
    gram, alpha = random_gram(rng, K), rng.dirichlet(np.ones(K))
    rule = rates(eps_curvature=eps, lambda_learning_rate=rate)
    _, after, seen = update(gram, np.zeros(K), alpha, Multipliers(before, 0.0, np.zeros(K)), rule, paper=False)
    assert seen == pytest.approx(alpha @ gram @ alpha)
    assert after.lambda_c == pytest.approx(min(max(before + rate * (seen - eps), 0.0), 100.0))
    if seen > eps:
        assert before < after.lambda_c <= 100.0
    elif seen < eps:
        assert after.lambda_c < before or before == 0.0 == after.lambda_c


def test_lambda_c_falls_to_zero_where_the_constraint_is_slack_and_alpha_rests():
    gram = random_gram(np.random.default_rng(1), 4, norms=(0.5, 1.0))
    alpha, state = np.array([0.1, 0.2, 0.3, 0.4]), Multipliers(1.0, 0.0, np.zeros(4))
    path = []
    for _ in range(60):
        alpha, state, _ = update(gram, np.zeros(4), alpha, state, rates(eps_curvature=2.0), paper=False)
        path.append((state.lambda_c, alpha.copy()))
    lambdas = [c for c, _ in path]
    assert all(b < a or b == 0.0 for a, b in itertools.pairwise(lambdas))
    assert lambdas[-1] == 0.0
    first = lambdas.index(0.0)
    assert all(np.abs(a - path[first][1]).max() < 1e-15 for _, a in path[first:])


def test_a_step_never_overshoots():
    rng = np.random.default_rng(5)
    for _ in range(300):
        gram, alpha = random_gram(rng, 4), project(rng.dirichlet(np.ones(4)), 0.005)
        state = Multipliers(rng.uniform(0, 100), 0.0, np.zeros(4))
        new, _, seen = update(gram, np.zeros(4), alpha, state, rates(learning_rate=1.0), paper=False)
        assert curvature(gram, new) <= seen * (1 + 1e-12)


@pytest.mark.parametrize("paper", [False, True])
def test_permuting_tasks_permutes_everything_to_the_last_bit(paper):
    rng = np.random.default_rng(11)
    K = 6
    perm = rng.permutation(K)
    a, b = (np.full(K, 1 / K), zero(K)), (np.full(K, 1 / K), zero(K))
    for _ in range(2 if paper else 200):
        gram, losses = random_gram(rng, K), rng.uniform(3, 9, K)
        x, state, seen = update(gram, losses, *a, RATES, paper=paper)
        y, permuted, seen_permuted = update(gram[np.ix_(perm, perm)], losses[perm], *b, RATES, paper=paper)
        assert (x[perm] == y).all()
        assert (state.lambda_n[perm] == permuted.lambda_n).all()
        assert (state.lambda_c, state.lambda_s, seen) == (permuted.lambda_c, permuted.lambda_s, seen_permuted)
        a, b = (x, state), (y, permuted)
    assert np.ptp(x) > 0.01
