"""Reading run directories: whole, partial and damaged ones."""

from __future__ import annotations

import json

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.report.read import drawn_tokens, read_run, read_runs, resource_class, series, task_series
from tests.support.fake_run import directions, fake_run


def test_a_whole_run(tmp_path):
    run = read_run(fake_run(tmp_path / "run", 6))
    assert run.name == "fake"
    assert run.tasks == directions(6)
    assert run.sentences["al-en"] == 1_584_893
    assert sum(run.shares.values()) == pytest.approx(1)
    assert [row["step"] for row in run.train] == list(range(50, 1001, 50))
    assert [row["step"] for row in run.valid] == [250, 500, 750, 1000]
    assert run.events[0]["text"].startswith("update skipped")
    assert set(run.evaluations) == {"test"}
    assert run.missing == []


def test_resource_classes_follow_the_settings_of_the_run(tmp_path):
    bounds = {"evaluation": {"low_below": 1000, "high_from": 5000}}
    run = read_run(fake_run(tmp_path / "run", 4, settings=bounds))  # 1584893, 73564, 3414, 158 sentences
    assert [resource_class(run, task) for task in run.tasks] == ["high", "high", "medium", "low"]
    default = read_run(fake_run(tmp_path / "other", 4))
    assert [resource_class(default, task) for task in default.tasks] == ["high", "low", "low", "low"]
    assert resource_class(default, "xx-en") is None


def test_resource_classes_that_the_settings_name_go_before_sizes(tmp_path):
    classes = {"evaluation": {"classes": {"low": ["al", "xx"], "high": ["ar-en"]}}}
    run = read_run(fake_run(tmp_path / "run", 4, settings=classes))
    assert [resource_class(run, task) for task in run.tasks] == ["low", "high", "low", "low"]
    assert resource_class(run, "en-xx") == "low"  # no size, but named
    assert resource_class(run, "yy-en") is None
    both = read_run(fake_run(tmp_path / "both", 2, settings={"evaluation": {"classes": {"low": ["al"], "high": ["al-en"]}}}))
    assert resource_class(both, "al-en") is None
    assert resource_class(both, "no direction") is None


@pytest.mark.parametrize("evaluation", ["x", {"low_below": "many"}, {"classes": {"tiny": ["al"]}}])
def test_class_settings_of_another_version_do_no_harm(tmp_path, evaluation):
    run = read_run(fake_run(tmp_path / "run", 2, settings={"evaluation": evaluation}))
    assert resource_class(run, "al-en") == "high"


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (None, "joint"),
        ({"name": "gramian"}, "UPGrad"),
        ({"name": "gramian", "gramian": {"weighting": "MGDA", "weights": "lagged"}}, "MGDA (lagged)"),
        ({"name": "gramian", "gramian": {"weighting": "not there"}}, "gramian"),
        ("cats", "unknown"),
    ],
)
def test_what_a_method_is_called(tmp_path, method, name):
    run = read_run(fake_run(tmp_path / "run", 2, settings={} if method is None else {"method": method}))
    assert run.method == name


def write_metrics(path, *lines):
    path.joinpath("metrics.jsonl").write_text("".join(line + "\n" for line in lines))


def test_series_leave_out_what_is_absent_or_not_finite(tmp_path):
    path = fake_run(tmp_path / "run", 2)
    write_metrics(
        path,
        '{"kind": "train", "step": 1, "loss": 3.0, "tasks": {"al-en": {"nll": 2.5, "tokens": 10}}}',
        '{"kind": "train", "step": 2, "loss": NaN, "tasks": {}}',
        '{"kind": "train", "step": 3, "loss": null}',
        '{"kind": "train", "step": 4, "loss": 1.0, "tasks": {"al-en": {"nll": 1.5, "tokens": 5}, "ar-en": {"nll": 9}}}',
    )
    run = read_run(path)
    assert series(run.train, "loss") == [(1, 3.0), (4, 1.0)]
    assert task_series(run.train, "al-en", "nll") == [(1, 2.5), (4, 1.5)]
    assert drawn_tokens(run) == {"al-en": 15, "ar-en": 0}


def test_the_later_line_of_a_step_wins_and_half_a_line_is_said(tmp_path):
    path = fake_run(tmp_path / "run", 2)
    lines = [json.dumps({"kind": "train", "step": step, "loss": loss}) for step, loss in ((20, 2.0), (10, 3.0), (20, 1.5))]
    write_metrics(path, *lines, '{"kind": "train", "st')
    run = read_run(path)
    assert series(run.train, "loss") == [(10, 3.0), (20, 1.5)]
    assert any("1 line(s) of metrics.jsonl" in line for line in run.missing)


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("plan", "No plan"),
        ("train", "No training"),
        ("valid", "No validation"),
        ("eval", "No evaluation"),
        ("environment", "No env"),
    ],
)
def test_what_is_missing_is_said(tmp_path, left_out, said):
    run = read_run(fake_run(tmp_path / "run", 3, without=(left_out,)))
    assert [line for line in run.missing if line.startswith(said)], run.missing
    assert len(run.missing) == 1


def test_damaged_evaluation_is_left_out_and_said(tmp_path):
    path = fake_run(tmp_path / "run", 3)
    (path / "eval" / "dev.json").write_text("{")
    run = read_run(path)
    assert set(run.evaluations) == {"test"}
    assert run.missing == ["dev.json is not JSON and left out."]


def test_names_are_made_unique(tmp_path):
    paths = [fake_run(tmp_path / "x" / name, 1, name="same") for name in ("a", "b")]
    paths += [fake_run(tmp_path / "y" / name, 1, name="same") for name in ("b",)]
    names = [run.name for run in read_runs(paths)]
    assert len(set(names)) == 3
    assert names[0] == "a"


def test_not_a_run_directory_names_the_nearest(tmp_path):
    fake_run(tmp_path / "first", 1)
    with pytest.raises(MnmtError, match="did you mean 'first'") as caught:
        read_run(tmp_path / "frist")
    assert caught.value.code == "E407"
