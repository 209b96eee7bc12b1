"""Runs with random weights, exported once for all tests of this folder."""

from __future__ import annotations

import pytest

from mnmt_scale.export import hf
from mnmt_scale.export.export import export
from tests.support.hf_model import random_m2m100
from tests.support.random_run import make_run

MANY_TO_ONE = ["eo-en", "ku-en", "ky-en", "nb-en", "nn-en", "no-en", "zh-en"]
"""Codes of OPUS-100 that the M2M100 tokenizer class does not have, among others; ``no`` is Norwegian."""
MANY_TO_MANY = ["en-fr", "en-ky", "fr-en", "ky-en"]


@pytest.fixture(scope="session")
def many_to_one(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "many-to-one", MANY_TO_ONE)


@pytest.fixture(scope="session")
def many_to_many(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "many-to-many", MANY_TO_MANY, tokenizer="bpe", activation="gelu", seed=1)


@pytest.fixture(scope="session")
def post_norm(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "post-norm", ["fr-en"], norm="post", seed=2)


@pytest.fixture(scope="session")
def without_affine(tmp_path_factory):
    """CATS' "-LN", one to many."""
    runs = tmp_path_factory.mktemp("runs")
    return make_run(runs / "no-affine", ["en-fr", "en-zh"], norm_affine=False, activation="silu", encoder_layers=1, seed=3)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, many_to_one, many_to_many, without_affine):
    """Directory of the Hugging Face export of each pre-norm run, with what ``export`` returned."""
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("exported")
    return {
        run.name: (out / run.name, export(run, "hf", out / run.name)) for run in (many_to_one, many_to_many, without_affine)
    }


@pytest.fixture
def m2m100(tmp_path):
    """(model of transformers, directory that it saved); no tokenizer."""
    pytest.importorskip("transformers")
    model = random_m2m100(90)
    with hf.quiet_transformers():
        model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf"
