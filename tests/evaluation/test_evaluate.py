"""Evaluation of a run: what is scored, averaged, written and compared."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mnmt_scale.data.packing import pack_batch
from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation.config import EvaluationConfig
from mnmt_scale.evaluation.evaluate import Evaluation, chosen_tasks
from mnmt_scale.evaluation.likelihood import negative_log_likelihood
from mnmt_scale.evaluation.resources import averages, resource_class
from mnmt_scale.evaluation.scope import Options, profile_text
from mnmt_scale.evaluation.testsets import find_test_set
from mnmt_scale.flow import IGNORE
from tests.support.memory_store import MemoryPair, make_side, make_store
from tests.support.small_run import small_opened_run

DIRECTIONS = [("de", "en"), ("fr", "en"), ("it", "en")]
TOOLS = dict(comet=None, log=lambda line: None)


def make():
    """Three pairs; it-en has no test set; the English test lines of the others are the same."""
    store = make_store({"de-en": 30, "en-fr": 8, "en-it": 20}, vocabulary_size=70, dev=6)
    del store.content["test"]["en-it"]
    english = store.content["test"]["de-en"].side("en")
    french = store.content["test"]["en-fr"].side("fr")
    store.content["test"]["en-fr"] = MemoryPair("en-fr", ("en", "fr"), {"en": english, "fr": french})
    return store


@pytest.fixture
def store():
    return make()


@pytest.fixture
def opened(tmp_path, store):
    return small_opened_run(tmp_path, store, DIRECTIONS, low_below=10, high_from=25, zero_shot=["de-fr"])


def test_everything_is_written_side_by_side(opened, store):
    result = Evaluation(opened, store, Options(), **TOOLS).all_directions()
    assert json.loads((opened.path / "eval" / "test.json").read_text()) == result
    assert result["missing"] == ["it-en"]
    assert {n: r["class"] for n, r in result["directions"].items()} == {"de-en": "high", "fr-en": "low", "de-fr": "zero-shot"}
    for name, row in result["directions"].items():
        texts = {k: (opened.path / "eval" / f"test.{name}.{k}").read_text().split("\n") for k in ("src", "ref", "hyp")}
        assert {len(lines) for lines in texts.values()} == {7}
        source, target = name.split("-")
        assert texts["src"][:-1] == store.text("de-en" if source == "de" else "en-fr", "test", source)
        assert row["lines"] == 6
        assert row["empty_hypotheses"] == sum(not line for line in texts["hyp"][:-1])
        assert "tok:13a" in row["bleu_signature"]
    assert result["directions"]["de-fr"]["test_set_through"] == "en"
    assert not list((opened.path / "eval").glob("*.partial"))
    rows, means = result["directions"], result["averages"]
    assert set(means) == {"all", "low", "high", "zero-shot"}
    assert means["all"]["directions"] == 2
    assert means["all"]["nll"] == pytest.approx((rows["de-en"]["nll"] + rows["fr-en"]["nll"]) / 2)
    assert means["zero-shot"]["bleu"] == rows["de-fr"]["bleu"]


def test_limit_and_only(opened, store):
    result = Evaluation(opened, store, Options(limit=2, only=["en-fr"], beam=1), **TOOLS).all_directions()
    assert list(result["directions"]) == ["fr-en"]
    assert result["directions"]["fr-en"]["lines"] == 2
    assert result["decoding"]["beam"] == 1
    assert (result["limit"], result["only"]) == (2, ["en-fr"])


def test_comparison_with_another_run(tmp_path, store):
    first, second = (small_opened_run(tmp_path / name, store, DIRECTIONS, bootstrap_samples=50) for name in "ab")
    for run in (first, second):
        run.path.mkdir()
    options = Options(against=first.path)
    with pytest.raises(MnmtError, match=r"E603.*not evaluated"):
        Evaluation(second, store, options, **TOOLS).all_directions()
    Evaluation(first, store, Options(only=["de-en"]), **TOOLS).all_directions()
    found = Evaluation(second, store, options, **TOOLS).all_directions()["against"]["directions"]
    assert found["fr-en"] is None
    assert [d["metric"] for d in found["de-en"]] == ["BLEU", "chrF++"]
    assert all(d["system"] == d["baseline"] and d["p"] > 0.5 for d in found["de-en"])
    reference = first.path / "eval" / "test.de-en.ref"
    reference.write_text(reference.read_text().replace("w", "v", 1))
    with pytest.raises(MnmtError, match=r"E603.*different lines of de-en"):
        Evaluation(second, store, options, **TOOLS).all_directions()


def test_nll_is_that_of_the_reference_tokens(opened, store):
    task = opened.tasks.by_name("de-en")
    sources, references = store.text("de-en", "test", "de"), store.text("de-en", "test", "en")
    found, tokens = negative_log_likelihood(
        opened.model, store.tokenizer, task, sources, references, max_tokens=32, batch_tokens=40
    )
    expected, count = 0.0, 0
    for source, reference in zip(sources, references, strict=True):
        ids = [store.tokenizer.encode([line])[0] for line in (source, reference)]
        batch = pack_batch([ids[0]], [ids[1]], [0], [task], store.tokenizer)
        log_probs = torch.log_softmax(opened.model.hidden(batch) @ opened.model.shared.weight.T, -1)
        for row, label in zip(log_probs, batch.target_out.tolist(), strict=True):
            if label != IGNORE:
                expected, count = expected - float(row[label]), count + 1
    assert tokens == count == sum(len(line.split()) + 1 for line in references)
    assert found == pytest.approx(expected, rel=1e-5)
    cut, fewer = negative_log_likelihood(
        opened.model, store.tokenizer, task, sources, references, max_tokens=5, batch_tokens=40
    )
    assert fewer == sum(min(len(line.split()), 3) + 1 for line in references)
    assert math.isfinite(cut)


def test_a_pivot_aligns_only_lines_that_are_unique(store):
    tokenizer = store.tokenizer
    word = tokenizer.first_word
    sides = {
        "de-en": ([[word], [word + 1], [word + 2], [word + 3]], [[word + 9], [word + 8], [word + 8], [word + 7]]),
        "en-fr": ([[word + 7], [word + 8], [word + 9]], [[word + 4], [word + 5], [word + 6]]),
    }
    for pair, both in sides.items():
        codes = tuple(pair.split("-"))
        store.content["test"][pair] = MemoryPair(pair, codes, dict(zip(codes, map(make_side, both), strict=True)))
    found = find_test_set(store, "de", "fr", "test")
    assert (found.source, found.reference, found.through) == (["w0", "w3"], ["w6", "w4"], "en")
    assert find_test_set(store, "de", "it", "test") is None
    assert find_test_set(store, "de", "en", "test").through is None


def test_unknown_directions_name_the_nearest(opened):
    with pytest.raises(MnmtError, match=r"E105.*'de-en'"):
        chosen_tasks(opened, ["dee-en"])
    assert [t.name for t in chosen_tasks(opened, ["de-fr", "en-de"])] == ["de-fr", "de-en"]


def test_classes_and_means():
    config = EvaluationConfig(low_below=100, high_from=1000)
    assert [resource_class(n, config) for n in (0, 99, 100, 999, 1000)] == ["low", "low", "medium", "medium", "high"]
    rows = {
        "a-en": {"class": "low", "bleu": 10.0, "chrf": 1.0, "bleu_signature": "x", "comet": 0.5},
        "b-en": {"class": "low", "bleu": 30.0, "chrf": 3.0, "bleu_signature": "y"},
        "a-b": {"class": "zero-shot", "bleu": 2.0, "chrf": 9.0, "bleu_signature": "x"},
    }
    means = averages(rows)
    assert means["all"] == means["low"] == {"directions": 2, "bleu": 20.0, "chrf": 2.0, "mixed_signatures": True}
    assert means["zero-shot"]["mixed_signatures"] is False
    assert averages({}) == {}


def test_profiles_take_lines_from_the_whole_corpus(store, monkeypatch):
    text = profile_text(store, ["de", "en", "fr"], lines=4)
    assert {language: len(lines) for language, lines in text.items()} == {"de": 4, "fr": 4, "en": 12}
    monkeypatch.setattr("mnmt_scale.evaluation.scope.LANGUAGE_LINES", 8)
    fewer = profile_text(store, ["de", "en", "fr"], lines=4)
    assert {language: len(lines) for language, lines in fewer.items()} == {"de": 4, "fr": 4, "en": 6}
    assert fewer["de"] == text["de"]
    side = store.pair("de-en", "train").side("de")
    starts = [int(side.offsets[i]) for i in (0, 7, 15, 22)]
    assert [line.split()[0] for line in text["de"]] == [store.tokenizer.decode([[side.tokens[s]]])[0] for s in starts]
