"""What all formats share: publication under the name, refusal, the plain format, the command line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from mnmt_scale.cli.main import main
from mnmt_scale.data.tokenizer import Tokenizer
from mnmt_scale.errors import MnmtError
from mnmt_scale.export import parity, plain
from mnmt_scale.export.export import export
from mnmt_scale.export.parity import parity_data
from mnmt_scale.export.publish import written_aside
from mnmt_scale.runs import open_run
from tests.support.random_run import lines_of


def test_plain_files(post_norm, tmp_path):
    result = export(post_norm, "safetensors", tmp_path / "out", weights="last")
    run = open_run(post_norm)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(t, found[n]) for n, t in run.model.state_dict().items())
    assert len(found) == len(run.model.state_dict())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model"]["norm"] == "post"
    assert config["tags"] == {"en": 4, "fr": 5}
    assert Tokenizer.load(tmp_path / "out").fingerprint == run.tokenizer.fingerprint == result["tokenizer"]
    assert result["weights"] == "last"


def test_a_file_altered_while_it_is_written_is_not_published(post_norm, tmp_path, monkeypatch):
    def altered(run, directory):
        write(run, directory)
        data = bytearray((directory / "model.safetensors").read_bytes())
        data[-5] ^= 1
        (directory / "model.safetensors").write_bytes(data)

    write = plain.write_plain
    monkeypatch.setattr(plain, "write_plain", altered)
    with pytest.raises(MnmtError, match="E702"):
        export(post_norm, "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_stays_until_the_new_one_is_there(post_norm, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(post_norm, "safetensors", out)
    (out / "mark").write_text("old")
    with pytest.raises(MnmtError, match=r"E704.*--force"):
        export(post_norm, "safetensors", out)

    def stopped(*_):
        raise RuntimeError("stopped")

    check = plain.check_plain
    monkeypatch.setattr(plain, "check_plain", stopped)
    with pytest.raises(RuntimeError, match="stopped"):
        export(post_norm, "safetensors", out, force=True)
    monkeypatch.setattr(plain, "check_plain", check)
    assert (out / "mark").read_text() == "old"
    export(post_norm, "safetensors", out, force=True)
    assert not (out / "mark").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_other_directories_and_files_are_never_replaced(force, tmp_path):
    for name in ("documents", "link"):
        (tmp_path / "documents").mkdir(exist_ok=True)
        (tmp_path / "documents" / "letter").write_text("dear")
        if name == "link":
            (tmp_path / "link").symlink_to(tmp_path / "documents")
        with pytest.raises(MnmtError, match="E704"), written_aside(tmp_path / name, marker="export.json", force=force):
            pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(MnmtError, match="E704"), written_aside(tmp_path / "file", marker="export.json", force=force):
        pass
    assert (tmp_path / "documents" / "letter").read_text() == "dear"
    with pytest.raises(MnmtError, match="E704"), written_aside(tmp_path / "file" / "below", marker="m", force=force):
        pass


def test_an_empty_directory_may_be_used(tmp_path):
    (tmp_path / "out").mkdir()
    with written_aside(tmp_path / "out", marker="m") as aside:
        (aside / "m").write_text("1")
    assert (tmp_path / "out" / "m").read_text() == "1"


def test_sentences_of_the_check(many_to_many):
    """Both directions of every tag, 100 sentences in the order of the tasks, lines with tags as text."""
    run = open_run(many_to_many)
    data = parity_data(run)
    assert len(data.samples) == 100
    assert {s.task.name for s in data.samples} == {"en-fr", "en-ky", "fr-en", "ky-en"}
    order = [s.task.index for s in data.samples]
    assert order == sorted(order)
    assert all(0 < len(s.source) <= 62 for s in data.samples)
    assert any("__fr__" in line for line in data.text)


def test_sentences_come_from_the_dev_sets_of_the_store(many_to_many, monkeypatch):
    """English-French has a dev set, English-Kyrgyz none: its sentences are random pieces."""

    class Store:
        def has(self, pair, split):
            return (pair, split) == ("en-fr", "dev")

        def text(self, pair, split, language):
            return ["", *lines_of(language, 40)]

    monkeypatch.setattr(parity.TokenStore, "open", lambda path: Store())
    run = open_run(many_to_many)
    data = parity_data(run)
    ids = {tuple(row) for row in run.tokenizer.encode(lines_of("fr", 40))}
    from_french = [tuple(s.source) for s in data.samples if s.task.name == "fr-en"]
    assert sum(source in ids for source in from_french) >= 0.6 * len(from_french)
    assert not any(tuple(s.source) in ids for s in data.samples if s.task.name == "ky-en")
    assert set(lines_of("fr", 5)) <= set(data.text)


def test_refusals(post_norm, tmp_path):
    with pytest.raises(MnmtError, match="E104"):
        export(post_norm, "safetensors", tmp_path / "out", quantization="int8")
    with pytest.raises(MnmtError, match=r"E102.*'int8'"):
        export(post_norm, "ctranslate2", tmp_path / "out", quantization="int88")
    with pytest.raises(MnmtError, match="E403"):
        export(post_norm, "safetensors", tmp_path / "out", weights="ema")
    with pytest.raises(MnmtError, match="E407"):
        export(tmp_path, "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_command_line(post_norm, tmp_path, capsys):
    with pytest.raises(SystemExit) as leave:
        main(["export", str(post_norm), "--to", "safetensors", "--out", str(tmp_path / "out"), "--json"])
    printed = capsys.readouterr()
    assert leave.value.code == 0, printed.err
    assert json.loads(printed.out)["format"] == "safetensors"
    with pytest.raises(SystemExit) as leave:
        main(["export", str(post_norm), "--to", "hf", "--out", str(tmp_path / "hf")])
    printed = capsys.readouterr()
    assert leave.value.code == 2
    assert printed.err.startswith("MNMT-E701")
    assert printed.err.count("\n") == 1
