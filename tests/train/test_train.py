"""A training from settings to a finished run directory, and all that may come between."""

import json
import math

import pytest
import torch

from mnmt_scale.engine.checkpoint import load_weights
from mnmt_scale.errors import MnmtError
from mnmt_scale.runs import open_run
from mnmt_scale.train.loop import REQUEUE_EXIT_CODE
from mnmt_scale.train.train import train
from tests.support.toy import load, mnmt


def metrics(run, kind=None):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if kind in (None, row["kind"])]


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    return train(load(toy), run, "never")


def test_run_directory_holds_what_later_stages_read(finished):
    run = finished.run
    for name in ("config.toml", "environment.json", "metrics.jsonl", "log.txt", "tokenizer.model", "tensorboard"):
        assert (run / name).exists(), name
    assert (finished.steps, finished.stopped) == (8, "steps")
    assert (run / "checkpoints" / "latest").read_text().strip() == "step-000008"
    opened = open_run(run)
    assert opened.tasks.names == ["af-en", "de-en", "no-en"]
    assert not opened.model.training


def test_metrics_have_plan_steps_validations_and_checkpoints(finished):
    run = finished.run
    (plan,) = metrics(run, "plan")
    assert [row["name"] for row in plan["tasks"]] == ["af-en", "de-en", "no-en"]
    assert math.isclose(sum(row["share"] for row in plan["tasks"]), 1.0)
    assert [row["step"] for row in metrics(run, "train")] == [2, 4, 6, 8]
    assert [row["step"] for row in metrics(run, "valid")] == [4, 8]
    assert {row["step"] for row in metrics(run, "checkpoint")} == {4, 8}
    last = metrics(run, "train")[-1]
    assert (
        last["tokens"]
        == finished.tokens
        == sum(task["tokens"] for row in metrics(run, "train") for task in row["tasks"].values())
    )
    assert last["loss"] < metrics(run, "train")[0]["loss"]


def test_pair_without_dev_is_left_out_of_validation(finished):
    assert set(metrics(finished.run, "valid")[0]["tasks"]) == {"af-en", "de-en"}


def test_validation_loss_is_the_token_mean_of_the_dev_sets(finished):
    row = metrics(finished.run, "valid")[-1]
    tokens = sum(task["tokens"] for task in row["tasks"].values())
    mean = sum(task["nll"] * task["tokens"] for task in row["tasks"].values()) / tokens
    assert row["loss"] == pytest.approx(mean)


def test_resumed_run_equals_an_uninterrupted_one(toy, tmp_path, finished):
    run = tmp_path / "run"
    first = train(load(toy, "train.max_minutes=1e-6"), run, "auto")  # the first step is already past its time
    assert (first.steps, first.stopped) == (1, "minutes")
    second = train(load(toy), run, "required")
    assert second.steps == 8
    assert [row["step"] for row in metrics(run, "train")] == [1, 2, 4, 6, 8]  # what was done is logged before it stops
    assert second.tokens == finished.tokens
    whole, parts = load_weights(finished.run, "last"), load_weights(run, "last")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_required_resume_without_a_checkpoint_is_refused(toy, tmp_path):
    with pytest.raises(MnmtError, match="E403"):
        train(load(toy), tmp_path / "run", "required")


def test_resume_with_other_directions_is_refused(toy, tmp_path):
    run = tmp_path / "run"
    train(load(toy, "train.max_steps=4"), run)
    with pytest.raises(MnmtError, match=r"E405.*de-en"):
        train(load(toy, 'data.tasks=["af-en"]'), run)


def test_refused_resume_leaves_the_run_as_it_was(toy, tmp_path):
    run = tmp_path / "run"
    train(load(toy, "train.max_steps=4"), run)
    before = (run / "config.toml").read_text()
    with pytest.raises(MnmtError, match="E405"):
        train(load(toy, "model.d_ffn=64"), run)
    assert (run / "config.toml").read_text() == before
    open_run(run)


def test_last_checkpoint_that_fails_is_an_error_whatever_the_policy(toy, tmp_path):
    fault = {"MNMT_TESTING": "1", "MNMT_FAULT": "save.write_shard:ENOSPC"}
    policy = ["--set", "engine.checkpoint.on_save_error=continue", "--set", "train.validate_steps=100"]
    failed = mnmt("train", toy / "toy.toml", "--run-dir", tmp_path / "run", *policy, **fault)
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1].startswith("MNMT-E406")


