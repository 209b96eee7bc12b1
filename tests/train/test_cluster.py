"""The training of one cluster: its directions and run directory, what is validated and evaluated, what is refused."""

from __future__ import annotations

import json
import tomllib

import pytest
import torch

from mnmt_scale.data.store import TokenStore
from mnmt_scale.engine.checkpoint import load_weights
from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation.evaluate import Options, chosen_tasks, evaluate_run
from mnmt_scale.flow import Grouping
from mnmt_scale.groups import read_groups, write_groups
from mnmt_scale.methods.affinity.sampling import faded_shares
from mnmt_scale.runs import open_run
from mnmt_scale.train.cluster import of_cluster
from mnmt_scale.train.train import resolve_tasks, train
from tests.support.toy import load

CLUSTERS = (("no-en", "de-en"), ("en-af",), ("en-no", "af-en"))
HELPERS = (("af-en",), (), ("de-en",))


@pytest.fixture(scope="module")
def groups(toy, tmp_path_factory):
    path = tmp_path_factory.mktemp("groups") / "groups.json"
    write_groups(path, Grouping("ftac", CLUSTERS, HELPERS), {"source": "by hand"})
    return path


def settings_of(groups, cluster=0, *more):
    return ["method.name=ftac", f"method.ftac.groups={groups}", f"method.ftac.cluster={cluster}", "train.log_steps=1", *more]


FIRST = ("method.ftac.epoch_sentences=20", "train.validate_steps=3", "train.max_steps=7", "engine.checkpoint.every_steps=100")


@pytest.fixture(scope="module")
def trained(toy, groups, tmp_path_factory):
    """Cluster 0: de-en and no-en, which has no dev text, helped by af-en."""
    return train(load(toy, *settings_of(groups, 0, *FIRST)), tmp_path_factory.mktemp("cluster") / "run").run


def metrics(run, kind):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_run_directory_needs_no_groups_file_elsewhere(trained, groups):
    table = tomllib.loads((trained / "config.toml").read_text())
    assert table["data"]["tasks"] == ["af-en", "de-en", "no-en"]
    assert table["method"]["ftac"]["tasks"] == ["de-en", "no-en"]
    assert "groups" not in table["method"]["ftac"]
    copy = read_groups(trained / "groups.json")
    assert (copy.grouping, copy.about) == (read_groups(groups).grouping, {"source": "by hand"})


def test_sampling_begins_and_goes_on_with_equation_15(trained, toy):
    (plan,) = metrics(trained, "plan")
    share = {row["name"]: row["share"] for row in plan["tasks"]}
    base = [n**0.2 for n in (row["sentences"] for row in plan["tasks"])]
    assert [row["name"] for row in plan["tasks"]] == ["af-en", "de-en", "no-en"]
    assert list(share.values()) == pytest.approx(faded_shares(base, [1, 2], 0, 0.5)), "from the first step on"
    lines = metrics(trained, "method")
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert lines[-1]["epoch"] >= 2
    for line in lines:
        truth = faded_shares(base, [1, 2], line["epoch"], 0.5)
        assert line["weights"] == pytest.approx(dict(zip(share, truth, strict=True)))
        assert sum(line.get("drawn", {"": 1.0}).values()) == pytest.approx(1.0)
    state = json.loads((trained / "checkpoints" / "step-000007" / "state.json").read_text())["caller"]
    drawn = sum(c["epoch"] * c["sentences"] + c["position"] for c in state["learner"]["stream"]["cursors"].values())
    assert drawn // 20 == lines[-1]["epoch"] == state["method"]["state"]["epoch"]
    assert state["learner"]["stream"]["shares"] == pytest.approx(list(lines[-1]["weights"].values()))


def test_validation_is_of_the_cluster_alone(trained):
    lines = metrics(trained, "valid")
    assert lines
    for line in lines:
        assert set(line["tasks"]) == {"de-en"}
        assert line["loss"] == pytest.approx(line["tasks"]["de-en"]["nll"])
    kept = json.loads((trained / "checkpoints" / "step-000007" / "manifest.json").read_text())
    assert kept["metric"] == pytest.approx(lines[-1]["loss"])
    assert "over 1 of 2 directions" in (trained / "log.txt").read_text()
    assert "for de-en, no-en; helped by af-en" in (trained / "log.txt").read_text()


def test_resumed_training_equals_an_uninterrupted_one(trained, toy, groups, tmp_path):
    run = tmp_path / "run"
    train(load(toy, *settings_of(groups, 0, *FIRST), "train.max_steps=4"), run)
    moved = tmp_path / "moved.json"
    moved.write_text((run / "groups.json").read_text())
    train(load(toy, *settings_of(moved, 0, *FIRST)), run, "required")
    assert metrics(run, "method")[-1]["weights"] == metrics(trained, "method")[-1]["weights"]
    whole, parts = load_weights(trained, "last"), load_weights(run, "last")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_other_settings_of_fading_hold_from_the_resumed_step_on(trained, toy, groups, tmp_path):
    run = tmp_path / "run"
    train(load(toy, *settings_of(groups, 0, *FIRST), "train.max_steps=2"), run)
    train(load(toy, *settings_of(groups, 0, *FIRST), "train.max_steps=3", "method.ftac.decay=0.0"), run, "required")
    shares = {row["name"]: row["share"] for row in metrics(run, "plan")[-1]["tasks"]}
    assert shares == pytest.approx({row["name"]: row["share"] for row in metrics(trained, "plan")[0]["tasks"]})


