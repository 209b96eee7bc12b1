"""``translate`` as a filter: one line for each line, in order, whatever the lines hold."""

from __future__ import annotations

import io

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation import stream
from mnmt_scale.evaluation.decode import Counts, Translator, plan_batches
from mnmt_scale.evaluation.stream import choose_source, translate_stream
from tests.support.memory_store import make_store
from tests.support.small_run import small_opened_run

STORE = make_store({"de-en": 10, "en-fr": 10}, vocabulary_size=70)
DIRECTIONS = [("de", "en"), ("fr", "en"), ("en", "de")]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return small_opened_run(tmp_path_factory.mktemp("run"), STORE, DIRECTIONS)


@pytest.fixture(scope="module")
def translator(opened):
    return Translator(opened.model, opened.tokenizer, opened.evaluation)


def filtered(translator, raw: bytes) -> bytes:
    out = io.BytesIO()
    translate_stream(translator, "de", "en", io.BytesIO(raw), out)
    return out.getvalue()


def test_order_and_empty_lines_are_kept(translator, monkeypatch):
    lines = ["w1 w2 w3", "", "w4", "   ", "w5 w6 w7 w8 w9", "w4", "\t"]
    alone = [translator.translate([line], "de", "en")[0] for line in lines]
    assert [bool(line) for line in alone] == [True, False, True, False, True, True, False]
    for block in (1024, 2):
        monkeypatch.setattr(stream, "BLOCK_LINES", block)
        assert filtered(translator, "\n".join(lines).encode() + b"\n").decode().split("\n") == [*alone, ""]


def test_only_newlines_end_lines(translator):
    raw = "w1\u2028w2\x0bw3\x85w4\rw5\nw6".encode()
    assert filtered(translator, raw).count(b"\n") == 2
    assert filtered(translator, b"") == b""
    assert filtered(translator, b"\n\n") == b"\n\n"


@pytest.mark.parametrize(("bad", "what"), [(b"w1 \xff w2", "invalid UTF-8"), (b"w\x00", "NUL")])
def test_bad_bytes_are_refused_and_what_precedes_is_kept(translator, bad, what):
    out = io.BytesIO()
    with pytest.raises(MnmtError, match="E203") as caught:
        translate_stream(translator, "de", "en", io.BytesIO(b"w1\nw2\n" + bad + b"\nw3\n"), out)
    assert what in str(caught.value)
    assert "line 3" in str(caught.value)
    assert out.getvalue().count(b"\n") == 2


def test_long_lines_are_cut_and_counted(translator):
    counts = Counts()
    long = " ".join(["w5"] * 200)
    out = translator.translate([long, "w1", ""], "de", "en", counts)
    assert len(out) == 3
    assert (counts.lines, counts.cut_lines, counts.empty_lines) == (3, 1, 1)
    assert out[0] == translator.translate([" ".join(["w5"] * 30)], "de", "en")[0]


def test_source_may_be_left_out_when_there_is_one(opened):
    assert choose_source(opened, None, "de") == ("en", True)
    assert choose_source(opened, "fr", "en") == ("fr", True)
    assert choose_source(opened, "fr", "de") == ("fr", False)
    with pytest.raises(MnmtError, match=r"E105.*de fr"):
        choose_source(opened, None, "en")
    with pytest.raises(MnmtError, match=r"E105.*nothing was trained into 'fr'"):
        choose_source(opened, None, "fr")


@pytest.mark.parametrize(("source", "target", "near"), [("dee", "en", "'de'"), ("de", "enn", "'en'"), ("xx", "en", "de en fr")])
def test_unknown_languages_name_the_nearest(opened, source, target, near):
    with pytest.raises(MnmtError, match="E105") as caught:
        choose_source(opened, source, target)
    assert near in str(caught.value)


def test_batches_hold_every_sentence_once_within_the_budget():
    lengths = [5, 1, 9, 30, 2, 9, 9, 3]
    batches = plan_batches(lengths, 20)
    assert sorted(i for b in batches for i in b) == list(range(8))
    assert all(len(b) * max(lengths[i] for i in b) <= 20 or len(b) == 1 for b in batches)
    assert batches[0] == [3]
    assert [len(b) for b in plan_batches([2] * 7, 100, most=3)] == [3, 3, 1]
    assert [max(lengths[i] for i in b) for b in batches] == sorted((max(lengths[i] for i in b) for b in batches), reverse=True)
