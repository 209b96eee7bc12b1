"""What the engine promises beside equality: agreement on bad numbers, bf16, evaluation, silence, several engines."""

from __future__ import annotations

import pytest
import torch

from mnmt_scale.engine.ds_config import OPTIMIZER_CLASS
from tests.support.engine_cases import make_model
from tests.support.tiny_training import planned, token_mean

CASES = "tests.support.engine_cases:"
NAN_ON_RANK_1 = "train.loss:rank=1:step=2:NAN"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_nan_on_one_rank_is_skipped_by_all(two_ranks, stage, dtype):
    settings = {"zero_stage": stage, "dtype": dtype, "on_nan": "skip", "ema_decay": 0.9}
    results = two_ranks.run(CASES + "not_finite", settings=settings, fault=NAN_ON_RANK_1, steps=5)
    for result in results:
        skipped, moved = zip(*result["rows"], strict=True)
        assert skipped == (False, False, True, False, False)
        assert moved == (True, True, False, True, True), "weights, moments and averages must rest on the skipped step alone"
        assert result["weights"], "no NaN may have come through"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_nan_stops_all_ranks_with_one_text(two_ranks, stage):
    settings = {"zero_stage": stage, "on_nan": "stop"}
    results = two_ranks.run(CASES + "not_finite", settings=settings, fault=NAN_ON_RANK_1, steps=5)
    assert results[0]["error"] == results[1]["error"]
    assert "MNMT-E501" in results[0]["error"]
    assert "rank 1" in results[0]["error"]
    assert "step 3" in results[0]["error"]
    assert all(r["rows"][-1] == (True, False) and len(r["rows"]) == 3 for r in results)


def test_skipping_ends_after_max_skips_in_a_row(two_ranks):
    fault = ";".join(f"train.loss:rank=0:step={s}:NAN" for s in (0, 2, 3, 4))
    settings = {"on_nan": "skip", "max_skips": 2}
    results = two_ranks.run(CASES + "not_finite", settings=settings, fault=fault, steps=8)
    assert [skipped for skipped, _ in results[0]["rows"]] == [True, False, True, True, True]
    assert "3 updates in a row" in results[0]["error"]
    assert results[0]["error"] == results[1]["error"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_infinite_gradient_under_a_finite_loss(two_ranks, stage):
    for result in two_ranks.run(CASES + "bad_gradient", settings={"zero_stage": stage, "on_nan": "skip"}):
        assert result["outcomes"] == [(False, ()), (True, ()), (False, ())]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_learns_and_keeps_fp32_masters(two_ranks, stage):
    settings = {"zero_stage": stage, "dtype": "bf16", "optimizer": {"learning_rate": 0.01}}
    start = two_ranks.run(CASES + "train", settings=settings, steps=0)[0]["weights"]
    assert same(start, dict(make_model().named_parameters())), "the fp32 start must not be rounded to bf16"
    results = two_ranks.run(CASES + "train", settings=settings, steps=20)
    losses = [sum(r["rows"][i]["loss"] for r in results) for i in range(20)]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    weights = results[0]["weights"]
    assert all(w.dtype is torch.float32 for w in weights.values())
    assert not torch.equal(weights["shared.weight"], weights["shared.weight"].bfloat16().float())


@pytest.mark.parametrize(("stage", "dtype", "accumulation"), sorted(OPTIMIZER_CLASS))
def test_optimizer_class_table(two_ranks, stage, dtype, accumulation):
    assert accumulation == "fp32"
    result = two_ranks.run(CASES + "train", settings={"zero_stage": stage, "dtype": dtype}, steps=0)[0]
    assert result["optimizer"] == OPTIMIZER_CLASS[stage, dtype, accumulation]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_evaluation_uses_the_average_and_leaves_training_alone(two_ranks, stage):
    settings = {"zero_stage": stage, "ema_decay": 0.9}
    plain = two_ranks.run(CASES + "evaluations_between", settings=settings, steps=4, evaluate=False)
    mixed = two_ranks.run(CASES + "evaluations_between", settings=settings, steps=4, evaluate=True)
    assert same(plain[0]["weights"], mixed[0]["weights"])
    assert same(plain[0]["ema"], mixed[0]["ema"])
    model = make_model().eval()
    model.load_state_dict(mixed[0]["ema"])
    for rank, result in enumerate(mixed):
        batch = planned(100, 2, 1)[rank][0]
        with torch.no_grad():
            assert torch.allclose(result["loss"], model(batch, token_mean(batch)).nlls, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"zero_stage": 1, "dtype": "bf16"}, {"zero_stage": 3}], ids=["bf16", "zero3"])
