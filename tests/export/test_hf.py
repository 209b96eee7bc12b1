"""Hugging Face export: what AutoModelForSeq2SeqLM and AutoTokenizer make of the directory."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch

from mnmt_scale.data.config import TokenizerConfig
from mnmt_scale.data.tokenizer import train_tokenizer
from mnmt_scale.errors import MnmtError
from mnmt_scale.export import hf, parity
from mnmt_scale.export.export import export
from mnmt_scale.export.hf_tokenizer import build_fast_tokenizer, piece_scores
from mnmt_scale.runs import open_run
from tests.support.random_run import lines_of

transformers = pytest.importorskip("transformers")


def load(directory: Path):
    with hf.quiet_transformers():
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, local_files_only=True)
        return model.eval(), transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.mark.parametrize("name", ["many-to-one", "many-to-many", "no-affine"])
def test_logits_of_a_padded_batch_and_greedy_output(name, exported, request):
    run = open_run(request.getfixturevalue(name.replace("-", "_").replace("no_", "without_")))
    model, _ = load(exported[name][0])
    assert type(model).__name__ == "M2M100ForConditionalGeneration"
    rng = random.Random(5)
    samples = []
    for task in run.tasks:
        lines = lines_of(task.source, 100 // len(run.tasks) + 1)
        samples += [parity.Sample(task, ids) for ids in run.tokenizer.encode(lines)]
    samples = samples[:100]
    some = sorted(rng.sample(range(100), 10))
    targets = [run.tokenizer.encode(lines_of("fr", 1 + i))[-1] for i in range(10)]
    assert len({len(samples[i].source) for i in some}) > 3, "the batch should hold padding"
    assert len({len(t) for t in targets}) > 3
    chosen = [samples[i] for i in some]
    error = parity.check_logits(run.model, run.tokenizer, chosen, targets, hf.padded_logits(model), name)
    assert error <= 1e-4
    ours = parity.greedy(run.model, run.tokenizer, samples)
    assert len({tuple(row) for row in ours}) > 30, "random weights should say different things"
    assert any(row[-1] == run.tokenizer.eos for row in ours)
    assert parity.check_greedy(run, samples, ours, hf.generate(model, run, samples), name) <= 2


def test_text_in_text_out_for_one_source_language(exported, without_affine):
    """``no-affine`` translates from en alone: its tag is part of the template, special tokens in the text are text."""
    run, (_, tokenizer) = open_run(without_affine), load(exported["no-affine"][0])
    line = "ba lo </s> __fr__ <unk> ki."
    ids = tokenizer([line, "x"], padding=True)["input_ids"]
    assert ids[0] == [run.tokenizer.tag_id("en"), *run.tokenizer.encode([line])[0], run.tokenizer.eos]
    assert ids[1][-1] == tokenizer.pad_token_id == run.tokenizer.pad
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == run.tokenizer.decode([ids[0]])[0] == line


def test_source_language_in_front_of_the_text(exported, many_to_many):
    run, (_, tokenizer) = open_run(many_to_many), load(exported["many-to-many"][0])
    for language in ("fr", "ky"):
        line = lines_of(language, 1)[0]
        ids = tokenizer(f"__{language}__{line}")["input_ids"]
        assert ids == [run.tokenizer.tag_id(language), *run.tokenizer.encode([line])[0], run.tokenizer.eos]


def test_the_card_shows_code_that_works(exported, many_to_many):
    directory = exported["many-to-many"][0]
    text = (directory / "README.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 2
    space: dict = {"print": lambda *a: None}
    with hf.quiet_transformers():
        for block in blocks:
            exec(compile(block.replace("PATH", str(directory)).replace('"..."', '"ba </s> lo"'), "card", "exec"), space)
    tokenizer = open_run(many_to_many).tokenizer
    first = open_run(many_to_many).tasks[0]
    wanted = [tokenizer.tag_id(first.source), *tokenizer.encode(["ba </s> lo"])[0], tokenizer.eos]
    assert space["inputs"]["input_ids"].tolist() == [wanted], "with the template, </s> in the text is text"
    assert space["outputs"][0, :2].tolist() == [tokenizer.eos, tokenizer.tag_id(first.target)]


def test_generation_settings(exported, many_to_one, many_to_many):
    one = json.loads((exported["many-to-one"][0] / "generation_config.json").read_text())
    many = json.loads((exported["many-to-many"][0] / "generation_config.json").read_text())
    tokenizer = open_run(many_to_one).tokenizer
    assert one["forced_bos_token_id"] == tokenizer.tag_id("en")
    assert "forced_bos_token_id" not in many
    assert (one["decoder_start_token_id"], one["pad_token_id"], one["eos_token_id"], one["num_beams"]) == (2, 1, 2, 5)
    model, loaded = load(exported["many-to-one"][0])
    out = model.generate(**loaded("__nn__ba lo.", return_tensors="pt"), max_length=6)
    assert out[0, :2].tolist() == [2, tokenizer.tag_id("en")]


def test_languages_that_the_m2m100_class_does_not_have(exported, many_to_one):
    config = json.loads((exported["many-to-one"][0] / "config.json").read_text())
    _, loaded = load(exported["many-to-one"][0])
    tokenizer = open_run(many_to_one).tokenizer
    assert tokenizer.languages == ["en", "eo", "ku", "ky", "nb", "nn", "no", "zh"]
    for language in tokenizer.languages:
        assert loaded.convert_tokens_to_ids(f"__{language}__") == tokenizer.tag_id(language)
        assert config["language_tags"][language] == tokenizer.tag_id(language)


def test_record_of_the_export(exported):
    directory, result = exported["many-to-one"]
    record = json.loads((directory / "export.json").read_text())
    assert record["parity"] == result["parity"]
    assert result["parity"]["logits_max_error"] <= 1e-4
    assert result["parity"]["greedy_lines"] == 100
    assert result["parity"]["tokenizer_lines"] >= 100
    assert not any(str(directory.parent) in p.read_text(encoding="utf-8") for p in directory.glob("*.json"))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_fast_tokenizer_on_strange_text(kind, tmp_path):
    text = {code: lines_of(code) + ["a_b __init__(x) <0 >= 3.14 %"] * 5 for code in ("en", "fr", "ru", "zh")}
    tokenizer = train_tokenizer(
        TokenizerConfig(vocabulary_size=420, model=kind), text, sorted(text), tmp_path / "tokenizer.model"
    )
    fast = build_fast_tokenizer(tokenizer)
    fast.encode_special_tokens = True
    tags = [f"__{code}__" for code in text]
    lines = [
        *("", " ", "\u2581", " \u2581 x \u2581", "\tba\u3000lo \u00a0 ki\u200b", "__init__(self)", "<0", "____", "<unk"),
        *("<unk>", "<s> </s><pad>", "<0x41><0xE2><0x96>", "a<0x0A>b", *tags, *(f"ba{t}{tags[0]}lo {t}" for t in tags)),
        *("\U0001f642\u200d\U0001f642", "e\u0301 o\u0308", "\ufb01 \uff21 \u00bd", "\u0646\u064f\u0634\u0650\u0631\u064e"),
        *(f"a{chr(c)}b" for c in range(1, 0x3100)),
    ]  # fmt: skip
    for line, ids, found in zip(
        lines, tokenizer.encode(lines), fast.encode_batch(lines, add_special_tokens=False), strict=True
    ):
        assert found.ids == ids, line
        assert fast.decode(ids) == tokenizer.decode([ids])[0], line


def test_fast_tokenizer_on_real_text(real_text, tmp_path):
    text = {}
    for pair, code in (("en-hau", "hau"), ("en-yor", "yor"), ("en-zul", "zul"), ("fr-wol", "fr"), ("bam-fr", "bam")):
        path = real_text / "lafand" / "supervised" / pair / f"opus.{pair}-train.{code}"
        text[code] = path.read_text(encoding="utf-8").split("\n")[:300]
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary_size=1500), text, sorted(text), tmp_path / "tokenizer.model")
    fast, scores = build_fast_tokenizer(tokenizer), piece_scores(tokenizer)
    lines = [line for side in text.values() for line in side]
    rows, differing = fast.encode_batch(lines, add_special_tokens=False), []
    for line, row, ids in zip(lines, rows, tokenizer.encode(lines), strict=True):
        if row.ids != ids and abs(sum(scores[i] for i in ids) - sum(scores[i] for i in row.ids)) > 1e-3:
            differing.append(line)
    assert differing == []


def test_post_norm_is_refused_with_the_way_out(post_norm, tmp_path):
    with pytest.raises(MnmtError, match=r"E701.*post-norm.*ctranslate2"):
        export(post_norm, "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["model.encoder.layers.1.fc1.bias", "model.decoder.layers.0.encoder_attn.v_proj.weight", "model.shared.weight"]
)
def test_an_altered_weight_is_not_published(name, many_to_one, tmp_path, monkeypatch):
    def altered(state, config):
        out = {n: t.clone() for n, t in to_hf(state, config).items()}
        out[name].view(-1)[7] += 0.5
        return out

    to_hf = hf.to_hf
    monkeypatch.setattr(hf, "to_hf", altered)
    with pytest.raises(MnmtError, match="E702"):
        export(many_to_one, "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_weight_is_not_published(many_to_one, tmp_path, monkeypatch):
    to_hf = hf.to_hf
    monkeypatch.setattr(hf, "to_hf", lambda s, c: {n: t for n, t in to_hf(s, c).items() if "fc2.bias" not in n})
    with pytest.raises(MnmtError, match=r"E702.*fc2\.bias"):
        export(many_to_one, "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_with_two_pieces_swapped_is_not_published(many_to_many, tmp_path, monkeypatch):
    def swapped(tokenizer, tasks, length, directory):
        write(tokenizer, tasks, length, directory)
        table = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = table["model"]["vocab"]
        a, b = [p for p in vocabulary if len(p) == 1][:2]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
        (directory / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")

    write = hf.write_tokenizer
    monkeypatch.setattr(hf, "write_tokenizer", swapped)
    with pytest.raises(MnmtError, match="E702"):
        export(many_to_many, "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_near_ties_are_counted_and_real_differences_are_not(many_to_one):
    run = open_run(many_to_one)
    sample = parity.Sample(run.tasks[0], [300, 301])
    ours = parity.greedy(run.model, run.tokenizer, [sample], 5)[0]
    other = 300 if ours[2] != 300 else 301
    with pytest.raises(MnmtError, match=r"E702.*token 3"):
        parity.check_greedy(run, [sample], [ours], [[*ours[:2], other, *ours[3:]]], "here")
    with pytest.raises(MnmtError, match="E702"):
        parity.check_greedy(run, [sample], [ours], [ours[:2]], "here")
    with torch.no_grad():
        run.model.shared.weight[other] = run.model.shared.weight[ours[2]]
    assert parity.check_greedy(run, [sample], [ours], [[*ours[:2], other]], "here") == 1


def test_no_code_in_the_export(exported):
    for directory, _ in exported.values():
        names = sorted(os.listdir(directory))
        assert not [n for n in names if n.endswith((".py", ".bin", ".pt", ".pkl"))]
        for name in ("config.json", "tokenizer_config.json"):
            assert "auto_map" not in json.loads((directory / name).read_text())
