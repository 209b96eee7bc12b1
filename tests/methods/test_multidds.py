"""MultiDDS-S: the actor against torch's autograd and Adam, where its shares go, and the method around it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import Observation, Request, StepReport
from mnmt_scale.methods.catalog import make_method
from mnmt_scale.methods.joint import Joint
from mnmt_scale.methods.multidds.config import MultiDdsConfig
from mnmt_scale.methods.multidds.method import MultiDds
from mnmt_scale.methods.multidds.sampler import ascent, fitted, reinforce, shares
from mnmt_scale.methods.spec import Facts, MethodConfig
from mnmt_scale.settings import validate
from tests.support.batches import batch_of

REPORT = StepReport(10, (0, 1, 2), (3.0, 4.0, 5.0), (3.0, 4.0, 5.0), (9, 9, 9), 1e-3, 1.0)
FACTS = Facts(("de-en", "fr-en", "ru-en"), (0.7, 0.2, 0.1), 3, 1)
OBJECTIVES = ("log_probability", "expected_reward")


def objective_of(name, logits, rewards):
    if name == "log_probability":
        return (rewards * torch.log_softmax(logits, 0)).sum()
    return (rewards * torch.softmax(logits, 0)).sum()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_adam_on_the_objective_is_what_torch_does(objective):
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(6))
    actor = fitted(p)
    logits = torch.tensor(np.log(p), requires_grad=True)
    adam = torch.optim.Adam([logits], lr=1e-2)
    for _ in range(3):  # moments and step count are carried from measurement to measurement
        rewards = rng.uniform(-0.2, 0.6, 6)
        for _ in range(200):
            adam.zero_grad()
            (-objective_of(objective, logits, torch.tensor(rewards))).backward()
            assert ascent(shares(logits.detach().numpy()), rewards, objective) == pytest.approx(-logits.grad.numpy())
            adam.step()
        actor = reinforce(actor, rewards, objective=objective, learning_rate=1e-2, steps=200)
        assert actor.logits == pytest.approx(logits.detach().numpy(), rel=1e-9, abs=1e-10)
    assert actor.steps == 600
    assert np.abs(actor.logits - np.log(p)).max() > 0.1, "the actor must have moved"


def test_the_scaled_code_path_is_the_expected_reward():
    """Their loss with --scale-reward, detached softmax times log softmax, has the gradient of sum p r."""
    rng = np.random.default_rng(4)
    logits = torch.tensor(rng.normal(size=5), requires_grad=True)
    rewards = torch.tensor(rng.normal(size=5))
    (torch.softmax(logits, 0).detach() * torch.log_softmax(logits, 0) * rewards).sum().backward()
    assert ascent(shares(logits.detach().numpy()), rewards.numpy(), "expected_reward") == pytest.approx(logits.grad.numpy())


def settled(rewards, objective, steps=12_000):
    return shares(reinforce(fitted([0.7, 0.2, 0.1]), rewards, objective=objective, learning_rate=3e-3, steps=steps).logits)


def test_where_the_shares_end():
    assert settled([0.1, 0.2, 0.5], "log_probability") == pytest.approx([0.125, 0.25, 0.625], abs=1e-3)
    assert settled([0.3, 0.3, 0.3], "log_probability") == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert settled([0.1, 0.2, 0.5], "expected_reward")[2] > 0.99
    assert settled([0.3, 0.3, 0.3], "expected_reward") == pytest.approx([0.7, 0.2, 0.1], abs=1e-9)


def test_a_negative_reward_drives_its_share_down_without_end():
    few, many = (settled([0.2, 0.3, -0.1], "log_probability", steps) for steps in (1_000, 8_000))
    assert 0.1 > few[2] > many[2]
    assert many[2] < 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_how_far_a_measurement_moves_a_logit(objective):
    """lr * steps at first; after small gradients, whose second moments lag behind, up to four times as far."""
    p, rewards = np.full(8, 1 / 8), np.random.default_rng(0).uniform(-1, 1, 8)
    options = {"objective": objective, "learning_rate": 1e-4, "steps": 200}
    first = reinforce(fitted(p), rewards, **options)
    assert np.abs(first.logits - np.log(p)).max() == pytest.approx(0.02, rel=1e-3)
    before = fitted(p)
    for _ in range(40):
        before = reinforce(before, 1e-4 * rewards, **options)
    moved = np.abs(reinforce(before, rewards, **options).logits - before.logits).max()
    assert 0.06 < moved < 0.08


def test_the_actor_starts_at_the_shares_exactly():
    p = np.array([4.5, 5.9, 10.0, 61.5, 103.0, 182.0, 185.0, 208.0])
    p /= p.sum()
    assert shares(fitted(p).logits) == pytest.approx(p, rel=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_permuted_tasks_give_permuted_shares(objective):
    rng = np.random.default_rng(1)
    p, rewards, order = rng.dirichlet(np.ones(7)), rng.uniform(-0.2, 0.5, 7), rng.permutation(7)
    plain, permuted = (
        shares(reinforce(fitted(p[o]), rewards[o], objective=objective, learning_rate=1e-2, steps=300).logits)
        for o in (np.arange(7), order)
    )
    assert permuted == pytest.approx(plain[order], rel=1e-12)


def observed(method, *rewards):
    for row in rewards:
        method.observe(Observation(REPORT, alignment=tuple(row)))
    return method


def test_it_asks_for_the_rewards_after_every_nth_update():
    method = MultiDds(MultiDdsConfig(every_steps=4), FACTS)
    asked = [step for step in range(13) if method.wants(step) is not None]
    assert asked == [3, 7, 11]  # the updates that make 4, 8 and 12
    assert method.wants(3) == Request(alignment=True)


def test_new_shares_are_given_once():
    method = MultiDds(MultiDdsConfig(learning_rate=1e-2), FACTS)
    assert method.shares() is None
    assert method.log() == {}
    observed(method, (0.1, 0.2, 0.6))
    p = method.shares()
    assert sum(p) == pytest.approx(1.0)
    assert p[2] > 0.1
    assert p[0] < 0.7
    assert method.shares() is None
    assert method.log()["weights"] == {0: p[0], 1: p[1], 2: p[2]}
    assert method.log()["rewards"] == {"de-en": 0.1, "fr-en": 0.2, "ru-en": 0.6}
    assert method.log()["mean_reward"] == pytest.approx(0.3)


def test_a_task_that_is_never_sampled_stays_out():
    facts = Facts(("de-en", "fr-en", "ru-en"), (0.5, 0.0, 0.5), 2, 1)
    p = observed(MultiDds(MultiDdsConfig(learning_rate=1e-2), facts), (0.1, 0.9, 0.3)).shares()
    assert p[1] == 0.0
    assert p[2] > 0.5 > p[0]
    assert sum(p) == pytest.approx(1.0)


def test_resumed_equals_uninterrupted():
    rows = np.random.default_rng(2).uniform(-0.1, 0.5, (5, 3))
    whole = observed(MultiDds(MultiDdsConfig(), FACTS), *rows)
    first = observed(MultiDds(MultiDdsConfig(), FACTS), *rows[:2])
    second = MultiDds(MultiDdsConfig(), FACTS)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.log() == first.log()
    assert second.shares() is None, "the stream keeps the shares itself"
    observed(second, *rows[2:])
    assert second.shares() == whole.shares()
    assert second.state_dict() == whole.state_dict()


def test_the_loss_is_the_token_mean():
    batch = batch_of([(4, 5, 0), (6, 7, 0), (3, 9, 2)], tasks=3)
    assert MultiDds(MultiDdsConfig(), FACTS).scales(batch) == Joint().scales(batch)
    assert MultiDds(MultiDdsConfig(), FACTS).scales(batch)[0] == pytest.approx(1 / (4 + 6 + 8))


def test_settings():
    config = validate(MethodConfig, {"name": "multidds", "multidds": {"every_steps": 7}}, "test")
    assert make_method(config, FACTS).wants(6) == Request(alignment=True)
    for wrong in ({"every_steps": 0}, {"reinforce_steps": 0}, {"learning_rate": 0.0}, {"objective": "x"}, {"temperature": 2}):
        with pytest.raises(MnmtError):
            validate(MultiDdsConfig, wrong, "test")
