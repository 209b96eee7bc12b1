"""Language vectors: the embeddings of the tags, of a run and of fresh weights."""

from __future__ import annotations

import pytest
import torch

from mnmt_scale import dist
from mnmt_scale.cli import probe as command
from mnmt_scale.cli.main import main
from mnmt_scale.engine.checkpoint import load_weights
from mnmt_scale.errors import MnmtError
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.probes import read_probe
from mnmt_scale.runs import load_tokenizer
from mnmt_scale.train.probe import _neighbours
from mnmt_scale.train.probe_run import probe
from mnmt_scale.train.train import train
from tests.support.toy import load

LANGUAGES = ["af", "de", "en", "no"]


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    run = tmp_path_factory.mktemp("vectors") / "run"
    train(load(toy, "train.max_steps=4", "engine.ema_decay=0.5"), run, "never")
    return run


def test_vectors_of_a_run_are_the_rows_of_its_tags(run, monkeypatch):
    said = []
    monkeypatch.setattr(command, "emit", lambda *result: said.append(result))
    monkeypatch.setattr(dist, "leave", lambda: None)  # other tests of this process go on with the process group
    with pytest.raises(SystemExit) as left:
        main(["probe", "vectors", str(run), "--weights", "last", "--json"])
    assert left.value.code == 0
    [(result, as_json, text)] = said
    assert as_json
    assert len(text.splitlines()) == 1 + len(LANGUAGES) + 1
    path = run / "probes" / "vectors-step-000004.safetensors"
    assert result["file"] == str(path)
    file = read_probe(path, "vectors")
    assert file.about["languages"] == LANGUAGES
    assert (file.about["tasks"], file.about["directions"]) == (["af-en", "de-en", "no-en"], "many-to-one")
    assert (file.about["step"], file.about["tokens"] > 0) == (4, True)
    rows = [load_tokenizer(run).tag_id(language) for language in LANGUAGES]
    assert torch.equal(file.tensors["vectors"], load_weights(run, "last")["shared.weight"][rows].double())
    assert set(result["languages"]) == set(LANGUAGES)


def test_vectors_of_fresh_weights(toy, tmp_path):
    out = tmp_path / "x.safetensors"
    found = probe("vectors", toy / "toy.toml", ["train.seed=3", "data.directions=one-to-many"], out=out)
    assert found.about["directions"] == "one-to-many"
    tokenizer = load_tokenizer(toy / "store")
    torch.manual_seed(3)
    weight = Transformer(load(toy).model, tokenizer.vocabulary_size, pad_id=tokenizer.pad).shared.weight
    rows = [tokenizer.tag_id(language) for language in LANGUAGES]
    assert torch.equal(read_probe(out).tensors["vectors"], weight.detach()[rows].double())
    with pytest.raises(MnmtError, match=r"E605.*'vectors', not of gradients"):
        read_probe(out, "gradients")


def test_the_nearest_is_by_angle_and_never_itself():
    vectors = torch.tensor([[1.0, 0.0], [100.0, 100.0], [0.0, -2.0]], dtype=torch.float64)
    found = _neighbours(["a", "b", "c"], vectors)
    assert [found[x]["nearest"] for x in "abc"] == ["b", "a", "a"]
    assert found["a"]["cosine"] == pytest.approx(0.5**0.5)
    assert (found["c"]["norm"], found["c"]["cosine"]) == (2.0, 0.0)
    lines = command.table_of_languages(found)
    assert lines[0].split() == ["language", "norm", "nearest", "cosine"]
    assert lines[3].split() == ["c", "2", "a", "0"]
