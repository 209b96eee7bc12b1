"""Import of M2M100 and NLLB directories: equal logits, equal ids, round trips, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mnmt_scale.cli.main import main
from mnmt_scale.engine.checkpoint import load_weights
from mnmt_scale.errors import MnmtError
from mnmt_scale.export import hf, importer, parity
from mnmt_scale.export.importer import import_run
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.runs import build_model, open_run
from mnmt_scale.settings import read_table
from tests.support.hf_model import random_m2m100
from tests.support.m2m100_directory import saved_with_m2m100_tokenizer
from tests.support.random_run import lines_of

transformers = pytest.importorskip("transformers")


def opened_without_tokenizer(run: Path):
    config = ModelConfig(**read_table(run / "config.toml")["model"])
    state = load_weights(run, "best")
    return build_model(config, state["shared.weight"].shape[0], 1, state, where="here").eval()


@pytest.mark.parametrize("activation", ["relu", "gelu", "swish"])
def test_logits_are_equal_on_a_padded_batch(activation, tmp_path):
    config = random_m2m100(70).config
    config.activation_function, config.decoder_layers = activation, 3
    torch.manual_seed(4)
    model = transformers.M2M100ForConditionalGeneration(config).eval()
    with hf.quiet_transformers():
        model.save_pretrained(tmp_path / "hf")
    result = import_run(tmp_path / "hf", tmp_path / "run")
    assert result["languages"] is None
    assert result["parity"]["logits_max_error"] < 1e-5
    ours, ids = opened_without_tokenizer(tmp_path / "run"), importer._Ids(2, 1, 70)
    samples = [parity.Sample(parity.Task("a", "b", 0), list(range(5, 5 + n))) for n in (1, 9, 30)]
    targets = [[7, 8], [], [9] * 20]
    assert parity.check_logits(ours, ids, samples, targets, hf.padded_logits(model), "here") < 1e-5


def test_weights_are_those_of_the_file(m2m100, tmp_path):
    model, directory = m2m100
    import_run(directory, tmp_path / "run")
    found = load_weights(tmp_path / "run", "last")
    wanted = {n.removeprefix("model."): p for n, p in model.named_parameters()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_sharded_and_half_precision_weights(m2m100, tmp_path):
    model, directory = m2m100
    with hf.quiet_transformers():
        model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
        model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    import_run(directory, tmp_path / "whole-run")
    import_run(tmp_path / "sharded", tmp_path / "sharded-run")
    import_run(tmp_path / "half", tmp_path / "half-run")
    whole, sharded, half = (load_weights(tmp_path / f"{n}-run", "last") for n in ("whole", "sharded", "half"))
    assert all(torch.equal(whole[n], sharded[n]) for n in whole)
    assert all(torch.equal(whole[n].bfloat16().float(), half[n]) for n in whole)


def test_a_run_without_tokenizer_says_so(m2m100, tmp_path):
    import_run(m2m100[1], tmp_path / "run")
    with pytest.raises(MnmtError, match="E302"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("name", ["many-to-one", "many-to-many"])
def test_export_and_import_give_the_same_run(name, exported, request, tmp_path):
    source = open_run(request.getfixturevalue(name.replace("-", "_")))
    import_run(exported[name][0], tmp_path / "run")
    back = open_run(tmp_path / "run")
    before, after = source.model.state_dict(), back.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert back.tokenizer.fingerprint == source.tokenizer.fingerprint
    assert back.tasks.names == source.tasks.names
    same = source.model_config.model_dump() | {"attention": "auto"}
    assert back.model_config.model_dump() == same


def test_m2m100_tokenizer_files(tmp_path):
    directory = tmp_path / "hf"
    saved_with_m2m100_tokenizer(directory)
    with hf.quiet_transformers():
        theirs = transformers.M2M100Tokenizer(str(directory / "vocab.json"), str(directory / "sentencepiece.bpe.model"))
    result = import_run(directory, tmp_path / "run", directions=["fr-en", "en-fr", "ru-fr"])
    run = open_run(tmp_path / "run")
    assert len(result["languages"]) == 100
    assert run.tasks.names == ["fr-en", "en-fr", "ru-fr"]
    assert run.tokenizer.tag_id("fr") == theirs.get_lang_id("fr")
    assert run.tokenizer.vocabulary_size == run.model.shared.weight.shape[0]
    for language in ("fr", "ru"):
        for line in lines_of(language, 20):
            ids = [run.tokenizer.tag_id("fr"), *run.tokenizer.encode([line])[0], run.tokenizer.eos]
            theirs.src_lang = "fr"
            assert theirs(line)["input_ids"] == ids
            assert run.tokenizer.decode([ids])[0] == theirs.decode(ids, skip_special_tokens=True)
    assert len(set(run.tokenizer.pieces())) == run.tokenizer.vocabulary_size


def test_a_direction_that_the_model_does_not_have(tmp_path):
    saved_with_m2m100_tokenizer(tmp_path / "hf")
    with pytest.raises(MnmtError, match=r"E105.*'ky'") as caught:
        import_run(tmp_path / "hf", tmp_path / "run", directions=["ky-en"])
    assert str(tmp_path / "run") in caught.value.where, "the name that the user gave, not the directory aside"
    assert not (tmp_path / "run").exists()


def test_imported_run_can_be_exported_again(tmp_path):
    from mnmt_scale.export.export import export

    saved_with_m2m100_tokenizer(tmp_path / "hf")
    import_run(tmp_path / "hf", tmp_path / "run", directions=["fr-en", "en-fr"])
    for kind in ("hf", "ctranslate2", "safetensors"):
        assert export(tmp_path / "run", kind, tmp_path / f"to-{kind}")["directions"] == 2
    import_run(tmp_path / "to-hf", tmp_path / "again")
    assert open_run(tmp_path / "again").tasks.names == ["fr-en", "en-fr"]
    assert open_run(tmp_path / "again").tokenizer.fingerprint == open_run(tmp_path / "run").tokenizer.fingerprint


@pytest.mark.parametrize("with_fast_file", [True, False])
def test_nllb_tokenizer_files(with_fast_file, tmp_path):
    """FLORES codes; SentencePiece BPE whose ids are shifted by one against the model's."""
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    directory = tmp_path / "hf"
    directory.mkdir()
    sentencepiece = nllb_sentencepiece(directory / "sentencepiece.bpe.model")
    names = ["<s>", "<pad>", "</s>", "<unk>", *sentencepiece[3:], *FAIRSEQ_LANGUAGE_CODES, "<mask>"]
    if with_fast_file:
        split = len(names) - len(FAIRSEQ_LANGUAGE_CODES) - 1
        added = [{"id": i, "content": n, "special": True} for i, n in enumerate(names) if i < 4 or i >= split]
        table = {"model": {"type": "BPE", "vocab": {n: i for i, n in enumerate(names[:split])}}, "added_tokens": added}
        (directory / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    with hf.quiet_transformers():
        random_m2m100(len(names)).save_pretrained(directory)
    result = import_run(directory, tmp_path / "run", directions=["kir_Cyrl-eng_Latn"])
    run = open_run(tmp_path / "run")
    assert result["languages"] == sorted(FAIRSEQ_LANGUAGE_CODES)
    assert run.tokenizer.tag_id("kir_Cyrl") == names.index("kir_Cyrl")
    assert run.tokenizer.pieces() == names
    line = lines_of("ky", 3)[0]
    ids = run.tokenizer.encode([line])[0]
    assert "".join(names[i] for i in ids) == "\u2581" + line.replace(" ", "\u2581")
    assert run.tokenizer.decode([[names.index("kir_Cyrl"), *ids, 2]]) == [line]


def nllb_sentencepiece(path: Path) -> list[str]:
    """A BPE model with fairseq's ids (unk 0, bos 1, eos 2, no pad); returns its pieces."""
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines_of("ky", 400)), model_writer=out, vocab_size=120, model_type="bpe", minloglevel=2
    )
    path.write_bytes(out.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def test_an_existing_run_is_kept(m2m100, tmp_path):
    import_run(m2m100[1], tmp_path / "run")
    with pytest.raises(MnmtError, match="E704"):
        import_run(m2m100[1], tmp_path / "run")
    (tmp_path / "run" / "old").touch()
    import_run(m2m100[1], tmp_path / "run", force=True)
    assert not (tmp_path / "run" / "old").exists()


def test_command_line(m2m100, tmp_path, capsys):
    with pytest.raises(SystemExit) as leave:
        main(["import", str(m2m100[1]), "--out", str(tmp_path / "run"), "--json"])
    printed = capsys.readouterr()
    assert leave.value.code == 0, printed.err
    assert json.loads(printed.out)["parity"]["logits_max_error"] < 1e-4
    assert printed.err == ""
