"""The token store: what is written comes back, nothing wrong opens, nothing is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mnmt_scale.data.config import TokenizerConfig
from mnmt_scale.data.shard import HEADER_BYTES, ShardWriter, Side, check_contents, read_header
from mnmt_scale.data.store import TokenStore
from mnmt_scale.data.store_writer import SplitWriter, Staging, write_text
from mnmt_scale.data.tokenizer import Tokenizer, train_tokenizer
from mnmt_scale.errors import MnmtError
from tests.support.corpora import files_of, sentences

DE = ["erste Zeile", "", "dritte\u2028Zeile\r"]
EN = ["first line", "second line", "third line"]
SHARD = "tokens/train/de-en.en"
PRINT = "ab" * 32


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer(TokenizerConfig(vocabulary_size=330), {"en": sentences(100)}, ["de", "en"], path, 1)


def make_store(target: Path, tokenizer: Tokenizer, repeat: int = 1) -> Path:
    staging = Staging.begin(target)
    files = {}
    for split, times in (("train", repeat), ("dev", 1)):
        writer = SplitWriter(staging.path, split, "de-en", tokenizer)
        for _ in range(times):
            writer.add(tokenizer.encode(DE), tokenizer.encode(EN))
        files |= writer.close()
    files |= write_text(staging.path, "dev", "de-en", (DE, EN))
    staging.publish(tokenizer=tokenizer, files=files, pairs={"train": ["de-en"], "dev": ["de-en"]}, report={"x": 1})
    return target


@pytest.fixture
def store(tokenizer, tmp_path) -> Path:
    return make_store(tmp_path / "store", tokenizer)


def refused(directory: Path) -> MnmtError:
    with pytest.raises(MnmtError) as caught:
        TokenStore.open(directory)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_was_written_comes_back(tokenizer, tmp_path):
    opened = TokenStore.open(make_store(tmp_path / "store", tokenizer, repeat=2))
    assert opened.pairs("train") == opened.pairs("dev") == ["de-en"]
    assert opened.pairs("test") == []
    assert opened.has("de-en", "dev")
    assert not opened.has("de-en", "test")
    assert opened.sizes() == {"de-en": 6}
    assert opened.report == {"x": 1}
    assert opened.fingerprint == tokenizer.fingerprint == opened.tokenizer.fingerprint
    pair = opened.pair("de-en", "train")
    assert (pair.languages, len(pair)) == (("de", "en"), 6)
    for language, lines in (("de", DE), ("en", EN)):
        side = pair.side(language)
        assert isinstance(side.tokens, np.memmap)
        assert isinstance(side.offsets, np.memmap)
        assert side.tokens.dtype == np.uint16
        assert side.offsets.dtype == np.uint64
        assert [side[i].tolist() for i in range(6)] == tokenizer.encode(lines) * 2
        assert opened.text("de-en", "dev", language) == lines
    opened.verify()


def test_what_is_not_there_is_named(store):
    opened = TokenStore.open(store)
    for call in (
        lambda: opened.pair("de-en", "test"),
        lambda: opened.pair("de-em", "train"),
        lambda: opened.pair("de-en", "trian"),
        lambda: opened.text("de-en", "train", "en"),
        lambda: opened.pair("de-en", "dev").side("fr"),
    ):
        with pytest.raises(MnmtError) as caught:
            call()
        assert caught.value.code == "E105"


@pytest.mark.parametrize(("vocabulary_size", "bytes_per_id"), [(65535, 2), (65536, 4), (100_000, 4)])
def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path, vocabulary_size, bytes_per_id):
    writer = ShardWriter(tmp_path / "x", vocabulary_size=vocabulary_size, fingerprint=PRINT)
    rows = [[vocabulary_size - 1, 0, 5], [], [7]]
    for row in rows:
        writer.add(np.array(row, dtype=np.uint32), np.array([len(row)]))
    written = writer.close()
    header = read_header(tmp_path / "x")
    assert header == written
    assert (header.id_bytes, header.sentences, header.tokens) == (bytes_per_id, 3, 4)
    assert (header.max_id, header.vocabulary_size, header.fingerprint) == (vocabulary_size - 1, vocabulary_size, PRINT)
    side = Side(tmp_path / "x", header)
    assert [side[i].tolist() for i in range(3)] == rows
    assert side.offsets.tolist() == [0, 3, 3, 4]
    check_contents(tmp_path / "x", header)


def test_a_shard_without_any_token(tmp_path):
    writer = ShardWriter(tmp_path / "x", vocabulary_size=10, fingerprint=PRINT)
    writer.add(np.empty(0, np.uint32), np.zeros(2, np.int64))
    header = writer.close()
    side = Side(tmp_path / "x", header)
    assert (len(side), header.max_id, len(side[1])) == (2, -1, 0)
    check_contents(tmp_path / "x", read_header(tmp_path / "x"))


def test_an_id_beyond_the_vocabulary_cannot_be_written(tmp_path):
    writer = ShardWriter(tmp_path / "x", vocabulary_size=10, fingerprint=PRINT)
    with pytest.raises(AssertionError):
        writer.add(np.array([10]), np.array([1]))


def test_opening_reads_headers_alone_and_verify_everything(store):
    path = store / SHARD
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES] ^= 1
    path.write_bytes(data)
    opened = TokenStore.open(store)
    with pytest.raises(MnmtError) as caught:
        opened.verify()
    assert caught.value.code in ("E304", "E307")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["text/dev/de-en.de", "tokens/dev/de-en.de"])
def test_verify_finds_one_changed_byte_anywhere(store, name):
    path = store / name
    for place in (0, len(path.read_bytes()) // 2, -2):
        data = bytearray(original := path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(MnmtError):
            TokenStore.open(store).verify()
        path.write_bytes(original)
    TokenStore.open(store).verify()


@pytest.mark.parametrize("name", [SHARD, "text/dev/de-en.en", "tokenizer.model"])
@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "empty"])
def test_a_file_of_another_size_is_refused_at_open(store, name, damage):
    path = store / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"shorter": data[:-1], "longer": data + b"\0", "empty": b""}[damage])
    error = refused(store)
    assert error.code == ("E302" if name == "tokenizer.model" else "E304")
    assert str(path) in str(error)


def patch_header(path: Path, at: int, form: str, value: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, value))


def test_another_version_is_refused(store):
    patch_header(store / SHARD, 8, "<I", 2)
    assert refused(store).code == "E305"
    index = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**index, "version": 99}))
    assert (refused(store).code, "99" in str(refused(store))) == ("E305", True)


def test_an_id_beyond_the_vocabulary_is_refused_at_open(store):
    patch_header(store / SHARD, 32, "<q", 330)
    error = refused(store)
    assert error.code == "E307"
    assert "330" in str(error)


def test_verify_finds_an_id_beyond_the_vocabulary_that_the_header_hides(store):
    patch_header(store / SHARD, HEADER_BYTES, "<H", 60_000)
    with pytest.raises(MnmtError) as caught:
        TokenStore.open(store).verify()
    assert caught.value.code == "E307"


def other_tokenizer(directory: Path) -> Tokenizer:
    text = {"en": sentences(100, 9, "mnopqrstu")}
    return train_tokenizer(TokenizerConfig(vocabulary_size=320), text, ["de", "en"], directory / "other.model", 1)


def test_another_tokenizer_in_the_store_is_refused(store, tmp_path):
    (store / "tokenizer.model").write_bytes(other_tokenizer(tmp_path).path.read_bytes())
    assert refused(store).code == "E306"


def test_a_shard_of_another_tokenizer_is_refused(store, tmp_path):
    other = make_store(tmp_path / "other", other_tokenizer(tmp_path))
    (store / SHARD).write_bytes((other / SHARD).read_bytes())
    assert refused(store).code == "E306"


def test_a_missing_or_unfinished_store_is_refused(store, tmp_path):
    assert refused(tmp_path / "nowhere").code == "E303"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").code == "E303"
    (store / "store.json").unlink()
    assert refused(store).code == "E303"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "mnmt token store", "version": 1}', '{"format": "x"}'])
def test_a_damaged_index_is_refused(store, text):
    (store / "store.json").write_text(text)
    assert refused(store).code == "E304"


def test_offsets_that_do_not_fit_are_refused_when_mapped(store):
    path = store / SHARD
    patch_header(path, path.stat().st_size - 8, "<Q", 10**12)
    with pytest.raises(MnmtError) as caught:
        TokenStore.open(store).pair("de-en", "train")
    assert caught.value.code == "E304"


def test_a_new_store_replaces_the_old_one_and_leaves_nothing_else(store, tokenizer):
    make_store(store, tokenizer, repeat=3)
    assert TokenStore.open(store).sizes() == {"de-en": 9}
    assert [p.name for p in store.parent.iterdir()] == ["store"]


def test_an_abandoned_or_unfinished_store_leaves_the_old_one(store, tokenizer):
    before = files_of(store)
    staging = Staging.begin(store)
    SplitWriter(staging.path, "train", "de-en", tokenizer).add([[5]], [[6]])
    assert refused(staging.path).code == "E303"
    staging.abandon()
    assert files_of(store) == before
    assert [p.name for p in store.parent.iterdir()] == ["store"]


def test_a_directory_that_is_no_store_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(MnmtError) as caught:
        Staging.begin(tmp_path / "thesis")
    assert caught.value.code == "E303"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


def test_two_at_once_are_refused(tmp_path):
    first = Staging.begin(tmp_path / "store")
    with pytest.raises(MnmtError) as caught:
        Staging.begin(tmp_path / "store")
    assert caught.value.code == "E402"
    first.abandon()
    Staging.begin(tmp_path / "store").abandon()


def test_an_unwritable_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MnmtError) as caught:
        Staging.begin(tmp_path / "file" / "store")
    assert caught.value.code == "E401"


def test_an_end_between_the_two_renames_loses_nothing(store, tokenizer):
    os.rename(store, store.with_name("store.old"))
    error = refused(store)
    assert error.code == "E303"
    assert "store.old" in str(error)
    Staging.begin(store).abandon()
    assert TokenStore.open(store).sizes() == {"de-en": 3}


def test_a_killed_writer_leaves_the_old_store_and_frees_the_place(store, tokenizer):
    before = files_of(store)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from mnmt_scale.data.store_writer import Staging\n"
        "staging = Staging.begin(Path(sys.argv[1]))\n"
        "(staging.path / 'half').write_text('x')\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(store)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    assert files_of(store) == before
    make_store(store, tokenizer, repeat=2)
    assert TokenStore.open(store).sizes() == {"de-en": 6}
    assert [p.name for p in store.parent.iterdir()] == ["store"]
