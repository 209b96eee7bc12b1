"""Test sets of another corpus than the one that was trained on (``--tests``)."""

from __future__ import annotations

import json

import pytest

from mnmt_scale.data.config import CleanConfig
from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation.evaluate import evaluate_run
from mnmt_scale.evaluation.scope import Options
from mnmt_scale.evaluation.testsets import TreeTexts, find_test_set
from tests.support.bundles import make_bundle
from tests.support.corpora import parallel, write_pair
from tests.support.small_run import prepared_run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run, a bundle over the same store, its own corpus, and another corpus with languages that it does not know."""
    directory = tmp_path_factory.mktemp("second")
    make_bundle(directory)
    prepared_run(directory, "run")
    other = directory / "other"
    write_pair(other, "de-en", test=parallel(5, 50))
    write_pair(other, "en-it", test=parallel(4, 51), dev=parallel(3, 52))
    write_pair(other, "en-xx", test=parallel(3, 53))
    write_pair(other, "xx-yy", part="zero-shot", test=parallel(3, 54))
    return directory


def measured(result):
    without = ("decode_seconds", "target_tokens_per_second")
    return {name: {k: v for k, v in row.items() if k not in without} for name, row in result["directions"].items()}


def test_the_corpus_itself_gives_what_the_store_gives(base):
    """The raw text of the pairs that were trained, read again: every number is the same, and the files stand beside."""
    plain = evaluate_run(base / "run")
    again = evaluate_run(base / "run", Options(tests=base / "corpus", tests_name="same"))
    assert measured(again) == measured(plain)
    assert again["missing"] == plain["missing"] == ["it-en"]
    assert again["tests"] == {"name": "same", "directory": str(base / "corpus"), "untagged": []}
    folder = base / "run" / "eval"
    assert json.loads((folder / "same.test.json").read_text()) == again
    assert json.loads((folder / "test.json").read_text()) == plain
    for name in plain["directions"]:
        for kind in ("src", "ref", "hyp"):
            assert (folder / f"same.test.{name}.{kind}").read_bytes() == (folder / f"test.{name}.{kind}").read_bytes()


def test_another_corpus_for_a_bundle(base, capsys):
    """Directions that it lacks are missing, languages without a tag are named; sizes are those of training."""
    from mnmt_scale.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(base / "ftac" / "seed-1"), "--tests", str(base / "other")])
    printed = capsys.readouterr()
    assert left.value.code == 0, printed.err
    assert "without a tag in the vocabulary: xx, yy" in printed.out
    assert "no test set, not averaged: fr-en" in printed.out
    result = json.loads((base / "ftac" / "seed-1" / "eval" / "other.test.json").read_text())
    assert {n: (r["model"], r["lines"]) for n, r in result["directions"].items()} == {
        "de-en": ("cluster-0", 5),
        "en-de": ("cluster-2", 5),
        "it-en": ("cluster-0", 4),
    }
    assert result["tests"]["untagged"] == ["xx", "yy"]
    assert result["directions"]["it-en"]["train_sentences"] == 60
    lines = (base / "ftac" / "seed-1" / "eval" / "other.test.it-en.src").read_text().splitlines()
    assert lines == parallel(4, 51)[1]


def test_comparing_is_with_the_same_corpus(base):
    options = Options(tests=base / "other", tests_name="paired", only=["de-en"])
    with pytest.raises(MnmtError, match=r"E603.*not evaluated.*--tests-name paired"):
        evaluate_run(base / "run", Options(**{**asdict(options), "against": base / "ftac" / "seed-1"}))
    evaluate_run(base / "ftac" / "seed-1", options)
    result = evaluate_run(base / "run", Options(**{**asdict(options), "against": base / "ftac" / "seed-1"}))
    assert [d["metric"] for d in result["against"]["directions"]["de-en"]] == ["BLEU", "chrF++"]


def asdict(options):
    return {name: getattr(options, name) for name in ("tests", "tests_name", "only")}


def test_a_pivot_aligns_other_corpora_too(base, tmp_path):
    english = parallel(6, 3)[0]
    write_pair(tmp_path, "de-en", test=([f"d{i}" for i in range(6)], english))
    write_pair(tmp_path, "en-fr", test=(english[2:5], ["f2", "f3", "f4"]))
    found = find_test_set(TreeTexts(tmp_path, "test", CleanConfig()), "fr", "de", "test")
    assert (found.source, found.reference, found.through) == (["f2", "f3", "f4"], ["d2", "d3", "d4"], "en")


def test_what_cannot_be_used_is_refused(base, tmp_path):
    run = base / "run"
    with pytest.raises(MnmtError, match=r"E201.*directory missing"):
        evaluate_run(run, Options(tests=tmp_path / "nowhere"))
    with pytest.raises(MnmtError, match=r"E201.*language pair"):
        evaluate_run(run, Options(tests=tmp_path, tests_name="x"))
    write_pair(tmp_path / "strange", "xx-yy", test=parallel(3, 1))
    with pytest.raises(MnmtError, match=r"E201.*no test set of any direction.*it has xx-yy"):
        evaluate_run(run, Options(tests=tmp_path / "strange"))
    assert not (run / "eval" / "strange.test.json").exists()
    with pytest.raises(MnmtError, match=r"E201.*no pair has a dev set"):
        evaluate_run(run, Options(tests=tmp_path / "strange", split="dev"))
    with pytest.raises(MnmtError, match=r"E104.*--tests"):
        Options(tests_name="x")
    for name in ("a.b", "a/b", ""):
        with pytest.raises(MnmtError, match=r"E102.*--tests-name"):
            Options(tests=tmp_path / "v1.0", tests_name=name)
    bad = write_pair(tmp_path / "bad", "de-en", test=(["eins", "zwei"], ["one"]))
    with pytest.raises(MnmtError, match=r"E202.*2 and 1 lines"):
        evaluate_run(run, Options(tests=bad.parents[1]))
