"""Every method in a whole training: what it logs, what it resumes from, what is refused, what a NaN does."""

import json
import math

import pytest
import torch

from mnmt_scale.engine.checkpoint import load_weights
from mnmt_scale.errors import MnmtError
from mnmt_scale.train.train import train
from tests.support.toy import load, mnmt

EVERY_STEP = "method.cats.schedule=[{from_step=0,every=1}]"
METHODS = {
    "cats": [EVERY_STEP],
    "gradnorm": [],
    "gramian": ["method.gramian.weighting=MGDA"],  # UPGrad weighs tasks without conflicts alike
    "lagged": ["method.gramian.weighting=MGDA", "method.gramian.weights=lagged", "method.gramian.every=2"],
    "multidds": ["method.multidds.every_steps=3"],
    "ftac": ['method.ftac.tasks=["af-en"]', "method.ftac.epoch_sentences=15"],
    "chi_ibr": ["method.chi_ibr.every_steps=2", "method.chi_ibr.warmup_steps=1"],
}


def settings_of(method):
    return [f"method.name={'gramian' if method == 'lagged' else method}", *METHODS[method], "train.log_steps=1"]


def metrics(run, kind):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.fixture(scope="module", params=list(METHODS))
def trained(request, toy, tmp_path_factory):
    if request.param in ("gramian", "lagged"):
        pytest.importorskip("torchjd")
    run = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, train(load(toy, *settings_of(request.param)), run, "never")


def test_weights_are_logged_by_direction(trained):
    method, result = trained
    lines = metrics(result.run, "method")
    assert lines
    assert {line["name"] for line in lines} == {{"gramian": "MGDA", "lagged": "MGDA (lagged)"}.get(method, method)}
    for line in lines:
        assert set(line["weights"]) == {"af-en", "de-en", "no-en"}
        assert all(math.isfinite(w) and w >= 0 for w in line["weights"].values())
    assert lines[0]["weights"] != lines[-1]["weights"], "nothing was learnt about the tasks"


def test_resumed_training_equals_an_uninterrupted_one(trained, toy, tmp_path):
    method, whole = trained
    first = train(load(toy, *settings_of(method), "train.max_steps=5"), tmp_path / "run")
    assert first.steps == 5
    train(load(toy, *settings_of(method)), tmp_path / "run", "required")
    left, right = load_weights(whole.run, "last"), load_weights(tmp_path / "run", "last")
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert metrics(whole.run, "method")[-1]["weights"] == metrics(tmp_path / "run", "method")[-1]["weights"]


def test_samplers_change_what_is_sampled(toy, tmp_path):
    result = train(load(toy, *settings_of("chi_ibr"), "train.max_steps=8"), tmp_path / "run")
    state = json.loads((result.run / "checkpoints" / "step-000008" / "state.json").read_text())
    shares = json.dumps(state)
    assert '"shares": [' in shares, "the stream must hold the method's shares"


def test_norms_without_parameters_work_with_cats(toy, tmp_path):
    result = train(load(toy, *settings_of("cats"), "model.norm_affine=false", "train.max_steps=3"), tmp_path / "run")
    assert result.steps == 3


def test_more_tasks_a_step_than_there_are_is_refused(toy, tmp_path):
    with pytest.raises(MnmtError, match=r"E104.*tasks_per_batch = 4.*3 directions"):
        train(load(toy, *settings_of("cats"), "sampling.tasks_per_batch=4"), tmp_path / "run")


@pytest.mark.parametrize("method", ["cats", "gradnorm", "gramian", "multidds"])
def test_method_that_needs_gradients_where_they_are_off_is_refused(toy, method):
    with pytest.raises(MnmtError, match=rf"E104.*{method}"):
        load(toy, *settings_of(method), "engine.task_gradients.route=off")


def test_probes_where_gradients_are_off_are_refused(toy):
    with pytest.raises(MnmtError, match="E104.*probe"):
        load(toy, "probe.gradients_every=5", "engine.task_gradients.route=off")


