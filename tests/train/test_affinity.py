"""Trainings that measure affinity: the file, the training that is as it would have been, going on, `mnmt probe affinity`."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mnmt_scale.cli.probe import lines_of_affinity
from mnmt_scale.engine.checkpoint import load_weights
from mnmt_scale.errors import MnmtError
from mnmt_scale.methods.affinity.method import Affinity
from mnmt_scale.probes import read_probe
from mnmt_scale.train.probe_affinity import probe_affinity, summarise
from mnmt_scale.train.train import train
from tests.support.ranks import launch
from tests.support.toy import load

SETTINGS = (
    "model.dropout=0.1",
    "engine.ema_decay=0.9",
    "method.affinity.held_tokens=80",
    "method.affinity.window_steps=4",
    "train.log_steps=1",
    "engine.checkpoint.every_steps=3",
)
PROBING = ("method.name=affinity", *SETTINGS)


def metrics(run, kind):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def probe_files(run):
    return sorted(p.name for p in (run / "probes").iterdir())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n].nan_to_num(-1.0), b[n].nan_to_num(-1.0)) for n in a)


def shard(run, step):
    """Masters, moments and moving averages."""
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "shard-00000-of-00001.safetensors")


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """Eight steps, four of them of one direction."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(load(toy, *PROBING), run, "never")
    return run


def test_the_file_of_a_training(whole):
    assert probe_files(whole) == ["affinity-step-000008.safetensors"], "only the newest is kept"
    file = read_probe(whole / "probes" / "affinity-step-000008.safetensors", "affinity")
    assert file.about["tasks"] == ["af-en", "de-en", "no-en"]
    assert file.about["windows"] == [[1, 4], [5, 8]]
    assert (file.about["step"], file.about["split"], file.about["rows"]) == (8, "train", "trained")
    count = file.tensors["count"].sum(dim=0)
    assert count[:, :2].sum(dim=0).tolist() == [4, 4], "each single step measures all directions"
    assert sorted(count[:, 0].tolist()) == [1, 1, 2], "three single steps hold each direction once"
    assert bool((file.tensors["mean"].sum(dim=0)[:, 0] > 0).all()), "the first steps of a model help every direction"
    assert [row["measured_steps"] for row in metrics(whole, "method")] == [1, 2, 3, 4]
    singles = [row["tasks"].keys() for row in metrics(whole, "train") if row["step"] % 2 == 0]
    assert all(len(tasks) == 1 for tasks in singles)


def test_the_training_is_left_as_it_would_have_been(whole, toy, tmp_path, monkeypatch):
    """The same batches without a lookahead: weights, moments and averages bit for bit, dropout and all."""
    monkeypatch.setattr(Affinity, "wants", lambda self, step: None)
    train(load(toy, *PROBING), tmp_path / "run", "never")
    assert not (tmp_path / "run" / "probes").exists()
    for step in (6, 8):
        left, right = shard(whole, step), shard(tmp_path / "run", step)
        assert any("exp_avg_sq" in name for name in left)
        assert same(left, right)
    keys = ("loss", "grad_norm", "tasks")
    rows = [[[row[key] for key in keys] for row in metrics(run, "train")] for run in (whole, tmp_path / "run")]
    assert rows[0] == rows[1]


def test_with_learning_rate_0_the_table_is_exactly_0(toy, tmp_path):
    config = load(toy, *PROBING, "train.max_steps=4")
    optimizer = config.engine.optimizer.model_copy(update={"learning_rate": 0.0})  # the settings refuse it
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"optimizer": optimizer})})
    train(config, tmp_path / "run", "never")
    tensors = read_probe(tmp_path / "run" / "probes" / "affinity-step-000004.safetensors").tensors
    assert tensors["count"].sum() >= 5
    assert not tensors["mean"].any()
    assert not tensors["variance"].nan_to_num(0.0).any()


