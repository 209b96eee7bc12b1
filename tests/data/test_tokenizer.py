"""SentencePiece: the order of ids, tags out of reach of text, equal bytes on every run, imported vocabularies."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from collections import Counter

import pytest
import sentencepiece

from mnmt_scale.data.config import TokenizerConfig
from mnmt_scale.data.mix import TextLines, draw_lines, mix_sizes
from mnmt_scale.data.tokenizer import Tokenizer, chosen_tokenizer, train_tokenizer, write_vocabulary
from mnmt_scale.errors import MnmtError
from tests.support.corpora import sentences, write_lines

LANGUAGES = ["no", "fr", "en", "zh_Hans"]
CHINESE = ["\u4f60\u597d \u4e16\u754c", "\u4e16\u754c \u4f60\u597d"] * 5
TEXT = {"en": sentences(120, 1), "fr": sentences(60, 2), "no": sentences(30, 3), "zh_Hans": CHINESE}
SMALL = TokenizerConfig(vocabulary_size=380)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return train_tokenizer(SMALL, TEXT, LANGUAGES, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 1)


def code_of(call, *arguments) -> MnmtError:
    with pytest.raises(MnmtError) as caught:
        call(*arguments)
    return caught.value


def test_ids_are_specials_then_tags_then_bytes_then_pieces(tokenizer):
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
    assert tokenizer.pieces()[:9] == ["<s>", "<pad>", "</s>", "<unk>", "__en__", "__fr__", "__no__", "__zh_Hans__", "<0x00>"]
    assert tokenizer.vocabulary_size == len(tokenizer.pieces()) == 380
    assert tokenizer.languages == ["en", "fr", "no", "zh_Hans"]
    assert [tokenizer.tag_id(x) for x in tokenizer.languages] == [4, 5, 6, 7]


def test_text_never_gives_a_special_symbol_or_a_tag(tokenizer):
    lines = ["__fr__", "__en__ a __fr__ b", "</s>", "<s> <pad> <unk>", "\u2581__no__\u2581", "__zh_Hans__", "<0x41>"]
    ids = tokenizer.encode(lines)
    assert all(i > 7 for row in ids for i in row)
    assert tokenizer.decode(ids)[:4] == lines[:4]


def test_tags_in_the_training_text_do_not_become_pieces(tmp_path):
    text = {"en": [f"__fr__ {line} __en__ </s>" for line in TEXT["en"]]}
    trained = train_tokenizer(TokenizerConfig(vocabulary_size=320), text, ["en", "fr"], tmp_path / "t.model", 1)
    assert all(i > 5 for row in trained.encode(text["en"]) for i in row)


def test_what_was_never_seen_is_spelt_in_bytes(tokenizer):
    lines = ["\U0001f40c \u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8", "a b"]
    ids = tokenizer.encode(lines)
    assert tokenizer.unk not in ids[0]
    assert tokenizer.decode(ids) == lines


def test_empty_lines_and_no_lines(tokenizer):
    assert tokenizer.encode(["", " ", "a"])[:2] == [[], []]
    assert tokenizer.encode([]) == []
    assert tokenizer.decode([[], [0, 1, 2, 3, tokenizer.tag_id("fr")]]) == ["", ""]


def test_decoding_skips_tags_and_specials(tokenizer):
    row = tokenizer.encode(["some text"])[0]
    assert tokenizer.decode([[2, tokenizer.tag_id("en"), *row, 2, 1, 1]]) == ["some text"]


def test_an_unknown_language_names_the_nearest(tokenizer):
    error = code_of(tokenizer.tag_id, "nn")
    assert error.code == "E105"
    assert "'no'" in str(error)


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_equal_text_and_seed_give_equal_bytes_in_another_process(tmp_path, model):
    for language, lines in TEXT.items():
        write_lines(tmp_path / language, lines)
    program = (
        "import sys; from pathlib import Path\n"
        "from mnmt_scale.data.config import TokenizerConfig\n"
        "from mnmt_scale.data.mix import TextLines\n"
        "from mnmt_scale.data.tokenizer import train_tokenizer\n"
        f"sizes = { ({k: len(v) for k, v in TEXT.items()}) }\n"
        "root = Path(sys.argv[1])\n"
        "text = {x: TextLines(((root / x, n),)) for x, n in sizes.items()}\n"
        f"config = TokenizerConfig(vocabulary_size=380, model={model!r}, sample_lines=150)\n"
        f"train_tokenizer(config, text, {LANGUAGES}, root / 'out' / 'other.model', 5)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
    config = TokenizerConfig(vocabulary_size=380, model=model, sample_lines=150)
    here = train_tokenizer(config, TEXT, LANGUAGES, tmp_path / "here.model", 5)
    other = Tokenizer.load(tmp_path / "out" / "other.model")
    assert (tmp_path / "here.model").read_bytes() == (tmp_path / "out" / "other.model").read_bytes()
    assert here.fingerprint == other.fingerprint
    changed = train_tokenizer(config, {**TEXT, "en": TEXT["fr"]}, LANGUAGES, tmp_path / "changed.model", 5)
    assert changed.fingerprint != here.fingerprint


def test_an_impossible_vocabulary_is_refused_with_the_bound(tmp_path):
    for size, words in ((100_000, "at most"), (270, "more than")):
        error = code_of(train_tokenizer, TokenizerConfig(vocabulary_size=size), TEXT, LANGUAGES, tmp_path / "m", 1)
        assert error.code == "E301"
        assert words in str(error.remedy)
        bound = int(str(error.remedy).split()[-1])
        assert 270 <= bound < 100_000
    error = code_of(train_tokenizer, TokenizerConfig(vocabulary_size=99_999), TEXT, LANGUAGES, tmp_path / "m", 1)
    largest = TokenizerConfig(vocabulary_size=int(str(error.remedy).split()[-1]))
    trained = train_tokenizer(largest, TEXT, LANGUAGES, tmp_path / "m", 1)
    assert trained.vocabulary_size == largest.vocabulary_size
    assert code_of(train_tokenizer, SMALL, {"en": []}, LANGUAGES, tmp_path / "m", 1).code == "E301"


def test_training_and_loading_say_nothing(tmp_path, capfd):
    trained = train_tokenizer(SMALL, TEXT, LANGUAGES, tmp_path / "m", 1)
    Tokenizer.load(trained.path)
    code_of(Tokenizer.load, write_lines(tmp_path / "bad", ["x"]))
    assert capfd.readouterr() == ("", "")


def test_a_missing_or_damaged_model_is_refused(tokenizer, tmp_path):
    assert code_of(Tokenizer.load, tmp_path / "none.model").code == "E302"
    data = tokenizer.path.read_bytes()
    for damage in (b"", b"not a model at all", data[: len(data) // 2 - 3], b"\x00" * 100):
        path = tmp_path / "damaged.model"
        path.write_bytes(damage)
        assert code_of(Tokenizer.load, path).code == "E302"


def test_a_model_without_padding_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT["en"]), model_writer=model, vocab_size=60, minloglevel=2
    )
    path = tmp_path / "plain.model"
    path.write_bytes(model.getvalue())
    error = code_of(Tokenizer.load, path)
    assert error.code == "E302"
    assert "pad" in str(error)


def test_a_chosen_model_must_have_every_tag(tokenizer):
    config = TokenizerConfig(path=str(tokenizer.path))
    assert chosen_tokenizer(config, ["en", "no"]).fingerprint == tokenizer.fingerprint
    assert code_of(chosen_tokenizer, config, ["en", "de"]).code == "E105"
    assert chosen_tokenizer(SMALL, ["xx"]) is None


def test_saving_and_loading_a_directory(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").fingerprint == tokenizer.fingerprint
    assert not (tmp_path / "copy" / "vocabulary.json").exists()


def imported(tokenizer, directory) -> Tokenizer:
    """The same model with ids as M2M100 orders them: specials, pieces in another order, tags last."""
    tokenizer.save(directory)
    text_pieces = tokenizer.pieces()[8:]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *reversed(text_pieces[1:]), "never seen", "__en__", "__fr__"]
    tags = {"en": len(pieces) - 2, "fr": len(pieces) - 1}
    write_vocabulary(directory, pieces, tags, {"bos": 0, "pad": 1, "eos": 2, "unk": 3})
    return Tokenizer.load(directory)


def test_an_imported_vocabulary_renumbers_the_pieces(tokenizer, tmp_path):
    other = imported(tokenizer, tmp_path)
    lines = [*TEXT["en"][:5], "__fr__ x"]
    ids = other.encode(lines)
    assert [[other.pieces()[i] for i in row] for row in ids] == [
        [tokenizer.pieces()[i] for i in row] for row in tokenizer.encode(lines)
    ]
    assert other.decode(ids) == lines
    assert other.languages == ["en", "fr"]
    assert other.tag_id("fr") == other.vocabulary_size - 1
    assert other.fingerprint != tokenizer.fingerprint
    assert all(i < other.vocabulary_size - 2 for row in ids for i in row)
    unknown = other.vocabulary_size - 3  # "never seen" is no piece of the model: it has no text
    assert other.decode([[*ids[0], unknown, other.tag_id("en")]]) == lines[:1]
    other.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == other.fingerprint


def test_a_piece_that_the_imported_vocabulary_lacks_is_unknown(tokenizer, tmp_path):
    pieces = tokenizer.pieces()
    present = tokenizer.encode(["zzz"])[0][-1]
    renamed = [p if i != present else "gone" for i, p in enumerate(pieces)]
    tokenizer.save(tmp_path)
    write_vocabulary(tmp_path, renamed, {"en": 4}, {"bos": 0, "pad": 1, "eos": 2, "unk": 3})
    assert Tokenizer.load(tmp_path).unk in Tokenizer.load(tmp_path).encode(["zzz"])[0]


@pytest.mark.parametrize("text", ["", "[]", '{"pieces": ["a"]}', '{"pieces": ["a"], "tags": {"en": 1}, "specials": {}}'])
def test_a_damaged_vocabulary_file_is_refused(tokenizer, tmp_path, text):
    tokenizer.save(tmp_path)
    (tmp_path / "vocabulary.json").write_text(text)
    assert code_of(Tokenizer.load, tmp_path).code == "E302"


def test_ids_beyond_the_pieces_are_refused(tokenizer, tmp_path):
    specials = {"bos": 0, "pad": 1, "eos": 2, "unk": 3}
    assert code_of(write_vocabulary, tmp_path, list("abcde"), {"en": 5}, specials).code == "E302"


def test_the_mix_follows_the_temperature():
    assert mix_sizes([800, 100, 100], 100, 1.0) == [80, 10, 10]
    shares = mix_sizes([100_000, 3125], 900, 5.0)
    assert sum(shares) == 900
    assert shares[0] / shares[1] == pytest.approx(2.0, abs=0.01)  # (100000 / 3125)^(1/5) = 2
    assert mix_sizes([10, 0], 100, 5.0) == [10, 0]
    assert mix_sizes([0, 0], 100, 5.0) == [0, 0]
    assert mix_sizes([3, 3, 3], 8, 2.0) == [3, 3, 2]


def test_lines_are_drawn_evenly_and_a_small_language_is_repeated():
    text = {"b": [f"b{i}" for i in range(1000)], "a": [f"a{i}" for i in range(10)]}
    drawn = list(draw_lines(text, 300, 5.0, seed=3))
    count = Counter(drawn)
    wanted = mix_sizes([10, 1000], 300, 5.0)
    assert len(drawn) == 300
    assert sum(n for line, n in count.items() if line[0] == "a") == wanted[0]
    assert {n for line, n in count.items() if line[0] == "a"} <= {wanted[0] // 10, wanted[0] // 10 + 1}
    assert max(n for line, n in count.items() if line[0] == "b") == 1
    rows = [int(line[1:]) for line in drawn if line[0] == "b"]
    assert max(y - x for x, y in itertools.pairwise(rows)) <= 1000 // wanted[1] + 1
    assert drawn == list(draw_lines(text, 300, 5.0, seed=3))
    assert drawn != list(draw_lines(text, 300, 5.0, seed=4))


def test_text_lines_end_at_the_byte_only(tmp_path):
    first, second = ["a\u2028b", "c\rd"], ["e"]
    text = TextLines(((write_lines(tmp_path / "1", first), 2), (write_lines(tmp_path / "2", second), 1)))
    assert (len(text), list(text)) == (3, ["a\u2028b", "c\rd", "e"])
