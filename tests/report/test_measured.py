"""Method lines and probes on the page: the figures are there exactly where the data is, and say the right numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mnmt_scale.report import sections, sections_method
from mnmt_scale.report.page import write_report
from mnmt_scale.report.plots_curvature import curvature_bars, eigenvalue_curves
from mnmt_scale.report.plots_gradients import direction_map, group_maps
from mnmt_scale.report.plots_losses import token_curves
from mnmt_scale.report.plots_method import method_curves, weight_curves
from mnmt_scale.report.probes import read_file
from mnmt_scale.report.read import read_run, read_runs
from tests.report.test_page import Page, check_self_contained
from tests.support.fake_measured import GROUPS, classes_of, curvature, gradients, measured_run, write_probe
from tests.support.fake_run import directions

PLAIN = 9  # figures of a run without any of this
WEIGHTS, OVER_STEPS, GRADIENTS, CURVATURE = 1, 2, 3, 1
BY_SIZE = {"evaluation": {"low_below": 5000, "high_from": 100_000}}


def page_of(paths, out) -> tuple[Page, dict]:
    write_report(paths, out)
    page = Page(out.read_text(encoding="utf-8"))
    check_self_contained(page)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return page, json.loads(out.with_suffix(".json").read_text(), parse_constant=refuse)


class Counted(sections.Drawing):
    """Draws, and keeps the captions; no SVG, which takes most of the time."""

    def __init__(self) -> None:
        self.captions: list[str] = []

    def __call__(self, draw, label, caption):
        if draw() is not None:
            self.captions.append(caption)
            return "<figure></figure>"
        return ""


def drawn(*paths) -> tuple[int, str]:
    """Number of figures in the two parts about methods and measurements, and their markup."""
    runs, draw = read_runs(paths), Counted()
    body = sections_method.weights(runs, draw) + sections_method.geometry(runs, draw)
    return len(draw.captions), body


def test_everything_is_drawn_and_the_captions_name_the_paper(tmp_path):
    page, whole = page_of([measured_run(tmp_path / "run", 8)], tmp_path / "r.html")
    assert page.count("svg") == PLAIN + WEIGHTS + OVER_STEPS + GRADIENTS + CURVATURE
    text = " ".join(page.text)
    for name in ("Fig. 2, top", "Fig. 2, bottom", "Fig. 3", "Fig. 5a", "Fig. 4", "Fig. 6"):
        assert name in text, name
    assert "1,000,000 target tokens" in text
    assert whole["runs"][0]["missing"] == []


@pytest.mark.parametrize(
    ("without", "fewer"),
    [
        (("method",), WEIGHTS),
        (("curvature",), 1),  # one probe file makes no curve
        (("probes",), GRADIENTS + CURVATURE),
        (("probes", "curvature"), GRADIENTS + CURVATURE + 1),
        (("probes", "curvature", "gradients", "method"), WEIGHTS + OVER_STEPS + GRADIENTS + CURVATURE),
    ],
)
def test_figures_are_absent_where_the_data_is(tmp_path, without, fewer):
    path = measured_run(tmp_path / "run", 6, without=without)
    figures, body = drawn(path)
    assert figures == WEIGHTS + OVER_STEPS + GRADIENTS + CURVATURE - fewer
    assert ("Not measured" in body) == ("gradients" in without)


def test_no_curve_against_tokens_without_dev_losses(tmp_path):
    with_dev, without = measured_run(tmp_path / "a", 3), measured_run(tmp_path / "b", 3, without=("valid",))
    assert token_curves(read_runs([without])) is None
    assert len(token_curves(read_runs([with_dev, without])).axes) > 1


def test_the_numbers_beside_the_page_are_those_of_the_files(tmp_path):
    path = measured_run(tmp_path / "run", 8)
    probe = read_file(path / "probes" / "gradients-step-001000.safetensors")
    _, whole = page_of([path], tmp_path / "r.html")
    run = whole["runs"][0]
    assert run["method"]["label"] == "cats"
    assert len(run["method"]["lines"]) == 20
    assert len(run["gradients"]) == len(run["curvature"]) == 10
    found = run["probes"]["gradients"]
    assert found["classes"] == ["high"] * 3 + ["medium"] * 3 + ["low"] * 2
    cosine = np.array(found["cosine"])
    order = [probe.tasks.index(task) for task in found["tasks"]]
    np.testing.assert_allclose(cosine, probe.arrays["cosine"][-1][np.ix_(order, order)], rtol=1e-5)
    norm = found["cosine_by_group"]["E.LN"]["high-low"]
    values = [probe.arrays["cosine"][2][i, j] for i in (0, 1, 2) for j in (6, 7)]
    assert norm == pytest.approx(
        {"pairs": 6, "mean": np.mean(values), "deviation": np.std(values), "low": min(values), "high": max(values)}
    )
    bars = run["probes"]["curvature"]
    assert bars["tasks"] == directions(8)
    assert bars["product"] == "replicated"
    file = read_file(path / "probes" / "curvature-step-001000.safetensors")
    assert bars["trace_error"] == pytest.approx(file.arrays["trace_error"].tolist())


def test_the_map_holds_mean_and_deviation_of_every_cell(tmp_path):
    run = read_run(measured_run(tmp_path / "run", 8))
    above, below = group_maps(run, [run]).axes[:2]
    assert [label.get_text() for label in above.get_xticklabels()] == list(GROUPS)
    rows = [label.get_text() for label in above.get_yticklabels()]
    assert rows == ["high-high (3)", "medium-medium (3)", "low-low (1)", "high-medium (9)", "high-low (6)", "medium-low (6)",
                    "all (28)"]  # fmt: skip
    for axes, measure in ((above, "cosine"), (below, "magnitude")):
        texts = {(round(t.get_position()[0]), round(t.get_position()[1])): t.get_text() for t in axes.texts}
        assert len(texts) == len(GROUPS) * len(rows)
        matrix = run.probes["gradients"].arrays[measure][6]  # D.LN
        pairs = [matrix[i, j] for i in (0, 1, 2) for j in (6, 7)]
        assert texts[6, 4] == f"{round(np.mean(pairs), 2) + 0:.2f} \N{PLUS-MINUS SIGN}{np.std(pairs):.2f}"
        assert texts[6, 2] == f"{round(matrix[6, 7], 2) + 0:.2f}"  # one pair has no spread


def test_bars_reach_from_the_smallest_to_the_largest_eigenvalue(tmp_path):
    run = read_run(measured_run(tmp_path / "run", 8))
    arrays = run.probes["curvature"].arrays
    axes, below = curvature_bars(run).axes
    for i, bar in enumerate(axes.patches):
        assert bar.get_y() == pytest.approx(arrays["smallest"][i])
        assert bar.get_y() + bar.get_height() == pytest.approx(arrays["largest"][i])
    whiskers = next(c for c in axes.collections if hasattr(c, "get_segments")).get_segments()
    for i, ((_, low), (_, high)) in enumerate(whiskers):
        assert high - low == pytest.approx(2 * arrays["residual"][i] * abs(arrays["top"][i]))
    assert [bar.get_height() for bar in below.patches] == pytest.approx(arrays["trace"].tolist())
    arrays["trace"][:] = np.nan  # probe.hutchinson_samples = 0
    assert len(curvature_bars(run).axes) == 1


def test_directions_stand_by_class_then_by_size_with_a_line_between_classes(tmp_path):
    path = measured_run(tmp_path / "run", 6)
    for file in (path / "probes").iterdir():
        file.unlink()
    tasks = directions(6)  # falling in size
    classes = ["low", "high", "low", "high", "medium", "high"]
    random = np.random.default_rng(0)
    write_probe(path, "gradients", 10, tasks, classes, gradients(tasks, classes, random, 1.0))
    axes = direction_map(read_run(path)).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [tasks[i] for i in (1, 3, 5, 4, 0, 2)]
    borders = sorted(line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1)
    assert borders == [2.5, 3.5]


def test_numbers_that_are_none_and_lines_half_written(tmp_path):
    path = measured_run(tmp_path / "run", 4)
    tasks, classes = directions(4), classes_of(4)
    odd = [
        {"kind": "method", "step": 1010, "weights": {tasks[0]: float("nan"), tasks[1]: "x", "unknown": 0.5}, "lambda_c": None},
        {"kind": "method", "step": 1020, "weights": [1, 2], "lambda_c": float("inf")},
        {"kind": "method", "step": 1030},
        {"kind": "method", "step": None, "weights": {}},
        {"kind": "gradients", "step": 1010, "groups": {"all": {"cosine": {"high-low": float("nan")}, "magnitude": 3}}},
        {"kind": "gradients", "step": 1020, "groups": []},
        {"kind": "gradients", "step": 1030, "groups": {"all": None}},
        {
            "kind": "curvature",
            "step": 1010,
            "directions": {tasks[0]: {"top": float("-inf")}, tasks[1]: 4, "<b>": {"top": 1e300}},
        },
        {"kind": "curvature", "step": 1020},
    ]
    with (path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in odd)
        file.write('{"kind": "method", "step": 1040, "weig')
    bad = {name: array * np.nan for name, array in gradients(tasks, classes, np.random.default_rng(0), 1.0).items()}
    write_probe(path, "gradients", 2000, tasks, classes, bad)
    arrays = curvature(classes, np.random.default_rng(0), 1.0)
    arrays["largest"][0], arrays["top"][1], arrays["trace"][2], arrays["residual"][3] = np.inf, np.nan, -np.inf, -1.0
    write_probe(path, "curvature", 2000, tasks, classes, arrays)
    page, whole = page_of([path], tmp_path / "r.html")
    assert page.count("svg") == PLAIN + WEIGHTS + OVER_STEPS + CURVATURE
    assert any("no pair of directions" in text for text in page.text)
    run = whole["runs"][0]
    assert run["missing"] == [line for line in run["missing"] if line.startswith("1 line(s) of metrics.jsonl")]
    assert run["probes"]["curvature"]["trace"][2] is None
    weights = weight_curves(read_run(path))
    assert weights[tasks[0]][-1][0] == 1000
    assert weights["unknown"] == [(1010, 0.5)]


def test_names_in_probes_and_lines_are_inert(tmp_path):
    name = '"><script>alert(1)</script>$x_{'
    path = measured_run(tmp_path / "run", 4)
    metrics = path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("al-en", json.dumps(name)[1:-1]))
    tasks = [name, *directions(4)[1:]]
    arrays = gradients(tasks, classes_of(4), np.random.default_rng(0), 1.0)
    head = {"split": name, "groups": [name, *GROUPS[1:]], "directions": name}
    write_probe(path, "gradients", 1000, tasks, ["<i>", "high", "low", "low"], arrays, head=head)
    page, _ = page_of([path], tmp_path / "r.html")
    assert name in "".join(page.text)


def test_a_hundred_directions(tmp_path):
    path = measured_run(tmp_path / "run", 100, steps=3000, settings=BY_SIZE)
    page, whole = page_of([path], tmp_path / "r.html")
    assert page.count("svg") == PLAIN + WEIGHTS + OVER_STEPS + GRADIENTS + CURVATURE
    assert (tmp_path / "r.html").stat().st_size < 3_000_000
    assert np.array(whole["runs"][0]["probes"]["gradients"]["cosine"]).shape == (100, 100)
    axes = method_curves(read_run(path)).axes[0]
    assert len(axes.lines) == 100 + 3
    names, labels = axes.get_legend_handles_labels()
    assert labels == ["high, mean of 30", "medium, mean of 32", "low, mean of 38"]
    bold = names[2].get_xydata()
    raw = weight_curves(read_run(path))
    sizes = read_run(path).sentences
    low = [curve for task, curve in raw.items() if sizes[task] < 5000]
    assert bold[-1, 1] == pytest.approx(np.mean([curve[-1][1] for curve in low]))


def test_several_runs_share_scales_and_show_what_their_methods_are_called(tmp_path):
    paths = [
        measured_run(tmp_path / "a", 6, name="a"),
        measured_run(tmp_path / "b", 6, name="b", method={"name": "gramian", "gramian": {"weights": "lagged"}}),
        measured_run(tmp_path / "c", 6, name="c", method={"name": "of the future"}),
    ]
    page, whole = page_of(paths[:2], tmp_path / "r.html")
    assert [run["method"]["label"] for run in whole["runs"]] == ["cats", "UPGrad (lagged)"]
    assert "UPGrad (lagged)" in page.text  # in the summary
    assert any("b (UPGrad (lagged))" in text for text in page.text)
    runs = read_runs(paths)
    assert runs[2].method == "of the future"
    assert drawn(*paths)[1].count("<summary>Newest probes of") == 3
    figure = eigenvalue_curves(runs)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    scales = [group_maps(run, runs).axes[0].collections[0].get_clim() for run in runs]
    assert len(set(scales)) == 1
    assert whole["tokens_to_reach"][0]["class"] == "all"
