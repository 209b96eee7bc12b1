"""Affinity on the page: rows are what was trained, columns what was affected; errors, windows, order by cluster."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mnmt_scale.flow import Grouping
from mnmt_scale.groups import GroupsFile, write_groups
from mnmt_scale.probes import read_probe, write_probe
from mnmt_scale.report import sections_affinity
from mnmt_scale.report.affinity import affinity_of, pooled, rank_correlation, rank_correlations, window_rows
from mnmt_scale.report.numbers import probe_numbers
from mnmt_scale.report.page import as_json
from mnmt_scale.report.plots_affinity import affinity_map, estimates, window_curves
from mnmt_scale.report.probes import Probe
from mnmt_scale.report.read import read_run
from tests.report.test_measured import Counted
from tests.report.test_page import Page
from tests.support.fake_run import fake_run
from tests.support.fake_workflow import FAMILIES, HELPERS, TASKS, affinity_table, write_affinity


def groups(clusters=FAMILIES, helpers=HELPERS, **about) -> GroupsFile:
    return GroupsFile(None, Grouping("ftac", clusters, helpers), about)


def probe_of(mean, count=None, variance=None, estimate=None, tasks=("en-a", "en-b", "en-c"), windows=None) -> Probe:
    """[W, N, N] tables as a probe; two measurements a cell with variance 1 unless given."""
    mean = np.asarray(mean, dtype=float)
    arrays = {"mean": mean, "count": np.full_like(mean, 2.0) if count is None else np.asarray(count, dtype=float)}
    arrays["variance"] = np.ones_like(mean) if variance is None else np.asarray(variance, dtype=float)
    arrays["estimate"] = np.zeros_like(mean) if estimate is None else np.asarray(estimate, dtype=float)
    arrays["estimate_count"] = np.zeros_like(mean) if estimate is None else np.ones_like(mean)
    spans = windows or [[10 * w + 1, 10 * w + 10] for w in range(len(mean))]
    return Probe("affinity", 10 * len(mean), tuple(tasks), {}, {"windows": spans, "split": "train"}, arrays)


@pytest.fixture
def run(tmp_path):
    path = fake_run(tmp_path / "run", steps=200, tasks=TASKS)
    write_affinity(path)
    return path


def test_windows_are_pooled_as_one_sample():
    rng = np.random.default_rng(0)
    samples = [rng.normal(loc=w, size=n) for w, n in enumerate((5, 1, 0, 3))]
    shape = (4, 1, 1)
    counts = np.array([len(s) for s in samples], dtype=float).reshape(shape)
    means = np.array([s.mean() if len(s) else 0.0 for s in samples]).reshape(shape)
    variances = np.array([s.var(ddof=1) if len(s) > 1 else np.nan for s in samples]).reshape(shape)
    count, mean, error = pooled(counts, means, variances)
    everything = np.concatenate(samples)
    assert count.item() == 9
    assert mean.item() == pytest.approx(everything.mean())
    assert error.item() == pytest.approx(everything.std(ddof=1) / 3)
    _, never, unknown = pooled(counts[2:3], means[2:3], variances[2:3])
    assert np.isnan(never).all()
    assert np.isnan(unknown).all()
    assert np.isnan(pooled(counts[1:2], means[1:2], variances[1:2])[2]).all()  # one measurement has no error


def test_rows_are_trained_and_columns_affected_by_cluster(run):
    write_groups(run / "groups.json", groups().grouping, {})
    read = read_run(run)
    found = affinity_of(read.probes["affinity"], read.groups)
    assert found.tasks == ("en-da", "en-de", "en-sv", "en-es", "en-it", "en-ja")
    assert found.clusters == ((0, 1, 2), (3, 4), (5,))
    assert found.helpers == ((4,), (1, 2), ())
    axes = affinity_map(found).axes[0]
    assert axes.get_xlabel() == "affected direction (column)"
    assert axes.get_ylabel() == "trained direction (row)"
    columns, rows = ([label.get_text() for label in labels] for labels in (axes.get_xticklabels(), axes.get_yticklabels()))
    assert columns == rows == list(found.tasks)
    drawn = axes.collections[0].get_array().reshape(6, 6)
    truth = affinity_table()
    for trained, affected in (("en-de", "en-es"), ("en-es", "en-de"), ("en-it", "en-da"), ("en-da", "en-it")):
        cell = drawn[rows.index(trained), columns.index(affected)]
        assert cell == pytest.approx(2 * truth[TASKS.index(trained), TASKS.index(affected)])  # windows 3, 2 and 1 times it
    assert np.ma.getmaskarray(drawn)[rows.index("en-ja"), columns.index("en-da")]  # never measured
    assert np.ma.getmaskarray(drawn).sum() == 1
    table = as_json([read])["runs"][0]["probes"]["affinity"]
    assert table["convention"].startswith("row: the direction that was trained; column")
    assert table["mean"][1][3] == pytest.approx(2 * truth[TASKS.index("en-de"), TASKS.index("en-es")], rel=1e-5)
    assert table["mean"][5][0] is None
    json.dumps(table, allow_nan=False)


def test_boxes_are_clusters_and_outlines_helpers_in_the_columns_that_they_help(run):
    found = affinity_of(read_run(run).probes["affinity"], groups())
    axes = affinity_map(found).axes[0]
    places = {(round(p.get_x(), 1), round(p.get_y(), 1), round(p.get_width(), 1)) for p in axes.patches}
    boxes = {(-0.5, -0.5, 3.0), (2.5, 2.5, 2.0), (4.5, 4.5, 1.0)}
    helpers = {(-0.4, 3.6, 2.9), (2.6, 0.6, 1.9), (2.6, 1.6, 1.9)}  # it on da de sv; de and sv on es it
    assert places == boxes | helpers


def test_without_groups_directions_stand_by_language(run):
    found = affinity_of(read_run(run).probes["affinity"], None)
    assert found.tasks == TASKS  # da de es it ja sv
    assert affinity_map(found).axes[0].patches[:] == []
    assert affinity_of(read_run(run).probes["affinity"], groups((("en-da",), ("en-xx",)), ((), ()))).clusters == ()
    many = probe_of(np.zeros((1, 4, 4)), tasks=("fr-de", "es-en", "de-en", "en-de"))
    assert affinity_of(many, None).tasks == ("en-de", "fr-de", "de-en", "es-en")  # by target, then source


def test_cells_within_their_standard_error_of_zero_are_dotted():
    mean = np.full((1, 3, 3), 5.0)
    mean[0, 0, 1], mean[0, 2, 0], mean[0, 2, 2] = 0.7, -0.7, 0.72  # the error is sqrt(1 / 2) = 0.707
    found = affinity_of(probe_of(mean), None)
    assert {tuple(map(int, cell)) for cell in np.argwhere(found.uncertain)} == {(0, 1), (2, 0)}
    axes = affinity_map(found).axes[0]
    dots = {tuple(np.round(place)) for place in axes.collections[1].get_offsets()}
    assert dots == {(1.0, 0.0), (0.0, 2.0)}  # x is the column
    thin = probe_of(mean, count=np.ones((1, 3, 3)), variance=np.full((1, 3, 3), np.nan))
    assert not affinity_of(thin, None).uncertain.any()  # one measurement: not known


def test_windows_tell_kinds_of_cells_apart():
    mean = np.array(
        [[[9.0, 2.0, 1.0], [4.0, 9.0, -1.0], [-3.0, 0.5, 9.0]], [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]
    )
    clusters = groups((("en-a", "en-b"), ("en-c",)), ((), ("en-a",)))
    found = affinity_of(probe_of(mean), clusters)
    first, second = window_rows(found)
    assert first["mean"] == {"itself": 9.0, "its own cluster": 3.0, "a cluster that it helps": 1.0, "others": -3.5 / 3}
    assert first["error"]["its own cluster"] == pytest.approx(np.sqrt(0.5 + 0.5) / 2)
    assert first["positive"] == pytest.approx(4 / 6)
    assert first["uncertain"] == pytest.approx(1 / 6)
    assert (second["first"], second["last"], second["positive"]) == (11, 20, pytest.approx(4 / 6))
    left, right = window_curves(found).axes
    curves = [line.get_xydata() for line in left.get_lines()]
    label = next(h.get_label() for h in left.get_legend_handles_labels()[0])
    assert label == "itself"
    assert any(np.allclose(xy, [[5.5, -3.5 / 3], [15.5, 1.0]]) for xy in curves if len(xy) == 2)
    assert right.get_lines()[0].get_ydata() == pytest.approx([400 / 6, 400 / 6])
    assert set(window_rows(affinity_of(probe_of(mean), None))[0]["mean"]) == {"itself", "others"}
    assert window_curves(affinity_of(probe_of(mean[:1]), None)) is None


def test_only_windows_that_the_clusters_were_decided_from_count():
    mean = np.stack([np.full((3, 3), 7.0), np.full((3, 3), 1.0), np.full((3, 3), 2.0)])
    clusters = groups((("en-a", "en-b"), ("en-c",)), ((), ()), options={"since": 11})
    found = affinity_of(probe_of(mean), clusters)
    assert found.windows == ((11, 20), (21, 30))
    assert found.mean == pytest.approx(np.full((3, 3), 1.5))
    assert found.since == 11
    assert affinity_of(probe_of(mean), None).mean == pytest.approx(np.full((3, 3), 10 / 3))


def test_rank_correlation_is_spearmans_over_cells_that_both_have():
    rng = np.random.default_rng(1)
    mean = np.round(rng.normal(size=(1, 5, 5)), 1)  # with ties
    estimate = mean + 0.5 * rng.normal(size=mean.shape)
    count = np.full_like(mean, 2.0)
    count[0, 1, 3] = 0
    found = affinity_of(probe_of(mean, count=count, estimate=estimate, tasks=[f"en-{c}" for c in "abcde"]), None)
    rows, columns = np.nonzero((count[0] > 0) & ~np.eye(5, dtype=bool))
    off = spearmanr(mean[0][rows, columns], estimate[0][rows, columns]).statistic
    correlations = rank_correlations(found)
    assert correlations["off_diagonal"] == pytest.approx(off)
    every = count[0] > 0
    assert correlations["all"] == pytest.approx(spearmanr(mean[0][every], estimate[0][every]).statistic)
    axes = estimates(found).axes[0]
    assert axes.get_title() == f"rank correlation {off:.2f}"
    dots = np.concatenate([line.get_xydata() for line in axes.get_lines() if line.get_label() == "on others"])
    assert sorted(dots[:, 0]) == pytest.approx(sorted(estimate[0][rows, columns]))
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None
    assert estimates(affinity_of(probe_of(mean, tasks=[f"en-{c}" for c in "abcde"]), None)) is None


def test_the_page_says_clusters_helpers_and_what_is_to_be_known(run):
    about = {
        "scores": [1.5, 1.0, 0.25],
        "warnings": ["3 cells <b>near</b> zero"],
        "agreement": {"adjusted_rand": 0.5, "effect": {"within": 0.01, "across": 0.002, "size": 1.25, "p": 0.0004}},
    }
    write_groups(run / "groups.json", groups().grouping, about)
    read, draw = read_run(run), Counted()
    page = Page(sections_affinity.clusters([read, read]))
    text = "|".join(page.text)
    assert page.count("table") == 1  # the same groups once
    assert "cluster (en-X)" in text
    for row in ("0|da, de, sv|it|3|1.5000", "1|es, it|de, sv|2|1.0000", "2|ja|\N{EN DASH}|1|0.2500"):
        assert row in text.replace("\n", "").replace("||", "|"), row
    assert "Adjusted Rand index with language families: 0.50." in text
    assert "effect size 1.25 pooled standard deviations, permutation p 0.0004" in text
    assert "3 cells <b>near</b> zero" in text
    body = sections_affinity.affinity([read], draw)
    assert len(draw.captions) == 3
    assert "Row: the direction that was trained; column: the direction whose loss it changed." in draw.captions[0]
    assert "numbers are in units of 0.1" in draw.captions[0]
    assert "change of the log-probability per target token of held sentences of train" in draw.captions[0]
    cells = Page(body).text
    assert cells[cells.index("en-ja", cells.index("trained \\ affected") + 20)] == "en-ja"


def test_many_to_many_clusters_name_both_languages():
    text = sections_affinity.grouping_table(groups((("ja-ru", "ja-ko"), ("ko-ru",)), (("ko-ru",), ())))
    assert "ja-ru, ja-ko" in text
    assert "-X)" not in text
    into = sections_affinity.grouping_table(groups((("ja-en",), ("ko-en",)), ((), ())))
    assert "cluster (X-en)" in into


def test_damaged_groups_and_windows_are_said_and_left_out(run):
    (run / "groups.json").write_text('{"kind": "groups", "version": 9}')
    file = write_affinity(run)
    probe = read_probe(file)
    write_probe(file, {**probe.about, "windows": [[1, 2], [3], "x"]}, dict(probe.tensors))
    read = read_run(run)
    assert read.groups is None
    assert "affinity" not in read.probes
    assert any("groups.json: groups file of version 9" in line for line in read.missing)
    assert any("its windows are not [first step, last step]" in line for line in read.missing)


def test_probes_without_a_measurement_or_of_vectors_do_no_harm(run):
    file = write_affinity(run)
    probe = read_probe(file)
    none = {name: torch.zeros_like(tensor) for name, tensor in probe.tensors.items()}
    write_probe(file, probe.about, none | {"variance": torch.full_like(none["mean"], torch.nan)})
    about = {key: probe.about[key] for key in ("step", "tasks", "classes", "run", "directions", "tokens")}
    vectors = {"vectors": torch.ones(2, 4, dtype=torch.float64)}
    about |= {"kind": "vectors", "languages": ["da", "de"]}
    write_probe(run / "probes" / "vectors-step-000200.safetensors", about, vectors)
    read, draw = read_run(run), Counted()
    assert "no cell that was measured" in sections_affinity.affinity([read], draw)
    assert draw.captions == []
    assert probe_numbers(read, read.probes["vectors"])["languages"] == ["da", "de"]
    assert as_json([read])["runs"][0]["probes"]["affinity"]["rank_correlation"] == {
        "all": None, "off_diagonal": None, "cells": 0,
    }  # fmt: skip