def test_finished_run_stays_finished(toy, tmp_path):
    still = ["engine.optimizer.learning_rate=1e-12", "train.validate_steps=1", "train.patience=2", "train.max_steps=50"]
    first = train(load(toy, *still), tmp_path / "run")
    again = train(load(toy, *still), tmp_path / "run")
    assert (again.steps, again.stopped) == (first.steps, "patience")


def test_patience_stops_and_saves(toy, tmp_path):
    config = load(
        toy, "engine.optimizer.learning_rate=1e-12", "train.validate_steps=1", "train.patience=2", "train.max_steps=50"
    )
    result = train(config, tmp_path / "run")
    assert result.stopped == "patience"
    assert json.loads((tmp_path / "run" / "training.json").read_text())["stopped"] == "patience"
    assert result.steps < 50
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().strip() == f"step-{result.steps:06d}"


def test_init_from_starts_with_the_other_runs_weights(toy, tmp_path, finished):
    config = load(toy, f"train.init_from={finished.run}", "train.max_steps=1", "engine.optimizer.learning_rate=1e-12")
    train(config, tmp_path / "run")
    ours, theirs = load_weights(tmp_path / "run", "last"), load_weights(finished.run, "best")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_ema_is_saved_beside_the_weights(toy, tmp_path):
    run = tmp_path / "run"
    train(load(toy, "engine.ema_decay=0.5"), run)
    average, last = load_weights(run, "ema"), load_weights(run, "last")
    assert any(not torch.equal(average[name], last[name]) for name in last)


def test_profile_window_writes_a_trace(toy, tmp_path):
    train(load(toy, "train.max_steps=3"), tmp_path / "run", profile="2-3")
    trace = tmp_path / "run" / "profile" / "steps-2-3.rank-0.json"
    assert "traceEvents" in json.loads(trace.read_text())
    assert "aten::" in trace.with_suffix(".txt").read_text()


@pytest.mark.parametrize("window", ["3-2", "a", "0-4", "1-2-3"])
def test_impossible_profile_window_is_refused(toy, tmp_path, window):
    with pytest.raises(MnmtError, match="E102"):
        train(load(toy), tmp_path / "run", profile=window)


def test_nan_stops_before_the_update_and_names_the_sentences(toy, tmp_path):
    run = tmp_path / "run"
    fault = {"MNMT_TESTING": "1", "MNMT_FAULT": "train.loss:step=5:NAN"}
    failed = mnmt("train", toy / "toy.toml", "--run-dir", run, **fault)
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1].startswith("MNMT-E501")
    (record,) = (run / "bad_batches").iterdir()
    sentences = json.loads(record.read_text())[0]["sentences"]
    assert {s["task"] for s in sentences} <= {"af-en", "de-en", "no-en"}
    assert len(sentences) > 1
    assert (run / "checkpoints" / "latest").read_text().strip() == "step-000004"


def test_nan_may_be_skipped(toy, tmp_path):
    run = tmp_path / "run"
    fault = {"MNMT_TESTING": "1", "MNMT_FAULT": "train.loss:step=5:NAN"}
    done = mnmt("train", toy / "toy.toml", "--run-dir", run, "--set", "engine.on_nan=skip", "--json", **fault)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 8
    assert [row["step"] for row in metrics(run, "event")] == [6]


def test_signal_saves_and_asks_to_be_started_again(toy, tmp_path, finished):
    run = tmp_path / "run"
    fault = {"MNMT_TESTING": "1", "MNMT_FAULT": "train.before_step:step=5:SIGTERM"}
    stopped = mnmt("train", toy / "toy.toml", "--run-dir", run, **fault)
    assert stopped.returncode == REQUEUE_EXIT_CODE, stopped.stderr
    assert not (run / "training.json").exists()
    assert (run / "checkpoints" / "latest").read_text().strip() == "step-000006"
    done = mnmt("train", toy / "toy.toml", "--run-dir", run, "--resume", "required")
    assert done.returncode == 0, done.stderr
    whole, parts = load_weights(finished.run, "last"), load_weights(run, "last")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
