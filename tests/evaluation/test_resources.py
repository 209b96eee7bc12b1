"""Resource classes: named ones first, then sizes; names that fit nothing are refused."""

from __future__ import annotations

import pytest

from mnmt_scale import settings
from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation.config import EvaluationConfig
from mnmt_scale.evaluation.evaluate import Evaluation, Options
from mnmt_scale.evaluation.resources import check_classes, class_of
from mnmt_scale.train.config import RunConfig
from tests.support.memory_store import make_store
from tests.support.small_run import small_opened_run

NAMES = ["en-kk", "en-ro", "en-de", "en-fr"]
CONFIG = EvaluationConfig(classes={"low": ["kk", "en-fr"], "high": ["de"]}, low_below=100, high_from=1000)


def test_names_go_before_sizes_and_sizes_decide_what_is_not_named():
    assert [class_of(name, 5000, CONFIG) for name in NAMES] == ["low", "high", "high", "low"]
    assert [class_of(name, 5, CONFIG) for name in NAMES] == ["low", "low", "high", "low"]
    assert class_of("en-ro", 500, CONFIG) == "medium"
    assert class_of("fr-en", 500, CONFIG) == "medium"  # the other direction is not named
    assert [class_of("kk-en", n, EvaluationConfig()) for n in (10, 10**5, 10**6)] == ["low", "medium", "high"]
    check_classes(NAMES, "en", CONFIG)
    check_classes(NAMES, "en", EvaluationConfig())


@pytest.mark.parametrize(
    ("classes", "code", "words"),
    [
        ({"low": ["kz"]}, "E105", r"'kz' is no direction or language.*classes\.low.*did you mean 'kk'"),
        ({"high": ["en-dee"]}, "E105", "did you mean 'en-de'"),
        ({"high": ["de-en"]}, "E105", "de-en"),
        ({"low": ["kk"], "high": ["kk"]}, "E104", "'kk' is named twice, as low and as high"),
        ({"low": ["kk", "kk"]}, "E104", "named twice, as low and as low"),
        ({"low": ["fr"], "high": ["en-fr"]}, "E104", "en-fr is low by 'fr' and high by 'en-fr'"),
        ({"low": ["en"]}, "E104", "'en' is in every direction"),
    ],
)
def test_entries_that_do_not_fit_are_refused(classes, code, words):
    with pytest.raises(MnmtError, match=words) as caught:
        check_classes(NAMES, "en", EvaluationConfig(classes=classes))
    assert caught.value.code == code


def test_without_a_pivot_a_direction_between_two_classes_needs_a_name_of_its_own_class():
    names = ["de-fr", "de-kk", "fr-kk"]
    with pytest.raises(MnmtError, match="E104: de-kk is low by 'kk' and high by 'de'"):
        check_classes(names, "en", EvaluationConfig(classes={"low": ["kk"], "high": ["de"]}))
    check_classes(names, "en", EvaluationConfig(classes={"low": ["kk"], "high": ["de-fr"]}))
    check_classes(["de-en", "en-de"], "en", EvaluationConfig(classes={"low": ["de"]}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[evaluation.classes]\nlwo = ['kk']", r"E102.*evaluation\.classes"),
        ("[evaluation.classes]\nlow = 'kk'", r"E102.*evaluation\.classes\.low"),
    ],
)
def test_settings_of_the_wrong_shape(tmp_path, text, words):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(MnmtError, match=words):
        settings.load(RunConfig, path)


def test_classes_survive_the_settings_of_a_run(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[evaluation.classes]\nlow = ['kk', 'vi']\nhigh = ['en-de']\n")
    config = settings.load(RunConfig, path)
    path.write_text(settings.dump(config))
    assert settings.load(RunConfig, path) == config
    assert config.evaluation.classes == {"low": ["kk", "vi"], "high": ["en-de"]}


def test_an_evaluation_averages_by_the_named_classes(tmp_path):
    store = make_store({"de-en": 30, "en-fr": 8, "en-it": 20}, vocabulary_size=70, dev=4)
    tools = dict(comet=None, log=lambda line: None)
    directions = [("de", "en"), ("fr", "en"), ("it", "en")]
    opened = small_opened_run(tmp_path, store, directions, low_below=25, classes={"low": ["de"], "high": ["it-en"]})
    result = Evaluation(opened, store, Options(), **tools).all_directions()
    assert {n: r["class"] for n, r in result["directions"].items()} == {"de-en": "low", "fr-en": "low", "it-en": "high"}
    assert result["averages"]["high"]["bleu"] == result["directions"]["it-en"]["bleu"]
    assert result["averages"]["low"]["directions"] == 2
    wrong = small_opened_run(tmp_path, store, directions, classes={"low": ["dee"]})
    with pytest.raises(MnmtError, match=r"E105.*evaluation\.classes\.low.*'de'"):
        Evaluation(wrong, store, Options(), **tools)
