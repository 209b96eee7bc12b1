"""Settings: what a user can get wrong, and that what is dumped loads again."""

import pytest

from mnmt_scale import settings
from mnmt_scale.errors import MnmtError
from mnmt_scale.train.config import RunConfig


def load(tmp_path, text, overrides=()):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return settings.load(RunConfig, path, overrides)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[engine]\nzero_stag = 2", "E101", "did you mean 'engine.zero_stage'"),
        ("[engine.schedule]\nwarmup_tokens = 2", "E101", "engine.schedule.warmup_steps"),
        ("[trian]\nseed = 2", "E101", "train"),
        ('[batch]\nbatch_tokens = "32k"', "E102", "whole number of tokens"),
        ("[batch]\nbatch_tokens = 3.5", "E102", "batch.batch_tokens"),
        ('[engine.optimizer]\nlearning_rate = "1e-3"', "E102", "learning_rate"),
        ("[model]\ndropout = 10", "E102", "model.dropout"),
        ('[model]\nnorm = "prae"', "E102", "'pre'"),
        ("[model]\nheads = 7", "E104", "multiple of heads"),
        ('[model]\nattention = "packed"\nattention_dropout = 0.1', "E104", "attention_dropout"),
        ("[data]\nmax_tokens = 5000", "E104", "max_positions"),
        ('[sampling]\nkind = "fixed"', "E104", "weights"),
        ("data = 3", "E102", "data"),
        ("[data", "E103", "TOML"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path, text, code, words):
    with pytest.raises(MnmtError) as caught:
        load(tmp_path, text)
    assert caught.value.code == code
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_language_no_stays_a_language(tmp_path):
    config = load(tmp_path, '[data]\npivot = "en"\ntasks = ["no-en"]')
    assert config.data.tasks == ["no-en"]


def test_base_is_merged_key_by_key_and_set_goes_over_it(tmp_path):
    (tmp_path / "base.toml").write_text('name = "b"\n[model]\npreset = "tiny"\ndropout = 0.3\n')
    config = load(tmp_path, 'base = "base.toml"\n[model]\ndropout = 0.2\n', ["model.d_ffn=64", "name=x y"])
    assert (config.name, config.model.dropout, config.model.d_model, config.model.d_ffn) == ("x y", 0.2, 128, 64)


def test_bases_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text('base = "run.toml"')
    with pytest.raises(MnmtError, match="E103"):
        load(tmp_path, 'base = "a.toml"')


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "lafand.toml").write_text("")
    with pytest.raises(MnmtError, match=r"E103.*lafand\.toml"):
        settings.load(RunConfig, tmp_path / "lafnd.toml")


def test_dump_loads_to_equal_settings(tmp_path):
    config = load(
        tmp_path,
        '[sampling]\ntemperature = inf\n[model]\npreset = "ted"\n[[data.corpora]]\npath = "x"\n[engine.deepspeed]\na = {b = 1}',
    )
    assert load(tmp_path, settings.dump(config)) == config


def test_every_setting_is_listed_with_its_default():
    rows = {name: (default, text) for name, default, text in settings.reference(RunConfig)}
    assert rows["engine.optimizer.learning_rate"][0] == "0.0005"
    assert "(1/temperature)" in rows["sampling.temperature"][1]
