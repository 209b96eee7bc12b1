"""gramian under ZeRO does what torchjd does on one process with the whole Jacobian, at every one of 20 steps."""

from __future__ import annotations

import random

import pytest
import torch

from tests.support.engine_cases import MAX_STEPS, engine_config, make_model
from tests.support.plain import PlainEngine
from tests.support.tiny_training import planned

A = pytest.importorskip("torchjd.aggregation", reason="the extra 'gramian' is not installed")
autojac = pytest.importorskip("torchjd.autojac")

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*not DPP")  # cvxpy, of the problem that torchjd gives it

TRAIN = "tests.support.gramian_cases:train"
STEPS, SEED = 20, 3
# fp32 on both sides; seen: 1.1e-6 and 5.5e-6, both for MGDA under Adam
LIMIT_WEIGHTS, LIMIT_UPDATES = 5e-6, 2e-5
SGD = {"optimizer": {"name": "sgd", "learning_rate": 0.3}}
ADAM = {"optimizer": {"name": "adam", "learning_rate": 5e-3}}


def torchjd_run(aggregator, settings):
    """The truth: torchjd's ``backward`` and ``jac_to_grad`` over the losses of one process without DeepSpeed."""
    engine = PlainEngine(make_model(), engine_config(**settings), max_steps=MAX_STEPS)
    parameters = list(engine.module.parameters())
    rows, weights = [], [engine.weights()]
    for step in range(STEPS):
        ((batch,),) = planned(step, ranks=1, accumulation=1)
        alone = torch.diag(1.0 / torch.tensor(batch.step_tokens, dtype=torch.float32))
        losses = [engine.forward(batch, scales).total for scales in alone]
        autojac.backward(losses, inputs=parameters, parallel_chunk_size=1)
        torch.manual_seed(random.Random(f"gramian {SEED} {step}").getrandbits(63))  # what gramian draws PCGrad's order from
        rows.append(autojac.jac_to_grad(parameters, aggregator).tolist())
        engine.step()
        weights.append(engine.weights())
    return {"rows": rows, "weights": weights}


def updates(weights, names):
    """[steps, parameters] what each step added to the model."""
    flat = torch.stack([torch.cat([w[n].double().flatten() for n in names]) for w in weights])
    return flat.diff(dim=0)


def assert_equal_runs(results, truth, without=()):
    assert all(r["rows"] == results[0]["rows"] for r in results), "ranks must agree without talking"
    ours, theirs = torch.tensor(results[0]["rows"]), torch.tensor(truth["rows"])
    names = [n for n in truth["weights"][0] if not n.endswith(tuple(without))]
    added, wanted = (updates(run["weights"], names) for run in (results[0], truth))
    distance = (ours - theirs).abs().amax(dim=1)
    assert float(distance.max()) <= LIMIT_WEIGHTS, distance
    relative = (added - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(relative.max()) <= LIMIT_UPDATES, relative
    assert float(theirs.diff(dim=0).abs().amax()) > 0.02, "weights of the step before must not have passed"


@pytest.fixture(scope="module")
def upgrad_sgd():
    return torchjd_run(A.UPGrad(), SGD)


@pytest.mark.parametrize(
    ("name", "aggregator", "settings"),
    [
        ("UPGrad", A.UPGrad, ADAM),
        ("MGDA", A.MGDA, ADAM),
        ("PCGrad", A.PCGrad, SGD),
        ("CAGrad", lambda: A.CAGrad(0.5), ADAM),
        ("NashMTL", lambda: A.NashMTL(3), SGD),
        ("AlignedMTL", A.AlignedMTL, ADAM),
        ("IMTLG", A.IMTLG, SGD),
    ],
)
def test_one_rank(one_rank, name, aggregator, settings):
    truth = torchjd_run(aggregator(), settings)
    results = one_rank.run(TRAIN, settings={"zero_stage": 1, **settings}, method={"weighting": name}, steps=STEPS)
    # Adam walks along the rounding noise of k_proj.bias, whose true gradient is zero
    assert_equal_runs(results, truth, ["k_proj.bias"] if settings is ADAM else [])


def test_one_rank_task_by_task(one_rank, upgrad_sgd):
    results = one_rank.run(TRAIN, settings=SGD, method={"weighting": "UPGrad"}, steps=STEPS, how={"route": "per_task"})
    assert results[0]["route"] == "per_task", "else the next test shows the same thing"
    assert_equal_runs(results, upgrad_sgd)


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks(two_ranks, upgrad_sgd, stage):
    results = two_ranks.run(TRAIN, settings={"zero_stage": stage, **SGD}, method={"weighting": "UPGrad"}, steps=STEPS)
    assert_equal_runs(results, upgrad_sgd)
