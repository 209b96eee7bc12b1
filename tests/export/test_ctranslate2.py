"""CTranslate2 export: greedy output and likelihoods of the converted model."""

from __future__ import annotations

import pytest
import torch

from mnmt_scale.data.tokenizer import Tokenizer
from mnmt_scale.errors import MnmtError
from mnmt_scale.export import ctranslate2 as ct2
from mnmt_scale.export import parity
from mnmt_scale.export.export import export
from mnmt_scale.runs import open_run
from tests.support.random_run import lines_of, make_run

ctranslate2 = pytest.importorskip("ctranslate2")


@pytest.mark.parametrize("fixture", ["many_to_one", "many_to_many", "post_norm", "without_affine"])
def test_greedy_output_of_100_lines(fixture, request, tmp_path):
    path = request.getfixturevalue(fixture)
    result = export(path, "ctranslate2", tmp_path / "out")
    assert result["parity"]["score_max_error"] <= 1e-4
    assert result["parity"]["greedy_lines"] == 100
    run = open_run(path)
    translator = ctranslate2.Translator(str(tmp_path / "out"), device="cpu", intra_threads=1)
    samples = []
    for task in run.tasks:
        lines = lines_of(task.source, 100 // len(run.tasks) + 1)
        samples += [parity.Sample(task, ids) for ids in run.tokenizer.encode(lines)]
    samples = samples[:100]
    ours = parity.greedy(run.model, run.tokenizer, samples)
    assert len({tuple(row) for row in ours}) > 30
    assert parity.check_greedy(run, samples, ours, ct2.translate(translator, run, samples), "here") <= 2


def test_as_a_user_calls_it(many_to_many, tmp_path):
    """The tokenizer that lies beside the model, tags and end given by hand, the target tag as prefix."""
    export(many_to_many, "ctranslate2", tmp_path / "out")
    run = open_run(many_to_many)
    tokenizer = Tokenizer.load(tmp_path / "out")
    pieces = tokenizer.pieces()
    line = lines_of("fr", 3)[2]
    translator = ctranslate2.Translator(str(tmp_path / "out"), device="cpu", intra_threads=1)
    source = ["__fr__", *(pieces[i] for i in tokenizer.encode([line])[0]), "</s>"]
    out = translator.translate_batch([source], target_prefix=[["__en__"]], beam_size=1, max_decoding_length=12)
    assert out[0].hypotheses[0][0] == "__en__"
    ours = parity.greedy(
        run.model, run.tokenizer, [parity.Sample(run.tasks.by_name("fr-en"), run.tokenizer.encode([line])[0])], 11
    )
    found = [pieces.index(piece) for piece in out[0].hypotheses[0][1:]]
    assert found == [t for t in ours[0] if t != tokenizer.eos]


def test_positions_to_the_last_row(tmp_path):
    """A source as long as the model has positions: the table starts at the right row and has them all."""
    run = open_run(make_run(tmp_path / "run", ["fr-en"], max_positions=24))
    export(tmp_path / "run", "ctranslate2", tmp_path / "out")
    translator = ctranslate2.Translator(str(tmp_path / "out"), device="cpu", intra_threads=1)
    sample = parity.Sample(run.tasks[0], [300 + i % 50 for i in range(22)])
    ours = parity.greedy(run.model, run.tokenizer, [sample])
    assert len(ours[0]) == 22 or ours[0][-1] == run.tokenizer.eos
    assert parity.check_greedy(run, [sample], ours, ct2.translate(translator, run, [sample]), "here") == 0


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_quantized(kind, many_to_one, tmp_path, monkeypatch):
    before = {n: t.clone() for n, t in open_run(many_to_one).model.state_dict().items()}
    run = open_run(many_to_one)
    monkeypatch.setattr(ct2, "_SHIFT_TOLERANCE", 1.0)  # random weights are no measure of what quantization costs
    monkeypatch.setattr("mnmt_scale.export.export.open_run", lambda *_: run)
    result = export(many_to_one, "ctranslate2", tmp_path / "out", quantization=kind)
    assert result["parity"]["score_max_error"] > 0
    assert 0 < result["parity"]["greedy_equal"] <= 100
    assert result["quantization"] == kind
    assert all(torch.equal(t, before[n]) for n, t in run.model.state_dict().items()), "quantizing must leave the run alone"
    assert (tmp_path / "out" / "model.bin").stat().st_size < 4 * sum(t.numel() for t in before.values())


def test_quantization_that_goes_too_far_is_not_published(many_to_one, tmp_path, monkeypatch):
    monkeypatch.setattr(ct2, "_SHIFT_TOLERANCE", 1e-9)
    with pytest.raises(MnmtError, match=r"E702.*int8"):
        export(many_to_one, "ctranslate2", tmp_path / "out", quantization="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["positions", "scale", "norm", "bias", "vocabulary"])
def test_a_wrong_converter_is_not_published(fault, many_to_one, tmp_path, monkeypatch):
    def broken(run):
        spec = build(run)
        if fault == "positions":
            spec.encoder.position_encodings.encodings = run.model.positions[1:].contiguous()
        elif fault == "scale":
            spec.decoder.scale_embeddings = 1.0
        elif fault == "norm":
            spec.encoder.layer_norm.gamma = torch.ones(32)
        elif fault == "bias":
            spec.decoder.layer[0].attention.linear[1].bias[40] += 1.0  # a value; an offset of all keys changes nothing
        else:
            vocabulary = spec._vocabularies["source"][0] = list(spec._vocabularies["source"][0])
            vocabulary[300], vocabulary[301] = vocabulary[301], vocabulary[300]
        return spec

    build = ct2.build_spec
    monkeypatch.setattr(ct2, "build_spec", broken)
    with pytest.raises(MnmtError, match="E702"):
        export(many_to_one, "ctranslate2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