def test_current_weights_of_a_partial_gram_are_refused(toy):
    more = ["engine.task_gradients.gram_over=microbatch", "batch.accumulation=2"]
    with pytest.raises(MnmtError, match="E104.*gram_over"):
        load(toy, *settings_of("gramian"), *more)
    load(toy, *settings_of("lagged"), *more)


def test_checkpoint_of_another_method_is_refused(toy, tmp_path):
    train(load(toy, *settings_of("cats"), "train.max_steps=4"), tmp_path / "run")
    for other in ("gradnorm", "chi_ibr"):
        with pytest.raises(MnmtError, match=rf"E405: method cats in the checkpoint and {other} in this run"):
            train(load(toy, *settings_of(other)), tmp_path / "run", "required")
    with pytest.raises(MnmtError, match="E405: method cats in the checkpoint and joint in this run"):
        train(load(toy), tmp_path / "run", "required")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["probe.gradients_every=6", 'probe.directions=["xx-en"]'], "E105.*'xx-en'"),
        (["probe.gradients_every=6", "probe.split=dev", 'probe.directions=["no-en"]'], "E105.*no-en has no dev"),
        (["probe.curvature_every=6", "engine.zero_stage=3", "engine.dtype=bf16"], "E507.*bfloat16"),
        (["probe.gradients_every=6", "engine.optimizer.name=sgd", "engine.task_gradients.preconditioner=adam"], "E507.*sgd"),
    ],
)
def test_probes_that_cannot_work_are_refused_before_the_first_step(toy, tmp_path, settings, words):
    with pytest.raises(MnmtError, match=words):
        train(load(toy, *settings), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_training_that_came_to_its_end_says_so_and_one_that_goes_on_does_not(toy, tmp_path, monkeypatch):
    run = tmp_path / "run"
    result = train(load(toy, "train.max_steps=2"), run)
    assert json.loads((run / "training.json").read_text()) == {
        "run": str(run), "steps": 2, "target_tokens": result.tokens, "best_nll": result.best_nll, "stopped": "steps"
    }  # fmt: skip
    monkeypatch.setenv("MNMT_TESTING", "1")
    monkeypatch.setenv("MNMT_FAULT", "train.loss:step=3:NAN")
    longer = load(toy, "train.max_steps=6")
    for resume in ("auto", "never"):  # one that goes on, or begins anew, has no end until it comes to one
        (run / "training.json").write_text('{"stopped": "steps"}')
        with pytest.raises(MnmtError, match="E501"):
            train(longer, run, resume)
        assert not (run / "training.json").exists(), resume


NAN = {"MNMT_TESTING": "1", "MNMT_FAULT": "train.loss:step=4:NAN"}


def run_with_nan(toy, run, *more):
    overrides = [word for setting in (*settings_of("cats"), *more) for word in ("--set", setting)]
    return mnmt("train", toy / "toy.toml", "--run-dir", run, *overrides, **NAN)


def test_observation_that_is_not_finite_is_left_out_and_training_goes_on(toy, tmp_path):
    run = tmp_path / "run"
    done = run_with_nan(toy, run)
    assert done.returncode == 0, done.stderr
    texts = [row["text"] for row in metrics(run, "event") if row["step"] == 5]
    assert any("observation left out (1 so far)" in text for text in texts)
    assert any("update skipped" in text for text in texts)
    assert (run / "bad_batches").is_dir()
    lines = {line["step"]: line["weights"] for line in metrics(run, "method")}
    assert 5 not in lines
    assert set(lines) == {1, 2, 3, 4, 6, 7, 8}


def test_the_bound_of_observations_is_not_that_of_updates(toy, tmp_path):
    """``engine.max_skips`` is about updates without an observation."""
    done = run_with_nan(toy, tmp_path / "run", "engine.max_skips=0")
    assert done.returncode == 0, done.stderr


def test_too_many_of_them_stop_the_training(toy, tmp_path):
    failed = run_with_nan(toy, tmp_path / "run", "engine.task_gradients.max_bad=0")
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1].startswith("MNMT-E505")