def test_it_starts_and_trains_silently(one_rank, tmp_path, settings):
    assert one_rank.run(CASES + "what_is_printed", settings=settings, path=str(tmp_path / "out")) == [""]


@pytest.mark.parametrize(("stage", "dtype"), [(1, "bf16"), (2, "bf16"), (3, "fp32")])
def test_offload_passes_through_and_recovers_from_nan(two_ranks, tmp_path, stage, dtype):
    settings = {"zero_stage": stage, "dtype": dtype, "on_nan": "skip"}
    parts = {"offload_optimizer": {"device": "cpu"}, **({"offload_param": {"device": "cpu"}} if stage == 3 else {})}
    offloaded = {**settings, "deepspeed": {"zero_optimization": parts}}
    usual = two_ranks.run(CASES + "train", settings=settings, steps=6)
    ours = two_ranks.run(CASES + "train", settings=offloaded, steps=6)
    losses = [[sum(r["rows"][i]["loss"] for r in results) for i in range(6)] for results in (usual, ours)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2 if dtype == "bf16" else 1e-5)
    result = two_ranks.run(CASES + "not_finite", settings=offloaded, fault=NAN_ON_RANK_1, steps=5)[0]
    assert [skipped for skipped, _ in result["rows"]] == [False, False, True, False, False]
    whole = two_ranks.run(CASES + "uninterrupted", settings=offloaded, steps=4)
    two_ranks.run(CASES + "save_checkpoint", run=str(tmp_path), settings=offloaded, steps=2)
    resumed = two_ranks.run(CASES + "continue_checkpoint", run=str(tmp_path), settings=offloaded, last=4)
    assert all(same(a["shard"], b["shard"]) for a, b in zip(whole, resumed, strict=True))


def test_two_engines_in_one_process_do_not_meet(two_ranks):
    pair = two_ranks.run(CASES + "two_engines", stages=(2, 3))[0]
    for seed, (stage, weights) in enumerate(zip((2, 3), pair, strict=True)):
        alone = two_ranks.run(CASES + "train", settings={"zero_stage": stage}, steps=4, seed=seed)[0]["weights"]
        assert same(weights, alone)


def test_default_persistence_and_activation_checkpointing_at_zero_3(two_ranks):
    usual = two_ranks.run(CASES + "train", settings={"zero_stage": 3}, steps=4)[0]["weights"]
    kept_whole = two_ranks.run(CASES + "train", settings={"zero_stage": 3, "deepspeed": {}}, steps=4)[0]["weights"]
    recomputed = two_ranks.run(CASES + "train", settings={"zero_stage": 3}, steps=4, activation_checkpointing=True)
    for other in (kept_whole, recomputed[0]["weights"]):
        for name in usual:
            assert torch.allclose(usual[name], other[name], rtol=1e-4, atol=1e-5) or name.endswith("k_proj.bias"), name


def test_three_ranks_share_unevenly(three_ranks):
    settings = {"zero_stage": 3, "optimizer": {"name": "sgd", "learning_rate": 0.3}}
    three = three_ranks.run(CASES + "train", settings=settings, steps=6)[0]["weights"]
    two = three_ranks.run(CASES + "train", settings={**settings, "zero_stage": 2}, steps=6)[0]["weights"]
    for name in three:
        assert torch.allclose(three[name], two[name], rtol=1e-5, atol=1e-6), name


def test_collectives(two_ranks):
    for result in two_ranks.run(CASES + "collectives"):
        assert result == {
            "sum": [3.0, 20.0],
            "any": (True, False),
            "first": {"rank": 0},
            "all": [(0, ""), (1, "x")],
        }
