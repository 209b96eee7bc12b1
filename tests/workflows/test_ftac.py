"""The ftac workflow: its settings, its plan, the command of every stage, and the whole chain with verbs that only pretend."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import tomli_w

from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import Grouping
from mnmt_scale.groups import read_groups, write_groups
from mnmt_scale.runlog import RunLock
from mnmt_scale.workflows import ftac as ftac_module
from mnmt_scale.workflows import ftac_plan, ftac_stages
from mnmt_scale.workflows.config import read_workflow
from mnmt_scale.workflows.ftac import begin, run_ftac
from mnmt_scale.workflows.snake import Resources
from tests.support.corpora import parallel, write_pair
from tests.support.fake_verbs import calls_of, install

TASKS = ["en-de", "en-fr", "en-it"]
ALL = ["bilingual", "multilingual", "lec", "htac", "ftac", "rand", "temp", "fix", "average", "linguistic", "random"]


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch) -> Path:
    """workflow.toml over training.toml, whose text is not there; the directory is the working one."""
    monkeypatch.chdir(tmp_path)
    pairs = ["de-en", "en-fr", "en-it"]
    corpora = [{"reader": "opus", "path": str(tmp_path / "text"), "pairs": pairs}]
    training = {
        "data": {"store": "store", "directions": "one-to-many", "corpora": corpora},
        "model": {"preset": "tiny"},
        "train": {"max_steps": 100},
    }
    (tmp_path / "training.toml").write_text(tomli_w.dumps(training))
    (tmp_path / "workflow.toml").write_text('name = "try"\ntraining = "training.toml"\n')
    return tmp_path / "workflow.toml"


def read(path: Path, *overrides: str):
    return read_workflow(path, overrides)


def test_the_kinds_of_training_and_whose_settings_go_over_whose(files):
    with files.open("a") as file:
        file.write("[all.train]\nmax_steps = 50\npatience = 2\n[clusters.train]\nmax_steps = 30\n")
        file.write("[clusters.method.ftac]\ndecay = 0.25\n[universal.method.affinity]\naffected = 1\n")
    found = read(files, "bilingual.train.max_steps=20").trainings
    assert {kind: c.train.max_steps for kind, c in found.items()} == {"universal": 50, "clusters": 30, "bilingual": 20}
    assert {c.train.patience for c in found.values()} == {2}
    assert [found[kind].method.name for kind in ("universal", "clusters", "bilingual")] == ["affinity", "ftac", "ftac"]
    assert (found["clusters"].method.ftac.decay, found["bilingual"].method.ftac.decay) == (0.25, 0.5)
    assert (found["universal"].method.affinity.affected, found["clusters"].method.affinity.affected) == (1, 0)
    assert found["universal"].name == "try-universal"
    plain = read(files, 'systems=["bilingual", "multilingual", "lec"]')
    assert plain.trainings["universal"].method.name == "joint"  # nothing is decided from affinities
    assert plain.config.served == "lec/seed-1"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sedes=[1]"], "E101.*did you mean 'seeds'"),
        (['systems=["ftac", "lac"]'], "E102.*did you mean"),
        (["seeds=[1, 1]"], "E104.*each once"),
        (["all.train.seed=3"], "E104.*seeds of a workflow"),
        (["all.method.name=cats"], "E104.*method.name = 'cats'"),
        (["clusters.train.max_stebs=3"], r"E101.*train.max_stebs.*\(clusters\).*did you mean 'train.max_steps'"),
        (["all.data.directions=many-to-many"], "E104.*lec clusters languages"),
        (["serve=rand/seed-1"], "E104.*ftac/seed-1"),
        (['systems=["random"]'], "E104.*add ftac"),
        (["training=trainig.toml"], "E103.*did you mean"),
    ],
)
def test_what_is_refused(files, overrides, words):
    with pytest.raises(MnmtError, match=words):
        read(files, *overrides)


def test_directions_are_known_without_text_by_what_the_settings_name(files):
    assert ftac_plan.tasks_of(read(files)) == TASKS
    assert ftac_plan.tasks_of(read(files, "all.data.directions=many-to-one")) == ["de-en", "fr-en", "it-en"]
    write_pair(files.parent / "text", "de-en", train=parallel(3))
    write_pair(files.parent / "text", "en-fr", train=parallel(3))
    with pytest.raises(MnmtError, match="E105.*no pair 'en-it'"):
        ftac_plan.tasks_of(read(files))
    open_ended = f'all.data.corpora=[{{reader="opus", path="{files.parent}/text"}}]'
    assert ftac_plan.tasks_of(read(files, open_ended)) == TASKS[:2]
    with pytest.raises(MnmtError, match="E201"):
        ftac_plan.tasks_of(read(files, open_ended.replace("/text", "/nowhere")))
    (files.parent / "few.toml").write_text("families = [2, 1]\n")
    constructed = 'constructed={settings="few.toml", out="made"}'
    made = ftac_plan.tasks_of(read(files, open_ended.replace("/text", "/nowhere"), constructed))
    assert made == ["en-qaa", "en-qab", "en-qba"]


def test_the_plan_names_every_training_and_the_range_of_what_is_not_known(files):
    out = files.parent / "out"
    workflow = read(files, f"systems={json.dumps(ALL)}", "seeds=[2]", "clustering.max_clusters=2")
    planned = {}
    for row in ftac_plan.plan(workflow, TASKS, out):
        planned.setdefault(row.system, []).append((row.cluster, row.kind, row.low, row.high, row.state))
    assert next(iter(planned)) == "multilingual"
    assert planned["multilingual"] == [(0, "universal", 1, 1, "to train")]
    assert planned["bilingual"] == [(k, "bilingual", 1, 1, "to train") for k in range(3)]
    assert planned["ftac"] == planned["rand"] == [(None, "clusters", 1, 2, "to train")]
    assert planned["lec"] == planned["average"] == planned["linguistic"] == [(None, "clusters", 1, 3, "to train")]
    fixed = read(files, 'systems=["lec"]', "clustering.clusters=2")
    assert [(r.low, r.high) for r in ftac_plan.plan(fixed, TASKS, out) if r.system == "lec"] == [(2, 2)]
    # known once the groups are, with how far each run is
    bundle = out / "ftac" / "seed-2"
    write_groups(bundle / "groups.json", Grouping("ftac", (("en-de", "en-it"), ("en-fr",)), (("en-fr",), ())), {})
    for k, name in enumerate(("training.json", "config.toml")):
        (bundle / f"cluster-{k}").mkdir()
        (bundle / f"cluster-{k}" / name).write_text("{}")
    rows = [row for row in ftac_plan.plan(workflow, TASKS, out) if row.system == "ftac"]
    assert [(r.name, r.serves, r.helpers, r.state) for r in rows] == [
        ("ftac seed 2 cluster 0", ("en-de", "en-it"), ("en-fr",), "finished"),
        ("ftac seed 2 cluster 1", ("en-fr",), (), "begun"),
    ]
    assert "multilingual" in ftac_plan.order(["lec"])  # what is decided from it needs it
    assert ftac_plan.order(["bilingual"]) == ["bilingual"]


def test_more_clusters_than_directions_are_refused_before_anything_is_trained(files):
    for key in ("max_clusters", "clusters"):
        workflow = read(files, f"clustering.{key}=4")
        with pytest.raises(MnmtError, match=f"E104: clustering.{key} = 4, but there are 3 directions"):
            ftac_plan.plan(workflow, TASKS, files.parent / "out")
        with pytest.raises(MnmtError, match="E104"):
            run_ftac(workflow, TASKS, files.parent / "out", Resources(), quiet)


def test_what_probing_costs_by_hand(files):
    config = read(files, "all.batch.batch_tokens=1000", "universal.method.affinity.held_tokens=300").trainings["universal"]
    # every other step 2 forward passes over 3 x 300 tokens at a third of a training step's 1000
    assert ftac_plan.probing_cost(config, 3) == pytest.approx(1 + 0.5 * 2 * 900 / 3 / 1000)
    one = read(files, "all.batch.batch_tokens=1000", "universal.method.affinity={held_tokens=300,affected=1}")
    assert ftac_plan.probing_cost(one.trainings["universal"], 3) == pytest.approx(1.1)
    assert ftac_plan.probing_cost(one.trainings["clusters"], 3) == 1.0


def test_the_words_of_every_stage(files):
    options = ["clustering={max_clusters=4,clusters=2,since_step=9,statistic='sum',min_count=3}", "families=f.json", "limit=7"]
    asked = ftac_plan.stage_config(read(files, *options), TASKS, Path("o"), Resources())
    assert asked["prepare"] is True
    affinity = ["--statistic", "sum", "--since", "9", "--min-count", "3"]

    def cluster(system: str) -> str:
        words = ftac_stages.cluster_words(asked, system, 5)
        assert words[0] == "cluster"
        assert words[3:6] == ["--out", f"o/{system}/seed-5/groups.json", "--json"]
        assert words[-2:] == ["--families", "f.json"]
        return " ".join([*words[1:3], *words[6:-2]])

    run = "o/multilingual/seed-5/cluster-0"
    measured = " ".join(affinity)
    assert cluster("ftac") == cluster("temp") == cluster("fix") == f"ftac {run} {measured} --clusters 4"
    assert cluster("htac") == f"htac {run} {measured} --clusters 4"
    assert cluster("rand") == f"ftac {run} {measured} --clusters 4 --helpers random --seed 5"
    assert cluster("average") == f"average {run} {measured} --clusters 2"
    assert cluster("lec") == f"lec {run} --clusters 2"
    assert cluster("linguistic") == f"linguistic {run}"
    assert cluster("random") == "random o/ftac/seed-5/groups.json --seed 5"

    def sets(system: str) -> set[str]:
        words = ftac_stages.train_words(asked, system, 5, 1)
        assert words[words.index("--run-dir") + 1] == f"o/{system}/seed-5/cluster-1"
        return {b for a, b in itertools.pairwise(words) if a == "--set"}

    own = {"train.seed=5", "method.ftac.groups=o/{}/seed-5/groups.json", "method.ftac.cluster=1"}
    assert sets("ftac") == {text.format("ftac") for text in own}
    assert sets("temp") == {text.format("temp") for text in own} | {"method.ftac.auxiliary=temperature"}
    assert sets("fix") == {text.format("fix") for text in own} | {"method.ftac.decay=0.0"}
    assert sets("multilingual") == {"train.seed=5"}
    kinds = {s: ftac_stages.train_words(asked, s, 5, 0)[1] for s in ("multilingual", "bilingual", "rand")}
    assert kinds == {s: f"o/settings/{k}.toml" for s, k in zip(kinds, ("universal", "bilingual", "clusters"), strict=True)}
    assert ftac_stages.evaluate_words(asked, "ftac", 5) == ["evaluate", "o/ftac/seed-5", "--split", "test", "--limit", "7"]


def test_what_was_made_otherwise_is_refused_and_scores_of_other_lines_are_made_again(files):
    out = files.parent / "out"
    begin(read(files), TASKS, out)
    assert read_groups(out / "bilingual" / "seed-1" / "groups.json").grouping.clusters == tuple((t,) for t in TASKS)
    assert read_groups(out / "multilingual" / "seed-1" / "groups.json").grouping.clusters == (tuple(TASKS),)
    check = ftac_module.check_same
    check(read(files, "clusters.train.max_steps=9", "clustering.since_step=3"), TASKS, out)  # nothing was trained yet
    score = out / "lec" / "seed-1" / "eval" / "test.json"
    score.parent.mkdir(parents=True)
    write_groups(out / "lec" / "seed-1" / "groups.json", Grouping("lec", (tuple(TASKS),), ((),)), {})
    for system in ("lec", "multilingual"):
        (out / system / "seed-1" / "cluster-0").mkdir(parents=True)
        (out / system / "seed-1" / "cluster-0" / "training.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/groups.json")}
    score.write_text('{"limit": null, "only": null}')
    begin(read(files), TASKS, out)
    assert score.exists()
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/*/groups.json")}
    begin(read(files, "limit=5"), TASKS, out)
    assert not score.exists()
    (out / "lec" / "seed-1" / "cluster-0" / "config.toml").write_text("")
    check(read(files, "bilingual.train.max_steps=9", "seeds=[1, 2]", "split=dev", "limit=3"), TASKS, out)
    with pytest.raises(MnmtError, match="E603.*clusters trainings there have train.max_steps = 100, this workflow 9"):
        check(read(files, "clusters.train.max_steps=9"), TASKS, out)
    with pytest.raises(MnmtError, match="E603.*clustering.since_step = 0, this workflow has 3"):
        check(read(files, "clustering.since_step=3"), TASKS, out)
    with pytest.raises(MnmtError, match="E603: other directions than before: en-it"):
        check(read(files), TASKS[:2], out)


def test_a_directory_that_another_workflow_holds(files):
    lock = RunLock(files.parent / "out")
    try:
        with pytest.raises(MnmtError, match="E402.*workflow directory in use by process"):
            run_ftac(read(files), TASKS, files.parent / "out", Resources(), quiet)
    finally:
        lock.release()


def test_the_whole_chain_with_a_failure_and_then_without(files, monkeypatch):
    """Real Snakemake, real stages, verbs that only write their marks; how many models there are it learns on the way."""
    calls = install(files.parent / "fakes", monkeypatch)
    monkeypatch.setattr(ftac_module, "write_table", lambda out: None)
    (files.parent / "fakes" / "fail").write_text("htac/seed-1/cluster-1")
    workflow = read(files, 'systems=["lec", "htac", "ftac", "random"]', 'tests={path="t", name="other"}')
    out, said = files.parent / "out", []
    failed = r"htac\.seed-1\.cluster-1\.train"
    with pytest.raises(MnmtError, match=f"E604: {failed} failed: MNMT-E501.*{failed}.log"):
        run_ftac(workflow, TASKS, out, Resources(cores=4, threads=2), said.append)
    done = calls_of(calls)
    trained = [words[words.index("--run-dir") + 1].removeprefix(f"{out}/") for words in done if words[0] == "train"]
    models = {"multilingual": 1, "lec": 1, "htac": 2, "ftac": 2, "random": 2}
    assert Counter(trained) == Counter(f"{s}/seed-1/cluster-{k}" for s, n in models.items() for k in range(n))
    evaluated = Counter(words[1].removeprefix(f"{out}/").split("/")[0] for words in done if words[0] == "evaluate")
    assert evaluated == {"lec": 2, "ftac": 2, "random": 2}
    order = [" ".join(words[:2]).removeprefix(f"{out}/") for words in done]
    assert order[0] == f"prepare {out}/settings/universal.toml"
    assert order.index("probe vectors") < order.index("cluster lec")
    assert order.index("cluster ftac") < order.index("cluster random")
    assert not any(words[0] == "report" for words in done)
    table = json.loads((out / "workflow.json").read_text())
    assert (table["kind"], table["serve"], table["tasks"]) == ("workflow", "ftac/seed-1", TASKS)

    (files.parent / "fakes" / "fail").unlink()
    result = run_ftac(workflow, TASKS, out, Resources(cores=2), said.append)
    assert result == {"out": str(out), "table": None, "interrupted": False}
    again = [" ".join(words[:2]).removeprefix(f"{out}/") for words in calls_of(calls)]
    # (the store is prepared again because none has come of it, which is no reason to train again)
    assert Counter(words.split()[0] for words in again) == {"prepare": 1, "train": 1, "evaluate": 2, "report": 1}
    assert (out / "report.html").read_text() == "page"


def test_what_is_changed_or_gone_after_the_end_is_made_again(files, monkeypatch):
    """Nothing of an earlier end is taken for what is asked for now: other lines, tests, decoding or systems, models removed."""
    calls = install(files.parent / "fakes", monkeypatch)
    monkeypatch.setattr(ftac_module, "write_table", lambda out: None)
    out, systems = files.parent / "out", 'systems=["multilingual", "linguistic", "ftac"]'

    def run(*overrides: str) -> Counter[str]:
        run_ftac(read(files, systems, *overrides), TASKS, out, Resources(cores=4), quiet)
        return Counter(words[0] for words in calls_of(calls))

    tests, families = 'tests={path="t", name="other"}', "families=f.json"
    assert run(tests, families)["train"] == 5
    assert run(tests, families) == {}
    assert run(tests, families, "limit=3") == {"prepare": 1, "evaluate": 6, "report": 1}
    other = tests.replace('"t"', '"u"')
    assert run(other, families, "limit=3") == {"prepare": 1, "evaluate": 3, "report": 1}
    score = out / "ftac" / "seed-1" / "eval" / "test.json"
    score.write_text('{"limit": 3, "only": null, "weights": "step-4"}')
    (score.parent / "mine.test.json").write_text('{"limit": 50, "only": null}')
    assert run(other, families, "limit=3") == {"prepare": 1, "evaluate": 1, "report": 1}
    assert (score.parent / "mine.test.json").exists()  # nobody asked the workflow for it
    decoding = read(files).trainings["clusters"].evaluation.model_dump(mode="json")
    for change, made in (
        ({"classes": {"low": ["en-de"]}}, {"report": 1}),
        ({"beam": 99}, {"prepare": 1, "evaluate": 1, "report": 1}),
    ):
        score.write_text(json.dumps({"limit": 3, "only": None, "decoding": {**decoding, **change}}))
        assert run(other, families, "limit=3") == made, "a model has the classes of its own directions"
    with pytest.raises(MnmtError, match="E603.*decided with families"):
        run(other, "families=g.json", "limit=3")
    for path in (out / "ftac" / "seed-1").glob("cluster-*/*"):
        path.unlink()
    assert run(other, families, "limit=3") == {"prepare": 1, "train": 2, "evaluate": 2, "report": 1}
    for path in (out / "multilingual" / "seed-1" / "cluster-0").iterdir():
        path.unlink()
    assert run(other, families, "limit=3") == {"prepare": 1, "train": 5, "cluster": 2, "evaluate": 6, "report": 1}
    assert run(other, families, "limit=3", 'systems=["multilingual", "ftac"]') == {"report": 1}
