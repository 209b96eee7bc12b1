"""What ``mnmt import`` refuses: models that do not fit, damaged files, pickles, code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mnmt_scale.errors import MnmtError
from mnmt_scale.export import importer
from mnmt_scale.export.importer import import_run
from tests.support.m2m100_directory import saved_with_m2m100_tokenizer

pytest.importorskip("transformers")


def change(directory: Path, **values) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"decoder_attention_heads": 2}, "encoder_attention_heads 4 is not decoder_attention_heads 2"),
        ({"decoder_ffn_dim": 128}, "decoder_ffn_dim 128"),
        ({"scale_embedding": False}, "scale_embedding is not true"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"activation_function": "gelu_new"}, "gelu_new"),
        ({"decoder_start_token_id": 0}, "decoder_start_token_id 0"),
        ({"model_type": "marian"}, "model_type is 'marian'"),
        ({"d_model": "32"}, "d_model = '32'"),
        ({"d_model": 64}, r"\(90, 32\).*\(90, 64\)"),
        ({"encoder_layers": 3}, "encoder.layers.2"),
        ({"vocab_size": 91}, "90 rows, vocab_size is 91"),
        ({"pad_token_id": 9999}, "pad_token_id 9999"),
        ({"dropout": "high"}, "E703"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_difference(values, words, m2m100, tmp_path):
    change(m2m100[1], **values)
    with pytest.raises(MnmtError, match=f"E703.*{words}|{words}.*E703|{words}") as caught:
        import_run(m2m100[1], tmp_path / "run")
    assert caught.value.code == "E703"
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_untied_embeddings_are_refused(m2m100, tmp_path):
    state = load_file(m2m100[1] / "model.safetensors")
    state["lm_head.weight"] = state["model.shared.weight"] + 1
    save_file(state, m2m100[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MnmtError, match=r"E703.*lm_head\.weight differs"):
        import_run(m2m100[1], tmp_path / "run")


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_not_opened(name, m2m100, tmp_path):
    (m2m100[1] / "model.safetensors").unlink()
    with open(m2m100[1] / name, "wb") as file:
        pickle.dump(Payload(tmp_path / "canary"), file)
    with pytest.raises(MnmtError, match=rf"E408.*{name}.*save_pretrained"):
        import_run(m2m100[1], tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_code_that_the_directory_names_is_ignored(m2m100, tmp_path):
    canary = tmp_path / "canary"
    (m2m100[1] / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Model: pass\n")
    auto_map = {"AutoModelForSeq2SeqLM": "evil.Model", "AutoConfig": "evil.Model", "AutoTokenizer": "evil.Model"}
    change(m2m100[1], auto_map=auto_map, _target_="os.system", architectures=["evil.Model"])
    (m2m100[1] / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    import_run(m2m100[1], tmp_path / "run")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/model.safetensors", "pytorch_model.bin"])
def test_an_index_that_points_elsewhere(name, m2m100, tmp_path):
    (m2m100[1] / "model.safetensors").unlink()
    index = {"weight_map": {"model.shared.weight": name}}
    (m2m100[1] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MnmtError, match=r"E703.*no safetensors file of this directory"):
        import_run(m2m100[1], tmp_path / "run")


@pytest.mark.parametrize("damage", ["cut", "garbage", "json", "empty directory", "vocabulary"])
def test_damaged_directories(damage, m2m100, tmp_path):
    weights = m2m100[1] / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "garbage":
        weights.write_bytes(b"x" * 1000)
    elif damage == "json":
        (m2m100[1] / "config.json").write_text("{")
    elif damage == "empty directory":
        (m2m100[1] / "config.json").unlink()
    else:
        saved_with_m2m100_tokenizer(tmp_path / "other")
        for file in ("sentencepiece.bpe.model", "vocab.json"):
            (m2m100[1] / file).write_bytes((tmp_path / "other" / file).read_bytes())
    with pytest.raises(MnmtError, match="E703"):
        import_run(m2m100[1], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_altered_weight_fails_the_check(m2m100, tmp_path, monkeypatch):
    def altered(source):
        state = load(source)
        state["model.decoder.layers.1.fc2.weight"][3, 3] += 1
        return state

    load = importer.load_state
    monkeypatch.setattr(importer, "load_state", altered)
    with pytest.raises(MnmtError, match="E702"):
        import_run(m2m100[1], tmp_path / "run")
    assert not (tmp_path / "run").exists()