def test_the_run_is_for_its_cluster(trained):
    opened = open_run(trained)
    assert opened.tasks.names == ["af-en", "de-en", "no-en"]
    assert [task.name for task in opened.served] == ["de-en", "no-en"]
    assert opened.helpers == ("af-en",)
    assert [task.name for task in chosen_tasks(opened, None)] == ["de-en", "no-en"]
    assert [task.name for task in chosen_tasks(opened, ["af-en"])] == ["af-en"], "asked for by name"
    result = evaluate_run(opened, Options(limit=2, beam=1))
    assert set(result["directions"]) == {"de-en", "no-en"}
    assert result["averages"]["all"]["directions"] == 2


def test_its_own_settings_make_the_same_training(trained, tmp_path):
    from mnmt_scale import settings
    from mnmt_scale.train.config import RunConfig

    again = settings.load(RunConfig, trained / "config.toml", ["train.max_steps=1"])
    result = train(again, tmp_path / "run")
    assert [task.name for task in open_run(result.run).served] == ["de-en", "no-en"]
    (tmp_path / "run" / "groups.json").write_text("of an earlier training")
    train(again, tmp_path / "run", "never")
    assert not (tmp_path / "run" / "groups.json").exists()


def test_directions_may_be_given_without_a_groups_file(toy):
    store = TokenStore.open(toy / "store")
    config = load(toy, "method.name=ftac", 'method.ftac.tasks=["de-en"]')
    assert resolve_tasks(config, store).names == ["af-en", "de-en", "no-en"]
    assert of_cluster(config, store) == (config, None)
    joint = load(toy, "method.ftac.groups=nowhere.json")
    assert of_cluster(joint, store) == (joint, None), "the settings of another method are not read"


def test_settings_about_all_clusters_do_for_each(toy, groups):
    more = ("sampling.tasks_per_batch=2", f"data.tasks={json.dumps(['no-en', *sum(CLUSTERS, ())[1:]])}")
    weights = 'sampling.weights={"de-en"=2, "no-en"=1, "af-en"=3, "en-af"=1, "en-no"=1}'
    classes = 'evaluation.classes={low=["no"], high=["en-af", "de"], medium=["af-en"]}'
    config = load(toy, *settings_of(groups), "sampling.kind=fixed", weights, classes, *more)
    first, _ = of_cluster(config, TokenStore.open(toy / "store"))
    assert first.sampling.weights == {"de-en": 2, "no-en": 1, "af-en": 3}
    assert first.evaluation.classes == {"low": ["no-en"], "high": ["de-en"], "medium": ["af-en"]}
    second, _ = of_cluster(config.model_copy(update={"method": second_of(config)}), TokenStore.open(toy / "store"))
    assert (first.sampling.tasks_per_batch, second.sampling.tasks_per_batch) == (2, 0)
    assert second.data.tasks == ["en-af"]
    assert second.evaluation.classes == {"low": [], "high": ["en-af"], "medium": []}


def second_of(config):
    return config.method.model_copy(update={"ftac": config.method.ftac.model_copy(update={"cluster": 1})})


def test_training_that_is_for_nothing_is_refused(toy, tmp_path):
    with pytest.raises(MnmtError, match=r"E104.*which directions.*method.ftac.groups"):
        train(load(toy, "method.name=ftac"), tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["method.ftac.cluster=3"], r"E104.*cluster = 3, but there are 3 clusters, numbered from 0 at .*groups.json"),
        (["evaluation.classes={low=['xx']}"], "E105.*'xx'"),
        (["data.tasks=['af-en', 'de-en', 'no-en', 'en-af']"], "E105: unknown direction 'en-no' at .*groups.json"),
        (["sampling.kind=fixed", "sampling.weights={'de-en'=1, 'de-no'=1}"], "E105.*'de-no'"),
    ],
)
def test_cluster_that_does_not_fit_is_refused_before_anything_is_written(toy, groups, tmp_path, more, words):
    with pytest.raises(MnmtError, match=words):
        train(load(toy, *settings_of(groups), *more), tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()


def test_directions_that_are_not_there_are_refused(toy, tmp_path):
    path = tmp_path / "groups.json"
    write_groups(path, Grouping("ftac", (("de-en",), ("af-no",)), ((), ())), {})
    with pytest.raises(MnmtError, match=r"E105: unknown direction 'af-no'.*groups.json"):
        train(load(toy, *settings_of(path)), tmp_path / "run")
    with pytest.raises(MnmtError, match="E606"):
        train(load(toy, *settings_of(tmp_path / "other.json")), tmp_path / "run")
    with pytest.raises(MnmtError, match=r"E105.*'dd-en' is not among.*method.ftac.tasks.*did you mean 'de-en'"):
        train(load(toy, "method.name=ftac", 'method.ftac.tasks=["dd-en"]'), tmp_path / "run")
    with pytest.raises(MnmtError, match="E208"):
        train(load(toy, "method.name=ftac", 'method.ftac.tasks=["de-en", "de-en"]'), tmp_path / "run")


def test_checkpoint_of_another_cluster_is_refused(trained, toy, groups, tmp_path):
    path = tmp_path / "groups.json"
    write_groups(path, Grouping("ftac", (("af-en", "de-en"), ("no-en",)), (("no-en",), ())), {})
    before = (trained / "config.toml").read_text()
    with pytest.raises(MnmtError, match=r"E405.*for de-en, no-en, this run is for af-en, de-en"):
        train(load(toy, *settings_of(path, 0, *FIRST)), trained, "required")
    assert (trained / "config.toml").read_text() == before
