"""CATS as a method: which weights a batch gets, when it observes, what an observation changes, what a checkpoint keeps."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import Request
from mnmt_scale.methods.joint import Joint

from ..support.cats_cases import batch_with, cats, observation, random_gram


def weights_of(method, tasks, tokens=None) -> np.ndarray:
    """What goes before the mean loss of each task."""
    tokens = tokens or [100] * len(tasks)
    return np.array(method.scales(batch_with(tasks, tokens))) * np.array(tokens)


def train(method, updates: int, seed: int = 0, K: int = 4, first: int = 0) -> None:
    """Observations of random batches near the beginning of a training; number ``first`` and on."""
    for number in range(first, first + updates):
        rng = np.random.default_rng([seed, number])
        tasks = np.sort(rng.choice(len(method.names), K, replace=False)).tolist()
        losses = rng.uniform(8.8, 9.2, K)
        method.observe(observation(tasks, random_gram(rng, K), losses, step=10 * (number + 1)))


# weights


@pytest.mark.parametrize(
    "settings", [{}, {"renormalise": False}, {"initial_alpha": "1"}, {"eps_alpha": 0.3}, {"loss_term": True}]
)
def test_one_task_is_joint_training(settings):
    method, batch = cats(1, **settings), batch_with([0], [137])
    assert method.scales(batch) == Joint().scales(batch)
    for step in range(50):
        method.observe(observation([0], np.array([[2.5 / (1 + step)]]), [9.0 - 0.1 * step]))
        assert method.scales(batch) == Joint().scales(batch)


def test_scales_are_weights_over_tokens():
    method = cats(4)
    assert method.scales(batch_with([0, 1, 2, 3], [10, 20, 40, 80])) == (0.025, 0.0125, 0.00625, 0.003125)
    assert method.scales(batch_with([0, 1, 2, 3], [10, 0, 40, 0])) == (0.05, 0.0, 0.0125, 0.0)
    assert method.scales(batch_with([1, 2], [0, 0])) == (0.0, 0.0)


def test_initial_alpha_without_renormalisation():
    assert weights_of(cats(8, 4, renormalise=False), [0, 3, 4, 7]).tolist() == [0.125] * 4
    assert weights_of(cats(8, 4, renormalise=False, initial_alpha="1"), [0, 3, 4, 7]).tolist() == [1.0] * 4
    for initial in ("1/N", "1"):
        assert weights_of(cats(8, 4, initial_alpha=initial), [0, 3, 4, 7]).tolist() == [0.25] * 4


def test_an_update_moves_weight_within_the_batch_only():
    method = cats(6, 3, eps_alpha=0.0)
    method.alpha, method.lambda_c = [0.1, 0.2, 0.05, 0.3, 0.25, 0.1], 5.0
    gram = np.diag([4.0, 1.0, 0.25])
    share = np.array([0.2, 0.3, 0.1]) / 0.6
    method.observe(observation([1, 3, 5], gram, [5.0, 5.0, 5.0]))
    assert [method.alpha[n] for n in (0, 2, 4)] == [0.1, 0.05, 0.25]
    gradient = 2 * 5.0 * gram @ share
    moved = share - 0.1 / (1 + 2 * 5.0 * 4.0) * gradient
    moved += (1 - moved.sum()) / 3  # all three stay positive, so the projection is this shift
    assert moved.min() > 0
    np.testing.assert_allclose([method.alpha[n] for n in (1, 3, 5)], 0.6 * moved, rtol=1e-12)
    assert method.lambda_c == pytest.approx(5.0 + 0.1 * share @ gram @ share)
    np.testing.assert_allclose(weights_of(method, [1, 3, 5]), moved, rtol=1e-12)


def test_the_lower_bound_holds_in_every_batch():
    """Weight that flows from batch to batch leaves a task far below those it meets later, but never below the bound."""
    method = cats(6, 2, eps_alpha=0.02, learning_rate=1.0)
    for first in (0, 1, 2, 3, 4):
        for _ in range(30):
            method.observe(observation([first, first + 1], np.diag([100.0, 1.0]), [5.0, 5.0]))
    assert method.alpha[0] / method.alpha[5] < 0.01, "the batch of the two must be one where it matters"
    for pair in ([0, 5], [1, 4], [0, 1]):
        weights = weights_of(method, pair)
        assert weights.min() >= 0.02 * (1 - 1e-12)
        assert weights.sum() == pytest.approx(1.0)


def test_an_update_without_renormalisation_is_literal():
    method = cats(6, 3, renormalise=False, eps_alpha=0.01)
    method.lambda_c = 5.0
    before = list(method.alpha)
    method.observe(observation([1, 3, 5], np.diag([4.0, 1.0, 0.25]), [5.0, 5.0, 5.0]))
    assert [method.alpha[n] for n in (0, 2, 4)] == [before[n] for n in (0, 2, 4)]
    assert math.fsum(method.alpha[n] for n in (1, 3, 5)) == pytest.approx(1.0)
    assert weights_of(method, [0, 1, 3]).tolist() == pytest.approx([method.alpha[n] for n in (0, 1, 3)])


def test_tasks_without_tokens_take_no_part():
    with_empty, without = cats(5), cats(5)
    gram = random_gram(np.random.default_rng(0), 5)
    gram[2] = gram[:, 2] = 0.0
    kept = np.ix_([0, 1, 3, 4], [0, 1, 3, 4])
    for _ in range(20):
        with_empty.observe(observation([0, 1, 2, 3, 4], gram, [9.0, 9.0, 0.0, 9.0, 9.0], [50, 60, 0, 70, 80]))
        without.observe(observation([0, 1, 3, 4], gram[kept], [9.0] * 4, [50, 60, 70, 80]))
    assert with_empty.state_dict() == without.state_dict()
    assert with_empty.alpha[2] == 0.2
    assert np.ptp(with_empty.alpha) > 0.01


def test_a_step_without_any_tokens_changes_nothing():
    method = cats(2)
    before = method.state_dict()
    method.observe(observation([0, 1], np.zeros((2, 2)), [0.0, 0.0], [0, 0]))
    method.observe(replace(observation([0, 1], np.eye(2), [9.0, 9.0]), gram=None))  # it was not finite
    assert method.state_dict() == before


def test_tasks_whose_weight_has_gone_to_others():
    method = cats(4, 2, eps_alpha=0.0)
    method.alpha, method.lambda_c = [0.5, 0.5, 0.0, 0.0], 10.0
    assert weights_of(method, [2, 3]).tolist() == [0.5, 0.5]
    method.observe(observation([2, 3], np.diag([1.0, 2.0]), [5.0, 5.0]))
    assert method.alpha == [0.5, 0.5, 0.0, 0.0]
    method.observe(observation([1, 2], np.diag([4.0, 1.0]), [5.0, 5.0]))
    assert method.alpha[2] > 0.01
    assert method.alpha[1] + method.alpha[2] == pytest.approx(0.5)


def test_permuted_tasks_get_permuted_weights_to_the_last_bit():
    rng = np.random.default_rng(4)
    where = rng.permutation(8)  # task n of the one is task where[n] of the other
    names = [f"l{n}-en" for n in range(8)]
    one, other = cats(names, 4), cats([names[n] for n in np.argsort(where)], 4)
    for number in range(100):
        tasks = np.sort(rng.choice(8, 4, replace=False))
        gram, losses = random_gram(rng, 4), rng.uniform(3, 9, 4)
        one.observe(observation(tasks.tolist(), gram, losses, step=number))
        order = np.argsort(where[tasks])
        moved = where[tasks][order].tolist()
        other.observe(observation(moved, gram[np.ix_(order, order)], losses[order], step=number))
    assert [other.alpha[where[n]] for n in range(8)] == one.alpha
    assert (other.lambda_c, other.curvature) == (one.lambda_c, one.curvature)
    assert np.ptp(one.alpha) > 0.02


# the default settings and the paper's update at ordinary numbers


@pytest.mark.parametrize("K", [4, 8])
def test_500_updates_at_default_settings_stay_on_the_simplex(K):
    method = cats(8, K)
    for number in range(500):
        train(method, 1, K=K, first=number)
        alpha = np.array(method.alpha)
        assert np.isfinite(alpha).all()
        assert alpha.min() > 0.0
        assert alpha.sum() == pytest.approx(1.0, abs=1e-12)
        assert 0.0 < method.lambda_c <= 100.0
    rng = np.random.default_rng(9)
    method.observe(observation(range(K), random_gram(rng, K), [9.0] * K))
    weights = weights_of(method, list(range(K)))
    assert weights.sum() == pytest.approx(1.0)
    assert weights.min() >= 0.005 * (1 - 1e-9)
    assert np.ptp(weights) > 0.01


@pytest.mark.parametrize("initial", ["1/N", "1"])
@pytest.mark.parametrize("renormalise", [True, False])
def test_the_papers_update_diverges_within_two_updates_and_says_so(initial, renormalise):
    method = cats(8, 4, alpha_update="paper", initial_alpha=initial, renormalise=renormalise)
    with pytest.raises(MnmtError) as caught:
        train(method, 2, seed=3)
    error = caught.value
    assert error.code == "E506"
    assert any(name in error.what for name in method.names)
    assert "negative" in error.what
    assert f"after {method.updates} update" in error.what
    assert method.updates <= 2
    assert f"step {10 * method.updates}" in error.where
    assert 'alpha_update = "projected"' in error.remedy


def test_a_divergence_names_the_task_and_its_weight():
    method = cats(["de-en", "fr-en"], alpha_update="paper")
    with pytest.raises(MnmtError) as caught:
        method.observe(observation([0, 1], np.eye(2), [4.0, 9.0], step=10))
    assert "weight of fr-en, -0.4, is negative after 1 update of alpha" in caught.value.what


def test_the_papers_update_runs_while_it_does_not_diverge():
    method = cats(4, alpha_update="paper", learning_rate=0.001, eps_curvature=0.1)
    before = np.array(method.alpha)
    gram, losses = np.diag([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0, 5.0, 6.0])
    method.observe(observation(range(4), gram, losses))
    np.testing.assert_allclose(method.alpha, before - 0.001 * losses)
    assert method.lambda_c == pytest.approx(0.1 * (10 / 16 - 0.1))
    np.testing.assert_allclose(method.lambda_n, -0.1 * (before - 0.005))


def test_the_loss_term_moves_weight_to_the_lowest_loss():
    method = cats(2, loss_term=True)
    method.observe(observation([0, 1], np.eye(2), [4.0, 5.0]))
    np.testing.assert_allclose(method.alpha, [0.55, 0.45])
    for settings in ({}, {"loss_term": False}, {"loss_term": False, "alpha_update": "paper"}):
        plain = cats(2, **settings)
        plain.observe(observation([0, 1], np.eye(2), [4.0, 5.0]))
        assert plain.alpha == [0.5, 0.5]


# when


def test_schedule_of_the_paper():
    method = cats(2)
    due = [step + 1 for step in range(20_000) if method.wants(step) is not None]
    assert due[:800] == list(range(10, 8_001, 10))
    assert due[800:880] == list(range(8_100, 16_001, 100))
    assert due[880:] == [17_000, 18_000, 19_000, 20_000]
    assert method.wants(9) == Request(gram="beside")
    assert method.wants(10) is None


def test_schedule_of_ones_own():
    method = cats(2, schedule=[{"from_step": 0, "every": 1}, {"from_step": 5, "every": 4}])
    assert [step + 1 for step in range(20) if method.wants(step)] == [1, 2, 3, 4, 5, 9, 13, 17]


# log and state


def test_log():
    method = cats(3)
    assert method.log() == {"weights": {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}, "lambda_c": 0.0, "alpha_updates": 0}
    method.observe(observation([0, 2], np.array([[4.0, 1.0], [1.0, 2.0]]), [9.0, 9.0]))
    log = method.log()
    assert log["weights"] == dict(enumerate(method.alpha))
    assert log["curvature"] == pytest.approx(0.25 * (4 + 2 + 2))
    assert log["lambda_c"] == pytest.approx(0.2)
    assert log["alpha_updates"] == 1
    json.dumps(log)


@pytest.mark.parametrize("settings", [{}, {"renormalise": False}, {"loss_term": True, "eps_curvature": 1.0}])
def test_a_resumed_training_equals_an_uninterrupted_one(settings):
    whole, first, second = (cats(8, 4, **settings) for _ in range(3))
    train(whole, 60)
    train(first, 30)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    train(second, 30, first=30)
    assert second.state_dict() == whole.state_dict()
    assert second.log() == whole.log()
    assert second.updates == 60


def test_the_papers_multipliers_are_kept():
    rates = {"alpha_update": "paper", "learning_rate": 1e-3}
    one, other = cats(4, **rates), cats(4, **rates)
    train(one, 3)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (other.lambda_c, other.lambda_s, other.lambda_n) == (one.lambda_c, one.lambda_s, one.lambda_n)
    assert min(map(abs, other.lambda_n)) > 0.0


def test_state_goes_by_name():
    one, other = cats(["de-en", "fr-en", "nl-en"]), cats(["nl-en", "de-en", "fr-en"])
    one.alpha = [0.5, 0.3, 0.2]
    other.load_state_dict(one.state_dict())
    assert other.alpha == [0.2, 0.5, 0.3]


def test_state_of_other_tasks_or_another_method_is_refused():
    state = cats(["de-en", "fr-en"]).state_dict()
    for names, named in ((["de-en", "nl-en"], "fr-en"), (["de-en"], "fr-en"), (["de-en", "fr-en", "nl-en"], "nl-en")):
        method = cats(names)
        with pytest.raises(MnmtError, match=named) as caught:
            method.load_state_dict(state)
        assert caught.value.code == "E405"
        assert method.alpha == cats(names).alpha
    for other in ({}, {"alpha": 3}, {"alpha": {"de-en": 1.0, "fr-en": 1.0}}):
        with pytest.raises(MnmtError) as caught:
            cats(["de-en", "fr-en"]).load_state_dict(other)
        assert caught.value.code == "E405"
