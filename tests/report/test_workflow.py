"""Pages about a workflow of clusters and about a bundle of their models."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import Grouping
from mnmt_scale.groups import write_groups
from mnmt_scale.report import page as page_module
from mnmt_scale.report import sections_affinity, sections_workflow
from mnmt_scale.report.page import as_csv, as_json, write_report
from mnmt_scale.report.plots_systems import gains
from mnmt_scale.report.sections_workflow import seed_agreement
from mnmt_scale.report.workflow import expanded, read_workflow
from tests.report.test_measured import Counted
from tests.report.test_page import Page, check_self_contained
from tests.support.fake_run import fake_run
from tests.support.fake_workflow import FAMILIES, TASKS, fake_workflow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("workflow") / "out"
    fake_workflow(out, ("multilingual", "lec", "htac", "ftac"), (1, 2))
    return out


@pytest.fixture
def copied(made, tmp_path):
    """A copy to damage."""
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def test_the_page_of_a_workflow(made, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "_training", lambda runs, draw: {})  # as of any runs, and slow to draw
    page = Page(write_report([made], tmp_path / "r.html").read_text(encoding="utf-8"))
    check_self_contained(page)
    text = "|".join(page.text)
    for said in ("Workflow report: fake", "Clusters of seed 2", "Affinity of seed 2", "The clusters of FTAC, without helpers.",
                 "BLEU by direction (FTAC paper, Table 4)", "How alike the seeds are", "The runs of ftac/seed-1"):  # fmt: skip
        assert said in text, said
    assert "No evaluation" not in text
    whole = json.loads((tmp_path / "r.json").read_text())
    assert [run["name"] for run in whole["runs"]] == ["Multi. seed 1", "FTAC 0", "FTAC 1", "FTAC 2"]
    flow = whole["workflow"]
    table = flow["systems"]
    assert len(table["directions"]) == 6
    assert flow["groups"]["ftac/seed-2"]["clusters"] == [list(cluster) for cluster in FAMILIES]
    assert flow["affinity"]["1"]["tasks"] == [name for cluster in FAMILIES for name in cluster]
    assert flow["affinity"]["1"]["mean"] != flow["affinity"]["2"]["mean"]
    gain = table["directions"][0]["deltas"]["multilingual"]["difference"]
    assert f"{gain:+.1f}\N{DAGGER}" in page.text
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert {row["system"] for row in rows} == {"multilingual", "lec", "htac", "ftac"}


def test_gains_are_drawn_with_their_intervals_and_filled_where_significant(made):
    table = read_workflow(made).table
    table["directions"][0]["deltas"]["lec"]["p"] = 0.2
    axes = gains(table).axes[0]
    marks = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert len(marks) == 7
    assert [line.get_markerfacecolor() == "none" for line in marks] == [True, *[False] * 6]
    deltas = [row["deltas"]["lec"] for row in table["directions"]] + [table["average"]["deltas"]["lec"]]
    assert [line.get_ydata()[0] for line in marks] == pytest.approx([delta["difference"] for delta in deltas])
    bars = [tuple(line.get_ydata()) for line in axes.get_lines() if len(line.get_ydata()) == 2]
    assert all((delta["low"], delta["high"]) in bars for delta in deltas)
    assert [label.get_text() for label in axes.get_xticklabels()][-1] == "mean"


def test_seeds_are_compared_by_affinity_and_clusters(copied):
    write_groups(copied / "ftac/seed-2/groups.json", Grouping("ftac", (TASKS[:3], TASKS[3:]), ((), ())), {})
    (row,) = seed_agreement(read_workflow(copied))
    from sklearn.metrics import adjusted_rand_score

    family = {name: k for k, cluster in enumerate(FAMILIES) for name in cluster}
    assert row["clusters"] == pytest.approx(adjusted_rand_score([family[t] for t in TASKS], [0, 0, 0, 1, 1, 1]))
    assert 0.5 < row["affinity"] < 1
    shutil.rmtree(copied / "multilingual/seed-2")
    assert seed_agreement(read_workflow(copied))[0]["affinity"] is None


def test_a_workflow_that_has_only_begun(tmp_path):
    fake_workflow(tmp_path / "out", ("ftac",), (1,), runs=False)
    shutil.rmtree(tmp_path / "out" / "ftac" / "seed-1")
    page = Page(write_report([tmp_path / "out"], tmp_path / "r.html").read_text())
    assert "No system is evaluated yet." in page.text
    assert page.count("svg") == 0
    assert json.loads((tmp_path / "r.json").read_text())["workflow"]["systems"] is None


def test_what_is_damaged_is_said_and_the_rest_is_shown(copied):
    (copied / "lec/seed-1/groups.json").write_text("{")
    reference = copied / "lec/seed-2/eval/test.en-da.ref"
    reference.write_text(reference.read_text().replace("w", "v"))
    found = read_workflow(copied)
    assert found.table is None
    assert found.missing[0].startswith("No table of systems: the runs were evaluated on different lines of en-da")
    assert found.missing[1] == "LEC seed 1: groups.json: not JSON; left out."
    draw = Counted()
    assert "No system is evaluated." in sections_workflow.systems(found, draw)
    sections_workflow.affinities(found, draw)
    assert len(draw.captions) == 6
    assert "da, de, sv" in sections_workflow.clusters(found)
    (copied / "workflow.json").write_text("[]")
    with pytest.raises(MnmtError, match="not a workflow file"):
        read_workflow(copied)


def test_a_bundle_is_its_models_each_with_the_scores_of_what_it_serves(made, tmp_path):
    runs = expanded([made / "ftac" / "seed-2"])
    assert [run.name for run in runs] == ["ftac/seed-2 0", "ftac/seed-2 1", "ftac/seed-2 2"]
    assert [tuple(run.evaluations["test"]["directions"]) for run in runs] == list(FAMILIES)
    whole = json.loads((made / "ftac/seed-2/eval/test.json").read_text())["directions"]
    mean = (whole["en-es"]["bleu"] + whole["en-it"]["bleu"]) / 2
    assert runs[1].evaluations["test"]["averages"]["all"]["bleu"] == pytest.approx(mean)
    rows = [row for row in csv.DictReader(as_csv(runs).splitlines()) if row["bleu"]]
    assert sorted(row["direction"] for row in rows) == sorted(TASKS)
    other = fake_run(tmp_path / "other", 3, name="other")
    mixed = expanded([other, made])  # the workflow stands for what it serves
    assert [run.name for run in mixed] == ["other", "ftac/seed-1 0", "ftac/seed-1 1", "ftac/seed-1 2"]
    assert [run["name"] for run in as_json(mixed)["runs"]] == [run.name for run in mixed]


def test_a_model_is_named_beside_its_cluster(made):
    for run in (runs := expanded([made / "ftac" / "seed-1"])):
        run.groups = read_workflow(made).groups["ftac", 1]  # as a training keeps a copy
    text = "|".join(cell for cell in Page(sections_affinity.clusters(runs)).text if cell.strip())
    for row in ("3|1.5000|ftac/seed-1 0", "2|1.0000|ftac/seed-1 1", "1|0.2000|ftac/seed-1 2"):
        assert row in text
