"""Ten thousand planned steps of WMT-10: nine in ten sentences are German, and every pair is seen as often as its share says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from mnmt_scale.data.config import SamplingConfig
from mnmt_scale.data.plan import StepPlanner
from mnmt_scale.data.reader import COST
from mnmt_scale.data.sampler import TaskSampler, task_shares
from mnmt_scale.tasks import TaskSet, pair_name
from tests.support.memory_store import make_store

SENTENCES = dict(kk=91e3, vi=133e3, tr=207e3, ja=223e3, nl=237e3, it=250e3, ro=608e3, hi=1.56e6, ar=250e3, de=28e6)
"""Training sentence pairs with English (Li and Gong 2021, Table 7)."""
STEPS, K = 10_000, 4
TASKS = TaskSet([("en", code) for code in SENTENCES])
SIZES = {pair_name("en", code): int(size) for code, size in SENTENCES.items()}
SHRINK = 2000
"""How much smaller the corpus of the planner's test is: its steps are drawn from real sentences."""


def check(realised: np.ndarray, p: np.ndarray) -> None:
    """Every share within the 99 % interval that independent draws of one pair a step would have."""
    low, high = binom.interval(0.99, STEPS, p)
    share = realised / realised.sum()
    assert (share >= low / STEPS).all(), (share - p).tolist()
    assert (share <= high / STEPS).all(), (share - p).tolist()


def settings_at(temperature: float, within: str) -> SamplingConfig:
    return SamplingConfig(temperature=temperature, tasks_per_batch=K, within=within)


def test_p_is_that_of_the_sizes():
    p = task_shares(settings_at(1.0, "proportional"), TASKS, SIZES)
    assert p == pytest.approx(np.array(list(SENTENCES.values())) / sum(SENTENCES.values()))
    assert p[-1] == pytest.approx(0.887, abs=0.001)
    flatter = task_shares(settings_at(5.0, "proportional"), TASKS, SIZES)
    assert flatter[-1] / flatter[0] == pytest.approx((28e6 / 91e3) ** 0.2)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("within", ["proportional", "equal"])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_shares_of_sampled_steps(temperature, within, seed):
    config = settings_at(temperature, within)
    p = task_shares(config, TASKS, SIZES)
    sampler = TaskSampler(p, K, config.within, seed)
    total, steps_with = np.zeros(len(TASKS)), np.zeros(len(TASKS))
    sizes = set()
    for step in range(STEPS):
        tasks, shares = sampler.shares(step)
        total[tasks] += shares
        steps_with[tasks] += 1
        sizes.add(len(tasks))
    assert total.sum() == pytest.approx(STEPS)
    check(total, p)
    if within == "proportional":
        assert sizes == {K}
        # German, and then Hindi among the rest, have more than a slot: they are in every step with exactly their share. The
        # others share what is left of a step equally, so that how often they are in one says how much they get
        certain = steps_with == STEPS
        assert [t.target for t in TASKS if certain[t.index]] == (["hi", "de"] if temperature == 1.0 else [])
        assert total[certain] / STEPS == pytest.approx(p[certain])
        rest = p[~certain] / p[~certain].sum() * (K - certain.sum())
        low, high = binom.interval(0.99, STEPS, rest)
        assert (steps_with[~certain] >= low).all()
        assert (steps_with[~certain] <= high).all()


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_shares_of_planned_tokens(temperature):
    """The whole planner, sentences drawn: tokens of every pair, over ten thousand steps of a corpus 2,000 times smaller."""
    store = make_store({pair: max(2, size // SHRINK) for pair, size in SIZES.items()}, seed=3)
    config = settings_at(temperature, "proportional")
    planner = StepPlanner(store, TASKS, config, 128, max_tokens=40, seed=1)
    p = task_shares(config, TASKS, store.sizes())
    assert planner.shares == pytest.approx(p)
    tokens = np.zeros(len(TASKS))
    for _ in range(STEPS):
        plan = planner.next()
        for k, task in enumerate(plan.tasks):
            tokens[task.index] += plan.table[COST, plan.bounds[k] : plan.bounds[k + 1]].sum()
    assert tokens.sum() == pytest.approx(128 * STEPS, rel=0.001)
    check(tokens, p)
