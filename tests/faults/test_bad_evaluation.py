"""What goes wrong in translating and evaluating a run: one clear line, exit code not 0, nothing lost."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from mnmt_scale.cli.main import main
from mnmt_scale.data.store import TokenStore
from mnmt_scale.data.stream import evaluation_batches
from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation.evaluate import evaluate_run
from mnmt_scale.evaluation.scope import Options
from mnmt_scale.runs import open_run
from tests.support.small_run import prepared_run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluation")
    prepared_run(directory, "first", zero_shot=("de-fr", "fr-de"))
    prepared_run(directory, "second", seed=1)
    return directory


@pytest.fixture
def mnmt(monkeypatch, capfdbinary):
    """``mnmt(arguments, input) -> (exit code, output, errors)``, in this process."""

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        out, err = capfdbinary.readouterr()
        return int(left.value.code or 0), out, err.decode()

    return call


def refused(code: int, err: str, name: str) -> str:
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("MNMT-")]
    assert len(lines) == 1, err
    assert lines[0].startswith(f"MNMT-{name}: ")
    assert "Traceback" not in err
    return lines[0]


def test_translate_is_a_filter(base, mnmt):
    text = "abe dob\n\nke lo\u2028 mi\r\nlast line".encode()
    code, out, err = mnmt("translate", base / "first", "--to", "de", stdin=text)
    assert (code, err) == (0, "")
    lines = out.decode().split("\n")
    assert len(lines) == 5
    assert lines[1] == lines[4] == ""
    assert mnmt("translate", base / "first", "--to", "de", "--from", "en", stdin=text) == (0, out, "")
    code, greedy, _ = mnmt("translate", base / "first", "--to", "de", "--beam", "1", "--dtype", "bf16", stdin=text)
    assert code == 0
    assert greedy.count(b"\n") == 4


def test_translate_zero_shot_warns(base, mnmt):
    code, out, err = mnmt("translate", base / "first", "--to", "it", "--from", "de", stdin=b"abe\n")
    assert code == 0
    assert out.count(b"\n") == 1
    assert "de-it was not trained (zero-shot)" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "en"], "de fr it"),
        (["--to", "enn", "--from", "de"], "'en'"),
        (["--to", "en", "--from", "deu"], "'de'"),
        (["--to", "fr"], "--from"),
        (["--to", "en", "--from", "en"], "both 'en'"),
    ],
)
def test_translate_refuses_languages(base, mnmt, arguments, says):
    code, out, err = mnmt("translate", base / "first", *arguments, stdin=b"abe\n")
    assert says in refused(code, err, "E105")
    assert out == b""


def test_translate_refuses_bad_bytes_and_keeps_what_precedes(base, mnmt):
    code, out, err = mnmt("translate", base / "first", "--to", "de", stdin=b"abe\ndob\n\xc3\x28\nke\n")
    assert "line 3" in refused(code, err, "E203")
    assert out.count(b"\n") == 2
    code, _, err = mnmt("translate", base / "first", "--to", "de", "--dtype", "bf61", stdin=b"")
    assert "bf16" in refused(code, err, "E102")
    code, _, err = mnmt("translate", base / "frist", "--to", "de", stdin=b"")
    assert "first" in refused(code, err, "E407")


def test_translate_cuts_long_lines_with_a_count(base, mnmt):
    code, out, err = mnmt("translate", base / "first", "--to", "de", stdin=b"abe " * 500 + b"\nabe\n")
    assert code == 0
    assert out.count(b"\n") == 2
    assert "1 of 2 lines cut to 64 tokens" in err


def test_evaluate_and_compare(base, mnmt):
    code, out, err = mnmt("evaluate", base / "first", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result == json.loads((base / "first" / "eval" / "test.json").read_text())
    assert set(result["directions"]) == {"de-en", "en-de", "fr-en"}
    assert set(result["missing"]) == {"it-en", "de-fr", "fr-de"}  # the English lines of these pairs have nothing in common
    assert result["averages"]["all"]["directions"] == 3
    code, out, err = mnmt("evaluate", base / "second", "--against", base / "first")
    assert code == 0, err
    text = out.decode()
    for part in ("de-en", "mean all", "mean low", "signature nrefs:1", "no test set, not averaged: it-en", "paired bootstrap"):
        assert part in text
    assert "de-en: BLEU" in err


def test_nll_is_that_of_the_validation_batches(base):
    opened = open_run(base / "first")
    store = TokenStore.open(opened.data.store)
    result = evaluate_run(opened, Options(split="dev", only=["de-en"]))
    nll = tokens = 0.0
    with torch.no_grad():
        for batch in evaluation_batches(store, opened.tasks.by_name("de-en"), "dev", max_tokens=60, batch_tokens=100):
            losses = opened.model(batch, (1.0,))
            nll, tokens = nll + float(losses.nlls.sum()), tokens + int(losses.tokens.sum())
    row = result["directions"]["de-en"]
    assert row["reference_tokens"] == tokens
    assert row["nll"] == pytest.approx(nll / tokens, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "name", "says"),
    [
        (["--split", "tset"], "E105", "'test'"),
        (["--pairs", "de-enn"], "E105", "'de-en'"),
        (["--against", "{base}/nowhere"], "E603", "not evaluated"),
        (["--comet", "{base}/model.ckpt"], "E801", "COMET is not installed"),
        (["--weights", "step-9"], "E403", "step-9"),
    ],
)
def test_evaluate_refuses(base, mnmt, arguments, name, says):
    if name == "E801" and importlib.util.find_spec("comet"):
        pytest.skip("COMET is installed here")
    code, _, err = mnmt("evaluate", base / "first", *(a.format(base=base) for a in arguments))
    assert says in refused(code, err, name)


def test_comet_wants_a_file_that_is_here(base, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(MnmtError, match="E602"):
        evaluate_run(base / "first", Options(comet="Unbabel/wmt22-comet-da"))


def test_a_store_of_another_tokenizer_or_none_is_refused(base, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(base / "first", run)
    settings = (run / "config.toml").read_text()
    prepared_run(tmp_path, "other", vocabulary_size=350)
    for store, code in (("store", "E306"), ("nowhere", "E303")):
        (run / "config.toml").write_text(settings.replace(str(base / "store"), str(tmp_path / store)))
        with pytest.raises(MnmtError, match=code):
            evaluate_run(run)


def test_a_folder_that_cannot_be_written_is_refused(base, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(base / "first", run, ignore=shutil.ignore_patterns("eval"))
    (run / "eval").write_text("a file")
    with pytest.raises(MnmtError, match="E401"):
        evaluate_run(run)


def test_a_missing_bleu_tokenizer_is_refused_when_asked_for(base, tmp_path, monkeypatch):
    monkeypatch.setenv("SACREBLEU", str(tmp_path))
    run = tmp_path / "run"
    shutil.copytree(base / "first", run, ignore=shutil.ignore_patterns("eval"))
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("[evaluation]\n", '[evaluation]\nbleu_tokenizer = "flores200"\n'))
    with pytest.raises(MnmtError, match=r"E602.*never downloaded"):
        evaluate_run(run)
    (run / "config.toml").write_text(text.replace("[evaluation]\n", '[evaluation]\nflores200_model = "/no/such/file"\n'))
    store = TokenStore.open(open_run(run).data.store)
    assert store.has("de-en", "test")
    evaluate_run(run, Options(only=["de-en"], limit=2))  # Latin script: the model is not needed