def test_killed_and_resumed_gives_the_same_table(whole, toy, tmp_path):
    """Killed before step 7, its last checkpoint of step 6, in the middle of a window; then asked for again as a user would."""
    run = tmp_path / "run"
    options = [word for text in SETTINGS for word in ("--set", text)]
    arguments = ["probe", "affinity", str(toy / "toy.toml"), "--run-dir", str(run), *options]
    environment = {"MNMT_TESTING": "1", "MNMT_FAULT": "train.before_step:step=7:SIGKILL"}
    assert launch(1, "tests.support.tiny_run:mnmt", environment, arguments=arguments) == [-9]
    assert probe_files(run) == ["affinity-step-000004.safetensors"]
    resumed = dict(arguments=[*arguments, "--json"], output=str(tmp_path / "result.json"))
    assert launch(1, "tests.support.tiny_run:mnmt", **resumed) == [0]
    assert "resumed from step-000006" in (run / "log.txt").read_text()
    left, right = (read_probe(r / "probes" / "affinity-step-000008.safetensors") for r in (whole, run))
    assert same(left.tensors, right.tensors)
    assert left.about == right.about
    assert same(shard(whole, 8), shard(run, 8))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["file"] == str(run / "probes" / "affinity-step-000008.safetensors")
    assert (result["stopped"], result["step"]) == ("steps", 8)
    assert len(result["strongest"]) == min(5, result["beyond_standard_error"])


def files_of(run):
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "affinity-run" not in p.parts}


def test_a_run_goes_on_beside_itself(whole, toy, tmp_path):
    """Four steps, then four measured on: the steps that eight in one go have, with weights, moments and place in the data,
    and a table that begins where the run had come to."""
    run = tmp_path / "run"
    train(load(toy, *PROBING, "train.max_steps=4"), run, "never")
    before = files_of(run)
    found = probe_affinity(run, ["method.affinity.window_steps=4"], steps=4)
    assert found.path == run / "probes" / "affinity-step-000008.safetensors"
    after = files_of(run)
    assert {p: after[p] for p in before} == before
    assert set(after) - set(before) == {found.path}
    beside = run / "probes" / "affinity-run"
    assert same(shard(whole, 8), shard(beside, 8))
    table, long = read_probe(found.path), read_probe(whole / "probes" / "affinity-step-000008.safetensors")
    assert table.about["windows"] == [[5, 8]]
    assert same({"x": table.tensors["mean"][0]}, {"x": long.tensors["mean"][1]})
    assert table.about["tokens"] == long.about["tokens"], "those of the run included"
    # the run moves on; what was begun beside it does not, and goes on itself
    train(load(toy, *PROBING, "train.max_steps=5"), run)
    kept = sorted(file.stem[-6:] for file in (run / "probes").glob("*.safetensors"))
    assert kept == ["000005", "000008"], "its own older file is replaced, the later one from beside it is not"
    with pytest.raises(MnmtError, match=r"E405: affinity was measured from step 4 on, and the run stands at step 5 now"):
        probe_affinity(run, ["method.affinity.window_steps=4"], steps=6)
    again = probe_affinity(run, ["method.affinity.window_steps=4"], steps=6, resume="required")
    assert again.trained.steps == 10
    assert again.about["windows"] == [[5, 8], [9, 10]]
    anew = probe_affinity(run, steps=2, resume="never")
    assert anew.about["windows"] == [[6, 6]], "window_steps of a tenth of the two"


def test_a_joint_run_is_measured_with_its_own_settings(toy, tmp_path):
    run = tmp_path / "run"
    train(load(toy, *SETTINGS, "train.max_steps=3", "train.max_minutes=5", "train.patience=1"), run, "never")
    found = probe_affinity(run, ["method.affinity.estimate_every=1"], steps=5)
    assert found.trained.stopped == "steps"
    tensors = read_probe(found.path).tensors
    assert tensors["estimate_count"].sum(dim=0).unique().tolist() == [2], "steps 5 and 7; 4, 6 and 8 are single"
    assert tensors["count"].sum(dim=0)[:, 0].tolist() == [1, 1, 1]
    estimate = tensors["estimate"].sum(dim=0)
    assert torch.equal(estimate, estimate.T)
    assert bool((estimate.diagonal() > 0).all())


