"""Bundles of cluster models as one translator: which model is asked, what is refused, one table of all of them."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest

from mnmt_scale.bundle import is_bundle, open_bundle
from mnmt_scale.cli.main import main
from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation import evaluate, scope
from mnmt_scale.evaluation.evaluate import evaluate_run
from mnmt_scale.evaluation.offtarget import LanguageProfiles
from mnmt_scale.evaluation.scope import Options
from mnmt_scale.flow import Grouping
from mnmt_scale.groups import write_groups
from mnmt_scale.runs import open_run
from tests.support.bundles import CLUSTERS, HELPERS, change_settings, make_bundle, make_workflow

ALL = ("de-en", "en-de", "fr-en", "it-en")
EACH = ("seconds", "decode_seconds", "target_tokens_per_second")


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """A workflow directory: the bundle that it serves, and that of the universal model."""
    directory = tmp_path_factory.mktemp("workflow")
    make_bundle(directory)
    make_bundle(directory, "multilingual/seed-1", clusters=(ALL,), helpers=((),), method="affinity")
    return make_workflow(directory)


@pytest.fixture
def copied(workflow, tmp_path):
    """The served bundle, to be spoilt."""
    shutil.copytree(workflow / "ftac" / "seed-1", tmp_path / "bundle", ignore=shutil.ignore_patterns("eval"))
    return tmp_path / "bundle"


@pytest.fixture
def mnmt(monkeypatch, capfdbinary):
    """``mnmt(arguments, input) -> (exit code, output, errors)``, in this process."""

    def call(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        out, err = capfdbinary.readouterr()
        return int(left.value.code or 0), out.decode(), err.decode()

    return call


def rows(result, *without):
    left_out = {*EACH, *without}
    return {name: {k: v for k, v in row.items() if k not in left_out} for name, row in result["directions"].items()}


def test_a_workflow_directory_stands_for_the_bundle_that_it_serves(workflow):
    bundle = open_bundle(workflow)
    assert bundle.path == workflow / "ftac" / "seed-1"
    assert bundle.routes == {"de-en": "cluster-0", "en-de": "cluster-2", "fr-en": "cluster-1", "it-en": "cluster-0"}
    assert bundle.run_for("fr", "en") == bundle.path / "cluster-1"  # it helps in cluster-0, which does not serve it
    assert [t.name for t in bundle.chosen(["en-de", "fr-en", "en-it"])] == ["en-de", "fr-en", "it-en"]
    assert open_bundle(workflow / "multilingual" / "seed-1").routes == dict.fromkeys(ALL, "cluster-0")


def test_a_run_that_keeps_its_groups_file_is_a_run(copied):
    shutil.copy(copied / "groups.json", copied / "cluster-0")
    assert is_bundle(copied)
    assert not is_bundle(copied / "cluster-0")
    assert not is_bundle(copied / "nowhere")
    with pytest.raises(MnmtError, match=r"E407.*one of its cluster directories"):
        open_run(copied)


def test_workflows_without_a_bundle_say_what_there_is(workflow, tmp_path):
    with pytest.raises(MnmtError, match=r"E407.*no bundle"):
        open_bundle(make_workflow(tmp_path, serve=None))
    with pytest.raises(MnmtError, match=r"E407.*not made its bundle lec/seed-2 yet.*; run it to its end"):
        open_bundle(make_workflow(tmp_path, serve="lec/seed-2"))
    shutil.copytree(workflow / "ftac" / "seed-1", tmp_path / "ftac" / "seed-1")
    with pytest.raises(MnmtError, match=r"lec/seed-2 yet.*ftac/seed-1"):
        open_bundle(tmp_path)
    (tmp_path / "workflow.json").write_text("{")
    with pytest.raises(MnmtError, match=r"E407.*not a workflow file"):
        open_bundle(tmp_path)


def test_a_cluster_without_its_run_is_refused(copied):
    (copied / "cluster-1" / "config.toml").unlink()
    with pytest.raises(MnmtError, match=r"E407.*not a run directory.*cluster-1"):
        open_bundle(copied)
    shutil.rmtree(copied / "cluster-1")
    with pytest.raises(MnmtError, match=r"E407.*lacks the model of fr-en .*cluster-1"):
        open_bundle(copied)


def test_groups_and_runs_that_disagree_are_refused(copied):
    groups = copied / "groups.json"
    (copied / "cluster-0").rename(copied / "aside")
    (copied / "cluster-1").rename(copied / "cluster-0")
    (copied / "aside").rename(copied / "cluster-1")
    with pytest.raises(MnmtError, match=r"E606.*cluster-0 .*de-en fr-en it-en"):
        open_bundle(copied)
    swapped = Grouping("ftac", (CLUSTERS[1], CLUSTERS[0], CLUSTERS[2]), (HELPERS[1], HELPERS[0], HELPERS[2]))
    write_groups(groups, swapped, {})
    assert open_bundle(copied).routes["fr-en"] == "cluster-0"
    write_groups(groups, Grouping("ftac", swapped.clusters, ((), (), ())), {})
    with pytest.raises(MnmtError, match=r"E606.*cluster-1 .*disagree about fr-en"):  # trained with a helper, now without
        open_bundle(copied)
    write_groups(groups, Grouping("ftac", (("de-en",), ("it-en",)), ((), ())), {})
    with pytest.raises(MnmtError, match="E606"):
        open_bundle(copied)
    groups.write_text(groups.read_text().replace("it-en", "de-en"))
    with pytest.raises(MnmtError, match=r"E606.*de-en is in two clusters"):
        open_bundle(copied)


def test_a_model_of_another_method_may_know_more_than_its_cluster(copied):
    change_settings(copied / "cluster-1", method={"name": "joint"}, data={"tasks": ["de-en", "fr-en"]})
    assert open_bundle(copied).routes["fr-en"] == "cluster-1"
    change_settings(copied / "cluster-1", data={"tasks": ["de-en"]})
    with pytest.raises(MnmtError, match=r"E606.*fr-en"):
        open_bundle(copied)


def test_translate_asks_the_model_of_the_cluster(workflow, mnmt):
    bundle, text = workflow / "ftac" / "seed-1", b"abe dob\n\nke lo mi\n"
    for source, target, model in (("fr", "en", "cluster-1"), ("de", "en", "cluster-0"), ("en", "de", "cluster-2")):
        code, out, err = mnmt("translate", workflow, "--from", source, "--to", target, stdin=text)
        assert (code, err) == (0, "")
        alone = mnmt("translate", bundle / model, "--from", source, "--to", target, stdin=text)
        assert alone == (0, out, "")
        assert out.count("\n") == 3
    others = {mnmt("translate", bundle / f"cluster-{k}", "--from", "fr", "--to", "en", stdin=text)[1] for k in (0, 1)}
    assert len(others) == 2, "the test would not see the wrong model"
    assert mnmt("translate", bundle, "--to", "de", stdin=text)[1] == out  # one source: it may be left out


@pytest.mark.parametrize(
    ("languages", "says"),
    [
        (("--from", "de", "--to", "fr"), "no model of this bundle translates 'de-fr' at .*; there are de-en$"),
        (("--from", "en", "--to", "it"), "'en-it' at .*; there are en-de"),
        (("--to", "en"), "choose one of: de fr it"),
        (("--to", "enn", "--from", "de"), "did you mean 'en'"),
    ],
)
def test_translate_refuses_what_no_model_serves(workflow, mnmt, languages, says):
    code, out, err = mnmt("translate", workflow, *languages, stdin=b"abe\n")
    assert (code, out) == (2, "")
    assert err.startswith("MNMT-E105: ")
    assert err.count("\n") == 1
    assert re.search(says, err), err


def test_evaluate_makes_one_table_of_all_models(workflow, monkeypatch):
    opened = []
    monkeypatch.setattr(evaluate, "open_run", lambda run, *rest: opened.append(run.name) or open_run(run, *rest))
    result = evaluate_run(workflow)
    assert opened == ["cluster-0", "cluster-1", "cluster-2"]
    bundle = workflow / "ftac" / "seed-1"
    assert json.loads((bundle / "eval" / "test.json").read_text()) == result
    assert {n: r["model"] for n, r in result["directions"].items()} == {
        "de-en": "cluster-0",
        "en-de": "cluster-2",
        "fr-en": "cluster-1",
    }
    assert result["missing"] == ["it-en"]
    assert result["averages"]["all"]["directions"] == 3
    assert set(result["models"]) == {"cluster-0", "cluster-1", "cluster-2"}
    assert (result["weights"], result["models"]["cluster-1"]["weights"]) == ("best", "best")
    for name, row in result["directions"].items():
        alone = evaluate_run(bundle / row["model"], Options(only=[name]))
        assert rows(alone, "off_target")[name] == rows(result, "off_target", "model")[name]
        for kind in ("src", "ref", "hyp"):
            files = [d / "eval" / f"test.{name}.{kind}" for d in (bundle, bundle / row["model"])]
            assert files[0].read_text() == files[1].read_text()
    opened.clear()
    some = evaluate_run(workflow, Options(only=["fr-en", "en-it"], beam=1, split="dev"))
    assert opened == ["cluster-0", "cluster-1"]
    assert (list(some["directions"]), some["decoding"]["beam"]) == (["fr-en", "it-en"], 1)


def test_bundles_are_judged_and_compared_alike(workflow, mnmt, monkeypatch):
    """A model of one direction knows two languages, yet its outputs are judged among those of the whole bundle."""
    judges = []
    monkeypatch.setattr(scope, "LanguageProfiles", lambda text: judges.append(sorted(text)) or LanguageProfiles(text))
    universal = workflow / "multilingual" / "seed-1"
    code, out, err = mnmt("evaluate", universal, "--json")
    assert code == 0, err
    plain = json.loads(out)
    code, out, err = mnmt("evaluate", workflow, "--against", universal, "--json")
    assert code == 0, err
    ours = json.loads(out)
    for name in ours["directions"]:
        assert ours["directions"][name]["train_sentences"] == plain["directions"][name]["train_sentences"]
        assert {d["metric"] for d in ours["against"]["directions"][name]} == {"BLEU", "chrF++"}
    code, out, err = mnmt("evaluate", universal, "--against", workflow)
    assert code == 0, err
    assert "paired bootstrap" in out
    assert "cluster-0" in out
    assert judges == 3 * [["de", "en", "fr", "it"]]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (Options(only=["de-fr"]), "E105", "'de-fr' at .*there are de-en en-de fr-en it-en"),
        (Options(against="nowhere"), "E603", "not evaluated"),
    ],
)
def test_evaluate_refuses(workflow, tmp_path, options, code, says):
    if options.against is not None:
        options = Options(against=tmp_path / "nowhere")
    with pytest.raises(MnmtError, match=f"{code}.*{says}"):
        evaluate_run(workflow, options)


def test_models_that_decode_differently_make_no_table(copied):
    change_settings(copied / "cluster-2", evaluation={"beam": 4})
    with pytest.raises(MnmtError, match=r"E603.*cluster-0 and cluster-2.*evaluation.beam"):
        evaluate_run(copied)


def test_classes_and_zero_shot_directions_of_the_models_are_put_together(copied):
    """A training keeps the classes of its own directions alone."""
    change_settings(copied / "cluster-0", evaluation={"classes": {"high": ["de-en"], "low": ["it-en", "fr-en"]}})
    change_settings(copied / "cluster-1", evaluation={"classes": {"low": ["fr-en"], "medium": []}})
    change_settings(copied / "cluster-2", evaluation={"zero_shot": ["de-fr", "de-en"]})
    said = []
    result = evaluate_run(copied, Options(limit=2), log=said.append)
    assert result["decoding"]["classes"] == {"high": ["de-en"], "low": ["it-en", "fr-en"], "medium": []}
    assert {n: r["class"] for n, r in result["directions"].items()} == {"de-en": "high", "fr-en": "low", "en-de": "low"}
    assert any("de-fr not evaluated" in line for line in said)
    change_settings(copied / "cluster-1", evaluation={"classes": {"low": ["fr-enn"]}})
    with pytest.raises(MnmtError, match=r"E105.*'fr-enn'.*'fr-en'"):
        evaluate_run(copied)
