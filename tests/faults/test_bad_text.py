"""Bad text of every kind, through ``prepare``: one clear line with its code, and the store that was there stays whole."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mnmt_scale.data.build import prepare
from mnmt_scale.data.store import TokenStore
from mnmt_scale.errors import MnmtError
from tests.support.corpora import files_of, parallel, settings_for, settings_text, write_pair, write_tree

SIZES = {"af-en": 120, "en-no": 60}
Fault = Callable[[Path], None]


def train_file(tree: Path, language: str = "af") -> Path:
    return tree / "supervised" / "af-en" / f"opus.af-en-train.{language}"


def edit(change: Callable[[bytes], bytes], language: str = "af") -> Fault:
    def fault(tree: Path) -> None:
        path = train_file(tree, language)
        path.write_bytes(change(path.read_bytes()))

    return fault


def compress(cut: int) -> Fault:
    def fault(tree: Path) -> None:
        path = train_file(tree)
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes())[: -cut or None])
        path.unlink()

    return fault


def without_a_line(data: bytes) -> bytes:
    lines = data.split(b"\n")
    return b"\n".join(lines[:70] + lines[71:])


def dev_as_training(tree: Path) -> None:
    dev = parallel(50, 7)
    write_pair(tree, "af-en", dev=dev, train=(dev[0] + parallel(20)[0], dev[1] + parallel(20)[1]))


FAULTS: dict[str, tuple[Fault, str, str]] = {
    # name: what happens to the tree, code, a part of the message
    "one line missing": (edit(without_a_line), "E202", "119 and 120 lines"),
    "gz cut off": (compress(60), "E205", "opus.af-en-train.af.gz"),
    "gz without its checksum": (compress(6), "E205", "opus.af-en-train.af.gz"),
    "CRLF": (edit(lambda d: d.replace(b"\n", b"\r\n")), "E203", "opus.af-en-train.af:1"),
    "CRLF from the middle on": (edit(lambda d: d[:900] + d[900:].replace(b"\n", b"\r\n")), "E203", "CRLF"),
    "byte order mark": (edit(lambda d: b"\xef\xbb\xbf" + d), "E203", "opus.af-en-train.af:1:1"),
    "UTF-16": (edit(lambda d: d.decode().encode("utf-16")), "E203", "UTF-16"),
    "Latin-1": (edit(lambda d: d.replace(b"a", "\u00e9".encode("latin-1"), 1)), "E203", "invalid UTF-8 (byte 0xe9)"),
    "NUL": (edit(lambda d: d.replace(b"\n", b"\0\n", 3)), "E203", "NUL byte"),
    "empty file": (edit(lambda d: b""), "E204", "opus.af-en-train.af"),
    "empty lines alone": (edit(lambda d: b"\n" * d.count(b"\n")), "E204", "af side"),
    "blank lines alone on the other side": (edit(lambda d: b" \t\n" * d.count(b"\n"), "en"), "E204", "en side"),
    "file missing": (lambda tree: train_file(tree, "en").unlink(), "E201", "opus.af-en-train.en"),
    "nothing after cleaning": (
        edit(lambda d: b"".join(b"x %d " % i * 300 + b"\n" for i in range(120))),
        "E206",
        "too_long 120",
    ),
    "training text is dev text": (dev_as_training, "E207", "50 of 70"),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """A directory with a tree and the store made from it; tests copy the tree and share the old store's bytes."""
    root = tmp_path_factory.mktemp("healthy")
    prepare(settings_for(write_tree(root / "tree", SIZES), root / "store"), log=str)
    return root


def check_refused(root: Path, healthy: Path, code: str, part: str, **settings) -> MnmtError:
    """``prepare`` refuses with ``code``; the store of ``root`` is as it was, and nothing lies beside it."""
    before = files_of(healthy / "store")
    for name, data in before.items():
        (root / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "store" / name).write_bytes(data)
    with pytest.raises(MnmtError) as caught:
        prepare(settings_for(root / "tree", root / "store", **settings), log=str)
    assert (caught.value.code, "\n" in str(caught.value)) == (code, False)
    assert part in str(caught.value)
    assert files_of(root / "store") == before
    TokenStore.open(root / "store").verify()
    assert sorted(p.name for p in root.iterdir()) == ["store", "tree"]
    return caught.value


