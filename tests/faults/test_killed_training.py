"""``mnmt train`` as real processes that get real signals: what is resumed equals what was never interrupted."""

from __future__ import annotations

import json

import pytest
import torch

from mnmt_scale.engine import checkpoint
from tests.support.ranks import launch
from tests.support.tiny_run import make_store


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


def train(config, run, *more, fault=None, size=2):
    environment = {"MNMT_TESTING": "1", "MNMT_FAULT": fault} if fault else {}
    arguments = ["train", str(config), "--run-dir", str(run), *more]
    return launch(size, "tests.support.tiny_run:mnmt", environment, arguments=arguments)


def files_of(run):
    return {f.name: f.sha256 for f in checkpoint.newest(run).files}


def losses_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: (r["loss"], r["grad_norm"], r["tasks"]) for r in rows if r["kind"] == "train"}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_killed_and_resumed_equals_uninterrupted(config, tmp_path, stage):
    settings = ["--set", f"engine.zero_stage={stage}"]
    assert train(config, tmp_path / "whole", *settings) == [0, 0]
    codes = train(config, tmp_path / "killed", *settings, fault="train.before_step:rank=1:step=4:SIGKILL")
    assert codes[1] == -9
    assert codes[0] not in (0, -9), "rank 0 must notice by itself"
    assert checkpoint.newest(tmp_path / "killed").step == 3
    assert train(config, tmp_path / "killed", *settings, "--resume", "required") == [0, 0]
    assert checkpoint.newest(tmp_path / "whole").step == 6
    # Weights, averages, moments and masters of both ranks, position in the data, progress: every file, bit for bit.
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "killed")
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "killed")


def test_sigterm_finishes_the_step_saves_and_asks_to_be_started_again(config, tmp_path):
    codes = train(config, tmp_path / "run", fault="train.before_step:rank=1:step=1:SIGTERM")
    assert codes == [75, 75]
    assert checkpoint.newest(tmp_path / "run").step < 6
    assert train(config, tmp_path / "run", "--resume", "required") == [0, 0]
    assert train(config, tmp_path / "whole") == [0, 0]
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "run")


def test_resumed_on_one_rank_at_another_stage_it_sees_the_same_sentences(config, tmp_path):
    still = ["--set", "model.dropout=0.0"]
    assert train(config, tmp_path / "run", *still, "--set", "train.max_steps=3") == [0, 0]
    assert train(config, tmp_path / "run", *still, "--set", "engine.zero_stage=3", "--resume", "required", size=1) == [0]
    assert train(config, tmp_path / "whole", *still) == [0, 0]
    assert checkpoint.newest(tmp_path / "run").manifest["world_size"] == 1
    ours, truth = (checkpoint.load_weights(tmp_path / name, "last") for name in ("run", "whole"))
    for name in truth:
        if not name.endswith("k_proj.bias"):  # no gradient but rounding noise, along which Adam walks
            assert torch.allclose(ours[name], truth[name], rtol=1e-4, atol=1e-6), name


def test_nan_stops_both_ranks_and_writes_the_batch_down(config, tmp_path):
    codes = train(config, tmp_path / "run", fault="train.loss:rank=1:step=4:NAN")
    assert codes == [2, 2]
    assert checkpoint.newest(tmp_path / "run").step == 3
    for rank in (0, 1):
        record = json.loads((tmp_path / "run" / "bad_batches" / f"step-000005.rank-{rank}.json").read_text())
        assert record[0]["sentences"]
