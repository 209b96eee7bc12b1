"""A resumed run is the uninterrupted run; other layouts are converted, other models refused."""

from __future__ import annotations

import json

import pytest
import torch

from mnmt_scale.engine.checkpoint import load_weights

CASES = "tests.support.engine_cases:"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_half_and_half_equals_whole_bitwise(two_ranks, tmp_path, stage, dtype):
    common = {"settings": {"zero_stage": stage, "dtype": dtype, "ema_decay": 0.9, "clip_norm": 0.5}, "dropout": 0.1}
    whole = two_ranks.run(CASES + "uninterrupted", steps=8, **common)
    first = two_ranks.run(CASES + "save_checkpoint", run=str(tmp_path), steps=4, **common)
    second = two_ranks.run(CASES + "continue_checkpoint", run=str(tmp_path), last=8, **common)
    assert same(first[0]["weights"], second[0]["loaded"])
    for a, b in zip(whole, second, strict=True):
        assert a["rows"][4:] == b["rows"], "loss, norm and rate of every step"
        assert any(k.startswith("exp_avg_sq/") for k in a["shard"])
        assert same(a["shard"], b["shard"]), "masters, moments and averages of each rank"
    assert same(whole[0]["weights"], second[0]["weights"])
    assert same(load_weights(tmp_path, "last"), first[0]["weights"])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"zero_stage": 1}, {"zero_stage": 3}),
        ({"zero_stage": 3}, {"zero_stage": 2, "dtype": "bf16"}),
        ({"zero_stage": 1, "dtype": "bf16"}, {"zero_stage": 2}),
    ],
)
def test_another_stage_or_dtype_is_converted_exactly(two_ranks, tmp_path, written, read):
    then = two_ranks.run(CASES + "saved_state", run=str(tmp_path), settings={**written, "ema_decay": 0.9}, steps=3)
    now = two_ranks.run(CASES + "loaded_state", run=str(tmp_path), settings={**read, "ema_decay": 0.9})
    assert any(k.startswith("exp_avg/") for k in then[0])
    assert same(then[0], now[0]["state"])


@pytest.mark.parametrize(("written", "read"), [(1, 1), (3, 3), (2, 3)])
def test_another_number_of_ranks_is_converted_exactly(one_rank, two_ranks, three_ranks, tmp_path, written, read):
    then = two_ranks.run(CASES + "saved_state", run=str(tmp_path), settings={"zero_stage": written}, steps=3)[0]
    for pool in (one_rank, three_ranks):
        now = pool.run(CASES + "loaded_state", run=str(tmp_path), settings={"zero_stage": read}, more=2)
        assert same(then, now[0]["state"])
        assert now[0]["steps"] == 5
        losses = [sum(r["rows"][i]["loss"] for r in now) for i in range(2)]
        kept = two_ranks.run(CASES + "loaded_state", run=str(tmp_path), settings={"zero_stage": written}, more=2)
        assert losses == pytest.approx([sum(r["rows"][i]["loss"] for r in kept) for i in range(2)], rel=1e-5)


def test_what_does_not_fit_is_refused_with_both_values(two_ranks, tmp_path):
    two_ranks.run(CASES + "saved_state", run=str(tmp_path), settings={}, steps=1)
    (code, text), other = two_ranks.run(CASES + "refused", run=str(tmp_path), settings={}, d_ffn=48)
    assert code == "E405"
    assert "fc1" in text
    assert "[32" in text
    assert "[48" in text
    assert other == (code, text)
    code, text = two_ranks.run(CASES + "refused", run=str(tmp_path), settings={"optimizer": {"name": "sgd"}})[0]
    assert code == "E405"
    assert "optimizer adam in the checkpoint and sgd in this run" in text


def test_sgd_without_momentum_has_no_moments_and_resumes(two_ranks, tmp_path):
    settings = {"zero_stage": 2, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
    whole = two_ranks.run(CASES + "uninterrupted", settings=settings, steps=4)
    two_ranks.run(CASES + "save_checkpoint", run=str(tmp_path), settings=settings, steps=2)
    second = two_ranks.run(CASES + "continue_checkpoint", run=str(tmp_path), settings=settings, last=4)
    assert all(same(a["shard"], b["shard"]) for a, b in zip(whole, second, strict=True))


def test_turning_the_average_on_at_a_resume_starts_it_from_the_weights(two_ranks, tmp_path):
    two_ranks.run(CASES + "saved_state", run=str(tmp_path), settings={}, steps=2)
    state = two_ranks.run(CASES + "loaded_state", run=str(tmp_path), settings={"ema_decay": 0.9})[0]["state"]
    assert torch.equal(state["ema/shared.weight"], state["weight/shared.weight"])


def test_modes(two_ranks, tmp_path):
    assert two_ranks.run(CASES + "refused", run=str(tmp_path), settings={})[0][0] == "E403"
    fresh = two_ranks.run(CASES + "continue_checkpoint", run=str(tmp_path), settings={}, last=1, mode="auto")
    assert fresh[0]["state"] is None
    two_ranks.run(CASES + "saved_state", run=str(tmp_path), settings={}, steps=2)
    found = two_ranks.run(CASES + "continue_checkpoint", run=str(tmp_path), settings={}, last=2, mode="auto")
    assert [r["state"] for r in found] == [{"next": 2}, {"next": 2}]
    never = two_ranks.run(CASES + "continue_checkpoint", run=str(tmp_path), settings={}, last=1, mode="never")
    assert never[0]["state"] is None
    aside = [p for p in tmp_path.iterdir() if p.name.startswith("checkpoints.before-")]
    assert len(aside) == 1, "what lay there is moved aside, not lost"
    assert (aside[0] / "step-000002" / "manifest.json").is_file()


def test_retention_pointers_and_the_ways_to_ask_for_weights(two_ranks, tmp_path):
    metrics = [3.0, 1.0, 2.0, None, 2.5]
    keep = {"keep_last": 2, "keep_best": 2}
    weights = two_ranks.run(
        CASES + "several_saves", run=str(tmp_path), settings={"ema_decay": 0.5}, metrics=metrics, keep=keep
    )[0]
    root = tmp_path / "checkpoints"
    assert sorted(p.name for p in root.iterdir()) == ["best", "latest"] + [f"step-{s:06d}" for s in (2, 3, 4, 5)]
    assert (root / "latest").read_text() == "step-000005\n"
    assert (root / "best").read_text() == "step-000002\n"
    assert same(load_weights(tmp_path, "best"), weights[1])
    assert same(load_weights(tmp_path, "last"), weights[4])
    assert same(load_weights(tmp_path, "step-4"), weights[3])
    assert same(load_weights(tmp_path, "step-000004"), weights[3])
    for which, count, members in (("average", 3, (2, 3, 4)), ("average_best", 2, (1, 2))):
        mean = load_weights(tmp_path, which, count)
        for name in mean:
            truth = torch.stack([weights[i][name] for i in members]).double().mean(0)
            assert torch.allclose(mean[name].double(), truth, rtol=1e-6, atol=1e-8)
    assert not same(load_weights(tmp_path, "ema"), weights[1])
    manifest = json.loads((root / "step-000005" / "manifest.json").read_text())
    assert manifest["metric"] == 2.5
    assert (manifest["world_size"], manifest["zero_stage"], manifest["dtype"]) == (2, 1, "float32")
    assert {"torch", "deepspeed"} <= manifest["packages"].keys()
