"""Finding corpora and reading them in step, strictly."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mnmt_scale.data import parallel_text
from mnmt_scale.data.config import CleanConfig, CorpusConfig, DataConfig
from mnmt_scale.data.corpus import Source, find_corpora, trained_tasks
from mnmt_scale.data.parallel_text import read_all, read_blocks
from mnmt_scale.errors import MnmtError
from tests.support.corpora import parallel, write_lines, write_pair, write_tree

FIRST = ["one", "two\u2028still two", "three\u0085\u000b\rstill three", "", "  five\t\u00a0five "]
SECOND = ["eins", "zwei", "drei", "vier", "f\u00fcnf \U0001f40c"]
STRICT = CleanConfig()


def opus(tree: Path, **changes) -> DataConfig:
    return DataConfig(corpora=[CorpusConfig(path=str(tree), **changes.pop("corpus", {}))], **changes)


def code_of(call, *arguments, **named) -> MnmtError:
    with pytest.raises(MnmtError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_pair_with_the_pivot_is_found(tmp_path):
    write_tree(tmp_path, {"af-en": 3, "en-no": 3, "de-fr": 3, "eng_Latn-lij_Latn": 3})
    found = find_corpora(opus(tmp_path))
    assert [(c.pair, c.trained) for c in found] == [("af-en", True), ("en-no", True)]
    assert trained_tasks(opus(tmp_path), found).names == ["af-en", "no-en"]
    many = find_corpora(opus(tmp_path, directions="many-to-many"))
    assert [c.pair for c in many] == ["af-en", "de-fr", "en-no", "eng_Latn-lij_Latn"]
    assert many[0].bytes == sum(p.stat().st_size for p in (tmp_path / "supervised" / "af-en").iterdir())


def test_a_directory_of_pairs_is_a_tree_too_and_files_may_be_compressed(tmp_path):
    directory = write_pair(tmp_path, "af-en", part=".", train=parallel(4))
    plain = directory / "opus.af-en-train.af"
    (directory / "opus.af-en-train.af.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    (corpus,) = find_corpora(opus(tmp_path))
    assert list(corpus.sources) == ["train"]
    block = read_all(corpus.sources["train"], STRICT)
    assert (block.first, block.second) == parallel(4)


def test_pairs_that_are_not_trained_stay_for_zero_shot_evaluation(tmp_path):
    write_tree(tmp_path, {"de-en": 3, "en-fr": 3, "de-fr": 3, "fr-it": 3})
    write_pair(tmp_path, "en-nl", train=parallel(2))
    write_pair(tmp_path, "fr-nl", part="zero-shot", test=parallel(2))
    write_pair(tmp_path, "ar-nl", part="zero-shot", test=parallel(2))
    found = {c.pair: list(c.sources) for c in find_corpora(opus(tmp_path))}
    assert found == {
        "de-en": ["train", "dev", "test"],
        "de-fr": ["dev", "test"],  # both languages are trained, the pair is not
        "en-fr": ["train", "dev", "test"],
        "en-nl": ["train"],
        "fr-nl": ["test"],
    }


def test_only_the_pairs_that_are_named(tmp_path):
    write_tree(tmp_path, {"af-en": 3, "en-no": 3})
    assert [c.pair for c in find_corpora(opus(tmp_path, corpus={"pairs": ["no-en"]}))] == ["en-no"]
    error = code_of(find_corpora, opus(tmp_path, corpus={"pairs": ["en-nn"]}))
    assert error.code == "E105"
    assert "'en-no'" in str(error)


def test_unknown_languages_and_directions_name_the_nearest(tmp_path):
    write_tree(tmp_path, {"af-en": 3, "en-no": 3})
    assert code_of(find_corpora, opus(tmp_path, pivot="eng")).code == "E105"
    error = code_of(find_corpora, opus(tmp_path, tasks=["noo-en"]))
    assert error.code == "E105"
    assert "'no-en'" in str(error)
    data = opus(tmp_path, tasks=["en-no", "no-en"])
    assert trained_tasks(data, find_corpora(data)).names == ["en-no", "no-en"]


def test_missing_files_and_directories_are_named(tmp_path):
    assert code_of(find_corpora, opus(tmp_path / "nowhere")).code == "E201"
    assert code_of(find_corpora, opus(tmp_path)).code == "E201"
    directory = write_pair(tmp_path, "af-en", train=parallel(3), dev=parallel(3))
    (directory / "opus.af-en-dev.en").unlink()
    error = code_of(find_corpora, opus(tmp_path))
    assert (error.code, error.where) == ("E201", str(directory / "opus.af-en-dev.en"))
    (directory / "opus.af-en-dev.af").unlink()
    (directory / "opus.af-en-train.en").unlink()
    assert code_of(find_corpora, opus(tmp_path)).where == str(directory / "opus.af-en-train.en")
    assert code_of(find_corpora, DataConfig()).code == "E104"
    single = CorpusConfig(reader="tsv", pair="en-de", train=str(tmp_path / "no.tsv"))
    assert code_of(find_corpora, DataConfig(corpora=[single])).code == "E201"


def test_the_same_pair_twice_is_refused(tmp_path):
    write_tree(tmp_path, {"af-en": 3})
    write_lines(tmp_path / "more.tsv", ["a\tb"])
    corpora = [CorpusConfig(path=str(tmp_path)), CorpusConfig(reader="tsv", pair="en-af", train=str(tmp_path / "more.tsv"))]
    error = code_of(find_corpora, DataConfig(corpora=corpora))
    assert error.code == "E208"
    assert "more.tsv" in str(error)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("final_newline", [True, False])
def test_moses_files_end_lines_at_the_byte_only(tmp_path, suffix, final_newline):
    for language, lines in (("en", FIRST), ("de", SECOND)):
        text = "\n".join(lines) + ("\n" if final_newline else "")
        (tmp_path / f"c.{language}{suffix}").write_bytes(COMPRESS[suffix](text.encode()))
    config = CorpusConfig(reader="moses", pair="en-de", train=str(tmp_path / "c"))
    (corpus,) = find_corpora(DataConfig(corpora=[config]))
    block = read_all(corpus.sources["train"], STRICT)
    assert (block.first, block.second) == (SECOND, FIRST)  # alphabetical: de-en


@given(st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"])), min_size=1, max_size=9))
def test_lines_come_back_whatever_the_characters(tmp_path_factory, lines):
    lines = [line.rstrip("\r").removeprefix("\ufeff") for line in lines] + ["end"]
    directory = tmp_path_factory.mktemp("lines")
    paths = tuple(write_lines(directory / side, lines) for side in "ab")
    source = Source("moses", paths, ("aa", "bb"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_text, "BLOCK_LINES", 3)
        blocks = list(read_blocks(source, STRICT))
    assert [line for block in blocks for line in block.second] == lines
    assert {len(block.first) for block in blocks[:-1]} <= {3}


def test_zstd_of_several_frames(tmp_path):
    frames = [zstandard.compress(b"one\ntw"), zstandard.compress(b"o\nthree\n")]
    (tmp_path / "c.en.zst").write_bytes(b"".join(frames))
    write_lines(tmp_path / "c.de", ["eins", "zwei", "drei"])
    source = Source("moses", (tmp_path / "c.en.zst", tmp_path / "c.de"), ("en", "de"))
    assert read_all(source, STRICT).second == ["one", "two", "three"]


def test_records_have_their_columns_by_name_or_by_the_order_of_the_pair(tmp_path):
    import pyarrow
    import pyarrow.parquet

    first, second = [x for x in FIRST if "\t" not in x], ["x", "y", "z", ""]
    rows = [{"en": a, "de": b, "id": 7} for a, b in zip(first, second, strict=True)]
    write_lines(tmp_path / "c.tsv", [f"{a}\t{b}" for a, b in zip(first, second, strict=True)])
    write_lines(tmp_path / "c.jsonl", [json.dumps(row) for row in rows])
    write_lines(tmp_path / "t.jsonl", [json.dumps({"translation": row}) for row in rows])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"translation": r} for r in rows]), tmp_path / "t.parquet")
    for name in ("c.tsv", "c.jsonl", "t.jsonl", "c.parquet", "t.parquet"):
        config = CorpusConfig(reader=name.split(".")[1], pair="en-de", train=str(tmp_path / name))
        (corpus,) = find_corpora(DataConfig(corpora=[config]))
        block = read_all(corpus.sources["train"], STRICT)
        assert (block.first, block.second) == (second, first), name


def test_a_line_end_inside_a_field_becomes_a_space(tmp_path):
    path = write_lines(tmp_path / "c.jsonl", [json.dumps({"en": "a\nb", "de": "c"})])
    assert read_all(Source("jsonl", (path,), ("en", "de")), STRICT).second == ["a b"]


@pytest.mark.parametrize(
    ("reader", "line", "code"),
    [
        ("tsv", b"only one column", "E205"),
        ("tsv", b"a\tb\tc", "E205"),
        ("jsonl", b'{"en": "a"', "E205"),
        ("jsonl", b'{"en": "a", "dee": "b"}', "E205"),
        ("jsonl", b'{"en": "a", "de": 3}', "E205"),
        ("jsonl", b"[1, 2]", "E205"),
        ("jsonl", b'{"en": "a\\u0000", "de": "b"}', "E203"),
        ("jsonl", b'{"en": "a\\ud800", "de": "b"}', "E203"),
        ("tsv", b"a\xff\tb", "E203"),
    ],
)
def test_a_bad_record_is_refused_with_its_line_or_dropped_and_counted(tmp_path, reader, line, code):
    good = b'{"en": "x", "de": "y"}' if reader == "jsonl" else b"x\ty"
    path = tmp_path / "c"
    path.write_bytes(b"\n".join([good, line, good, b""]))
    source = Source(reader, (path,), ("en", "de"))
    error = code_of(read_all, source, STRICT)
    assert error.code == code
    assert f"{path}:2" in str(error)
    block = read_all(source, CleanConfig(on_bad_line="drop"))
    assert (block.first, block.second, block.bad) == (["y", "y"], ["x", "x"], 1)


def test_damaged_parquet_and_missing_columns(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "c.parquet"
    path.write_bytes(b"PAR1 nothing of the kind")
    assert code_of(read_all, Source("parquet", (path,), ("en", "de")), STRICT).code == "E205"
    pyarrow.parquet.write_table(pyarrow.table({"en": ["a"], "dee": ["b"]}), path)
    error = code_of(read_all, Source("parquet", (path,), ("en", "de")), STRICT)
    assert error.code == "E205"
    assert "'dee'" in str(error)


def two_sides(tmp_path: Path, first: bytes, second: bytes) -> Source:
    paths = (tmp_path / "c.de", tmp_path / "c.en")
    for path, data in zip(paths, (first, second), strict=True):
        path.write_bytes(data)
    return Source("moses", paths, ("de", "en"))


def test_invalid_bytes_are_named_by_line_and_byte_or_dropped_pairwise(tmp_path):
    source = two_sides(tmp_path, b"a\nb\nc\nd\n", b"A\nB \xc3\x28\nC\nD\0\n")
    error = code_of(read_all, source, STRICT)
    assert (error.code, error.where) == ("E203", f"{tmp_path / 'c.en'}:2:3")
    block = read_all(source, CleanConfig(on_bad_line="drop"))
    assert (block.first, block.second, block.bad) == (["a", "c"], ["A", "C"], 2)
    error = code_of(read_all, two_sides(tmp_path, b"a\nb\n", b"A\nB\0\n"), STRICT)
    assert (error.code, error.where) == ("E203", f"{tmp_path / 'c.en'}:2:2")


def test_a_byte_order_mark_and_crlf_are_refused_or_stripped(tmp_path):
    strip = CleanConfig(on_crlf="strip")
    marked = two_sides(tmp_path, b"\xef\xbb\xbfa\nb\n", b"A\nB\n")
    assert code_of(read_all, marked, STRICT).where == f"{tmp_path / 'c.de'}:1:1"
    assert read_all(marked, strip).first == ["a", "b"]
    crlf = two_sides(tmp_path, b"a\nb\r\nc\r\n", b"A\nB\rb\nC\n")
    error = code_of(read_all, crlf, STRICT)
    assert (error.code, error.where) == ("E203", f"{tmp_path / 'c.de'}:2")
    block = read_all(crlf, strip)
    assert (block.first, block.second) == (["a", "b", "c"], ["A", "B\rb", "C"])
    wide = two_sides(tmp_path, "a\nb\n".encode("utf-16"), b"A\nB\n")
    assert code_of(read_all, wide, CleanConfig(on_bad_line="drop", on_crlf="strip")).code == "E203"


def test_misaligned_sides_give_both_counts_and_where_they_part(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel_text, "BLOCK_LINES", 16)
    first = [line * (1 + i % 5) for i, line in enumerate(parallel(100)[0])]
    second = first[:60] + first[61:]
    source = two_sides(tmp_path, "\n".join(first).encode() + b"\n", "\n".join(second).encode() + b"\n")
    error = code_of(read_all, source, CleanConfig(on_bad_line="drop"))
    assert error.code == "E202"
    assert "100 and 99 lines" in str(error)
    assert all(str(path) in str(error) for path in source.paths)
    near = int(str(error.remedy).split()[-1])
    assert abs(near - 61) <= 2


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_compressed_file_is_refused(tmp_path, suffix, damage):
    lines = "".join(line + "\n" for line in parallel(3000)[0]).encode()
    data = bytearray(COMPRESS[suffix](lines))
    if damage == "cut":
        del data[len(data) * 2 // 3 :]
    else:
        data[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
    path = tmp_path / f"c.en{suffix}"
    path.write_bytes(data)
    write_lines(tmp_path / "c.de", parallel(3000)[1])
    error = code_of(read_all, Source("moses", (tmp_path / "c.de", path), ("de", "en")), STRICT)
    assert error.code in ("E205", "E203")  # a flipped bit may show as text before the checksum is read
    assert damage == "flip" or error.code == "E205"


def test_an_empty_file_is_refused(tmp_path):
    for first, second in ((b"", b"a\n"), (b"a\n", b""), (b"", b"")):
        assert code_of(read_all, two_sides(tmp_path, first, second), STRICT).code == "E204"
    empty = tmp_path / "c.de.gz"
    empty.write_bytes(gzip.compress(b""))
    write_lines(tmp_path / "c.en", ["a"])
    error = code_of(read_all, Source("moses", (empty, tmp_path / "c.en"), ("de", "en")), STRICT)
    assert (error.code, error.where) == ("E204", str(empty))