def test_an_update_that_was_skipped_is_not_measured(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("MNMT_TESTING", "1")
    monkeypatch.setenv("MNMT_FAULT", "train.loss:step=3:NAN")
    train(load(toy, *PROBING, "engine.on_nan=skip", "train.max_steps=6"), tmp_path / "run", "never")
    (name,) = probe_files(tmp_path / "run")
    counts = read_probe(tmp_path / "run" / "probes" / name).tensors["count"].sum(dim=0)
    assert counts[:, 0].sum() == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method.affinity.split=dev"], "E104.*no dev text of no-en"),
        (["method.affinity.affected=4"], "E104.*affected = 4, but there are 3"),
        (['data.tasks=["af-en"]'], "E104.*there is one"),
        (["batch.batch_tokens=3000"], "E104.*a step holds all training text of de-en, no-en:"),
        (["sampling.kind=fixed", 'sampling.weights={"af-en"=1.0,"de-en"=1.0}'], "E104.*no step would train no-en"),
        (
            ["method.affinity.estimate_every=2", "engine.optimizer.name=sgd", "engine.task_gradients.preconditioner=adam"],
            "E507.*sgd",
        ),
        (["method.affinity.estimate_every=2", "engine.task_gradients.route=off"], "E104.*estimate_every needs the gradients"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(toy, tmp_path, settings, words):
    with pytest.raises(MnmtError, match=words):
        train(load(toy, *PROBING, *settings), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_the_command_refuses(toy, whole, tmp_path):
    settings = toy / "toy.toml"
    with pytest.raises(MnmtError, match="E104.*joint or affinity, not cats"):
        probe_affinity(settings, ["method.name=cats"], run_dir=tmp_path / "x")
    with pytest.raises(MnmtError, match="E104.*--steps is for a run"):
        probe_affinity(settings, steps=3)
    with pytest.raises(MnmtError, match="E104.*--run-dir is for a settings file"):
        probe_affinity(whole, run_dir=tmp_path / "x")
    with pytest.raises(MnmtError, match="E407"):
        probe_affinity(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.toml").write_bytes((whole / "config.toml").read_bytes())
    with pytest.raises(MnmtError, match="E403.*no checkpoint"):
        probe_affinity(tmp_path / "bare")
    with pytest.raises(MnmtError, match="E403"):
        probe_affinity(whole, steps=2, resume="required")
    assert load_weights(whole, "last")


def test_the_summary_counts_pairs_beyond_their_standard_error():
    count = torch.full((1, 2, 2), 4.0, dtype=torch.float64)
    mean = torch.tensor([[[9.0, 0.5], [0.2, -9.0]]], dtype=torch.float64)
    variance = torch.full((1, 2, 2), 0.64, dtype=torch.float64)  # standard error 0.4
    found = summarise({"count": count, "mean": mean, "variance": variance}, ["a-b", "a-c"])
    assert found["counts"] == [4, 4]
    assert (found["mean_on_itself"], found["mean_on_others"]) == (0.0, pytest.approx(0.35))
    assert (found["cells_on_others"], found["beyond_standard_error"]) == (2, 1)
    assert found["strongest"] == [["a-b", "a-c", 0.5, pytest.approx(0.4)]]


def test_the_summary_as_text():
    summary = {
        "counts": [3, 5],
        "mean_on_itself": 0.5,
        "mean_on_others": -0.25,
        "cells_on_others": 6,
        "beyond_standard_error": 1,
        "strongest": [["en-de", "en-fr", 0.125, 0.01]],
    }
    first, header, row = lines_of_affinity(summary)
    assert first.startswith(
        "3 to 5 measurements of each pair; mean affinity 0.5 of a direction on itself, -0.25 on others; 1 of 6"
    )
    assert header.split() == ["trained", "affected", "affinity", "+-"]
    assert row.split() == ["en-de", "en-fr", "0.125", "0.01"]
    assert lines_of_affinity({}) == []
