"""Two ranks at ZeRO-1, 2 and 3 compute what one process without DeepSpeed computes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.support.engine_cases import MAX_STEPS, engine_config, make_model
from tests.support.plain import PlainEngine
from tests.support.tiny_training import planned, token_mean

TRAIN = "tests.support.engine_cases:train"
STEPS = 20
LIMIT = 1e-5  # relative, after 20 steps in fp32


def plain_run(settings, ranks=2, split="even", accumulation=1, steps=STEPS):
    """Losses, norms, weights and averages of the truth; also the largest k_proj.bias gradient beside the norm."""
    engine = PlainEngine(make_model(), engine_config(**settings), max_steps=MAX_STEPS)
    losses, norms, rates, k_bias = [], [], [], 0.0
    for step in range(steps):
        total = 0.0
        for batch in itertools.chain(*planned(step, ranks, accumulation, split)):
            out = engine.forward(batch, token_mean(batch))
            engine.backward(out)
            total += float(out.total.detach())
        grads = {n: p.grad for n, p in engine.module.named_parameters()}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
        k_bias = max([k_bias] + [float(g.abs().max()) / norm for n, g in grads.items() if n.endswith("k_proj.bias")])
        outcome = engine.step()
        losses.append(total)
        norms.append(outcome.grad_norm)
        rates.append(outcome.learning_rate)
    return {"losses": losses, "norms": norms, "rates": rates, "k_bias": k_bias, "engine": engine}


def distances(ours, truth, without=()):
    """Relative distance per tensor and over all weights together."""
    names = [n for n in truth if not n.endswith(tuple(without))] if without else list(truth)
    each = {n: float((ours[n] - truth[n]).norm() / truth[n].norm().clamp(min=1e-12)) for n in names}
    flat = [torch.cat([w[n].flatten().double() for n in names]) for w in (ours, truth)]
    return each, float((flat[0] - flat[1]).norm() / flat[1].norm())


def assert_equal_runs(results, truth, without=()):
    for step in range(STEPS):
        rows = [r["rows"][step] for r in results]
        loss = sum(row["loss"] for row in rows)
        assert abs(loss - truth["losses"][step]) <= LIMIT * truth["losses"][step], step
        assert len({row["norm"] for row in rows}) == 1, "the norm must be the same on all ranks"
        assert rows[0]["norm"] == pytest.approx(truth["norms"][step], rel=1e-4)
        assert rows[0]["rate"] == truth["rates"][step]
    each, total = distances(results[0]["weights"], truth["engine"].weights(), without)
    worst = max(each, key=each.get)
    assert each[worst] <= LIMIT, (worst, each[worst])
    assert total <= LIMIT


@pytest.fixture(scope="module")
def adam_truth():
    return plain_run({"ema_decay": 0.9, "clip_norm": 0.5})


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_adam_with_clipping_and_ema(two_ranks, adam_truth, stage):
    results = two_ranks.run(TRAIN, settings={"zero_stage": stage, "ema_decay": 0.9, "clip_norm": 0.5}, steps=STEPS)
    # Adam walks along the rounding noise of k_proj.bias, whose true gradient is zero: that gradient is bounded instead.
    assert_equal_runs(results, adam_truth, without=["k_proj.bias"])
    assert adam_truth["k_bias"] < 1e-6
    assert min(adam_truth["norms"]) > 0.5, "clipping must have been at work"
    each, total = distances(results[0]["ema"], adam_truth["engine"].weights(ema=True), ["k_proj.bias"])
    assert max(each.values()) <= LIMIT
    assert total <= LIMIT
    assert results[1]["weights"] == {}, "full weights are for rank 0 alone"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sgd_without_exception(two_ranks, stage):
    settings = {"optimizer": {"name": "sgd", "learning_rate": 0.3, "momentum": 0.5}, "clip_norm": 0.5}
    results = two_ranks.run(TRAIN, settings={"zero_stage": stage, **settings}, steps=STEPS)
    assert_equal_runs(results, plain_run(settings))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_tasks_split_one_to_nine_over_the_ranks(two_ranks, stage):
    settings = {"optimizer": {"name": "sgd", "learning_rate": 0.3}}
    results = two_ranks.run(TRAIN, settings={"zero_stage": stage, **settings}, steps=STEPS, split="1:9")
    shares = [sum(row["loss"] for row in r["rows"]) for r in results]
    assert shares[0] < 0.2 * shares[1], "rank 0 must hold about a tenth of the loss"
    assert_equal_runs(results, plain_run(settings, split="1:9"))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_accumulation_changes_nothing(two_ranks, stage):
    settings = {"optimizer": {"name": "sgd", "learning_rate": 0.3}, "clip_norm": 0.5}
    results = two_ranks.run(TRAIN, settings={"zero_stage": stage, **settings}, steps=STEPS, accumulation=2)
    assert_equal_runs(results, plain_run(settings))  # the same sentences in one micro-batch a rank


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_rank_without_sentences_takes_part(two_ranks, stage):
    settings = {"optimizer": {"name": "sgd", "learning_rate": 0.3}}
    results = two_ranks.run(TRAIN, settings={"zero_stage": stage, **settings}, steps=STEPS, split="empty")
    assert all(row["loss"] == 0.0 for row in results[0]["rows"])
    assert_equal_runs(results, plain_run(settings, split="empty"))


@pytest.mark.parametrize("stage", [1, 3])
def test_one_rank_equals_two(one_rank, stage):
    settings = {"optimizer": {"name": "sgd", "learning_rate": 0.3}}
    assert_equal_runs(one_rank.run(TRAIN, settings={"zero_stage": stage, **settings}, steps=STEPS), plain_run(settings))
