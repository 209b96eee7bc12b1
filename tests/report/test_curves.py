"""What the curves of the report are made of: means, tokens, scales and labels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mnmt_scale.report.canvas import held_mean
from mnmt_scale.report.labels import spread_labels
from mnmt_scale.report.page import as_json
from mnmt_scale.report.plots_curvature import eigenvalue_curves, median_curve
from mnmt_scale.report.plots_losses import against_tokens
from mnmt_scale.report.read import read_run, read_runs
from tests.support.fake_measured import measured_run
from tests.support.fake_run import directions


def test_tokens_to_a_loss_that_all_runs_reach(tmp_path):
    paths = [measured_run(tmp_path / name, 6, name=name, gain=gain, steps=2000) for name, gain in (("a", 0.0), ("b", 6.0))]
    whole = as_json(read_runs(paths))
    row = whole["tokens_to_reach"][0]
    dev = [{line["step"]: line["loss"] for line in run["valid"]} for run in whole["runs"]]
    assert row["nll"] == pytest.approx(min(dev[0].values()))
    tokens = {line["step"]: line["tokens"] for line in whole["runs"][0]["train"]}
    first = next(step for step, loss in dev[1].items() if loss <= row["nll"])
    assert row["tokens"] == [tokens[min(dev[0], key=dev[0].get)], tokens[first]]
    assert row["tokens"][1] < row["tokens"][0]


def test_dev_losses_against_tokens_lie_between_logged_steps(tmp_path):
    run = read_run(measured_run(tmp_path / "run", 2))
    run.train = [{"step": 100, "tokens": 1000}, {"step": 200, "tokens": 4000}]
    points = [(0, 9.0), (50, 8.0), (100, 7.0), (150, 6.0), (200, 5.0), (250, 4.0)]
    assert against_tokens(run, points) == [(0, 9.0), (500, 8.0), (1000, 7.0), (2500, 6.0), (4000, 5.0)]
    run.train = []
    assert against_tokens(run, points) == []


def test_means_hold_what_a_direction_had_last():
    curves = [[(1, 2.0), (3, 4.0)], [(2, 6.0)], [(3, 9.0)]]
    assert held_mean(curves) == [(2, 4.0), (3, 19.0 / 3)]
    assert held_mean([]) == []
    assert median_curve([[(1, 1.0), (2, -5.0)], [(1, 9.0)], [(1, 2.0)]]) == [(1, 2.0), (2, -5.0)]


def test_labels_are_moved_apart_in_order():
    places = spread_labels([0.5, 0.5, 0.9, 0.52], 0.1)
    assert places == pytest.approx([0.5 + 0.02 / 3 - 0.1, 0.5 + 0.02 / 3, 0.9, 0.5 + 0.02 / 3 + 0.1])
    assert spread_labels([1.0, 1.0, 0.99], 0.1) == pytest.approx([0.9, 1.0, 0.8])  # within the axis
    assert spread_labels([0.0, 0.01], 0.1) == pytest.approx([0.0, 0.1])
    random = np.random.default_rng(0).uniform(size=9)
    moved = spread_labels(list(random), 0.08)
    assert list(np.argsort(moved)) == list(np.argsort(random))
    assert np.diff(np.sort(moved)).min() > 0.08 - 1e-9


@pytest.mark.parametrize(("largest", "scale"), [(3.0, "linear"), (5000.0, "symlog")])
def test_eigenvalues_that_span_decades_have_a_signed_log_axis(tmp_path, largest, scale):
    path = measured_run(tmp_path / "run", 3, without=("curvature", "probes"))
    tasks = directions(3)
    with (path / "metrics.jsonl").open("a") as file:
        for step, sign in ((100, 1), (200, -1)):
            table = {task: {"top": sign * top} for task, top in zip(tasks, (1.0, 2.0, largest), strict=True)}
            file.write(json.dumps({"kind": "curvature", "step": step, "directions": table}) + "\n")
    (axes,) = eigenvalue_curves(read_runs([path])).axes
    assert axes.get_yscale() == scale
    if scale == "symlog":
        ticks = [label.get_text() for label in axes.get_yticklabels()]
        assert ticks == ["-1k", "-100", "-10", "-1", "0", "1", "10", "100", "1k"]