@pytest.mark.parametrize("name", FAULTS)
def test_bad_training_text(tmp_path, healthy, name):
    fault, code, part = FAULTS[name]
    fault(write_tree(tmp_path / "tree", SIZES))
    check_refused(tmp_path, healthy, code, part)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d[d.index(b"\n") + 1 :], "E202"),
        (lambda d: b"\xff" + d, "E203"),
        (lambda d: b"", "E204"),
        (lambda d: b"\n" * d.count(b"\n"), "E204"),
    ],
)
def test_bad_dev_text(tmp_path, healthy, change, code):
    tree = write_tree(tmp_path / "tree", SIZES)
    path = tree / "supervised" / "en-no" / "opus.en-no-dev.no"
    path.write_bytes(change(path.read_bytes()))
    check_refused(tmp_path, healthy, code, str(path))


def test_settings_that_the_text_does_not_allow(tmp_path, healthy):
    write_tree(tmp_path / "tree", SIZES)
    error = check_refused(tmp_path, healthy, "E301", "90000", vocabulary_size=90_000)
    assert "at most" in str(error)
    check_refused(tmp_path, healthy, "E301", "270", vocabulary_size=270)
    check_refused(tmp_path, healthy, "E206", "max_tokens", max_tokens=3)
    check_refused(tmp_path, healthy, "E105", "'no-en'", tasks=["noo-en"])
    check_refused(tmp_path, healthy, "E105", "'en'", pivot="em")
    check_refused(tmp_path, healthy, "E302", "none.model", tokenizer={"path": str(tmp_path / "none.model")})


def test_settings_that_mend_it(tmp_path):
    """CRLF and a mark are stripped, bad lines are dropped on both sides and counted, and the store is the healthy one."""
    tree = write_tree(tmp_path / "tree", SIZES)
    prepare(settings_for(tree, tmp_path / "store"), log=str)
    edit(lambda d: b"\xef\xbb\xbf" + d.replace(b"\n", b"\r\n") + b"bad \xff\r\nfine\r\nNUL \0\r\n")(tree)
    edit(lambda d: d + b"a\nb \xc3\nc\n", "en")(tree)
    clean = {"on_crlf": "strip", "on_bad_line": "drop"}
    report = prepare(settings_for(tree, tmp_path / "mended", clean=clean), log=str)
    assert report["pairs"]["af-en"]["dropped"] == {"bad_line": 3}
    assert report["pairs"]["af-en"]["read"] == 123
    before, after = files_of(tmp_path / "store"), files_of(tmp_path / "mended")
    assert before.pop("store.json") != after.pop("store.json")  # it holds the counts
    assert before == after


def test_odd_but_good_lines_are_kept(tmp_path):
    """No line end after the last line; lone CR, U+2028, U+0085 and vertical tabs within lines; a very long line."""
    tree = write_tree(tmp_path / "tree", SIZES)
    odd = "one\rtwo\u2028three\u0085four\u000bfive six"
    edit(lambda d: d + ("w " * 100_000).encode() + b"\n" + odd.encode())(tree)
    edit(lambda d: d + b"long\nodd one", "en")(tree)
    report = prepare(settings_for(tree, tmp_path / "store"), log=str)
    assert report["pairs"]["af-en"]["dropped"] == {"too_long": 1}
    store = TokenStore.open(tmp_path / "store")
    assert store.sizes()["af-en"] == 121
    last = store.pair("af-en", "train").side("af")[120].tolist()
    assert store.tokenizer.decode([last]) == ["one two three four five six"]


def test_dev_lines_in_training_are_left_out_and_counted(tmp_path):
    tree = write_tree(tmp_path / "tree", SIZES)
    dev = [(tree / "supervised" / "af-en" / f"opus.af-en-dev.{x}").read_bytes() for x in ("af", "en")]
    edit(lambda d: d + dev[0])(tree)
    edit(lambda d: d + dev[1], "en")(tree)
    for overlap, left_out in (("pair", 10), ("either_side", 10), ("off", 0)):
        report = prepare(settings_for(tree, tmp_path / "store", clean={"overlap": overlap}), log=str)
        assert report["pairs"]["af-en"]["dropped"].get("overlap", 0) == left_out
        assert report["pairs"]["af-en"]["kept"] == 130 - left_out


def test_the_command_line_says_it_in_one_line(tmp_path):
    tree = write_tree(tmp_path / "tree", SIZES)
    edit(without_a_line)(tree)
    config = tmp_path / "c.toml"
    config.write_text(settings_text(tree, tmp_path / "store"))
    command = [sys.executable, "-m", "mnmt_scale", "prepare", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = [x for x in done.stderr.splitlines() if not x.startswith("cleaning")]
    assert line.startswith("MNMT-E202: the two sides have 119 and 120 lines at ")
    assert not (tmp_path / "store").exists()
