"""``prepare`` from corpora to store: every sentence accounted for, and the same bytes on any number of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mnmt_scale.cli.prepare import report_table
from mnmt_scale.data.build import prepare
from mnmt_scale.data.clean import normalise
from mnmt_scale.data.config import CorpusConfig
from mnmt_scale.data.corpus import find_corpora
from mnmt_scale.data.ranks import Ranks
from mnmt_scale.data.store import TokenStore
from mnmt_scale.errors import MnmtError
from tests.support.corpora import files_of, parallel, settings_for, settings_text, write_pair, write_tree

SIZES = {"af-en": 150, "en-no": 60, "en-zu": 90}


def quiet(line: str) -> None:
    pass


def test_every_sentence_is_accounted_for(tmp_path):
    first, second = parallel(100)
    dev = (["a  held\tout", first[0], ""], ["en held out", second[0], "x"])
    train = (
        [*first, first[5], "  ", "same", "l " * 300, f"{first[7]}\u00a0\t"],
        [*second, second[5], "x", "same", "m", second[7]],
    )
    tree = tmp_path / "tree"
    write_pair(tree, "de-en", train=train, dev=dev, test=(first[90:], second[90:]))
    data = settings_for(tree, tmp_path / "store")
    report = prepare(data, log=quiet)
    counts = report["pairs"]["de-en"]
    assert counts["read"] == 105
    assert counts["dropped"] == {"empty": 1, "copy": 1, "too_long": 1, "duplicate": 2, "overlap": 11}
    assert counts["kept"] == 89
    assert counts["dev"] == {"sentences": 3, "bad_lines": 0, "cut": 0}
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    assert store.report == report
    assert store.sizes() == {"de-en": 89}
    for language, lines, held in (("de", first, dev[0]), ("en", second, dev[1])):
        side = store.pair("de-en", "train").side(language)
        assert [side[i].tolist() for i in range(89)] == store.tokenizer.encode([normalise(x) for x in lines[1:90]])
        assert counts["tokens"][language] == len(side.tokens)
        assert store.text("de-en", "dev", language) == held
        in_dev = store.pair("de-en", "dev").side(language)
        assert [in_dev[i].tolist() for i in range(3)] == store.tokenizer.encode(held)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "tree"]
    table = report_table(report)
    assert "overlap" in table
    assert "max_tokens" not in table
    assert table.splitlines()[-1] == "1 directions, vocabulary 400"


def test_too_many_tokens_are_dropped_in_training_and_only_counted_in_test(tmp_path):
    tree = write_tree(tmp_path / "tree", SIZES)
    prepare(settings_for(tree, tmp_path / "all"), log=quiet)
    report = prepare(settings_for(tree, tmp_path / "short", max_tokens=24), log=quiet)
    everything, short = TokenStore.open(tmp_path / "all"), TokenStore.open(tmp_path / "short")
    longest = 24 - 2  # tag and end
    for pair, size in SIZES.items():
        sides = [everything.pair(pair, "train").side(x) for x in pair.split("-")]
        fitting = sum(all(len(side[i]) <= longest for side in sides) for i in range(size))
        assert 0 < fitting < size
        assert short.sizes()[pair] == report["pairs"][pair]["kept"] == fitting
        assert report["pairs"][pair]["dropped"] == {"max_tokens": size - fitting}
        in_test = [everything.pair(pair, "test").side(x) for x in pair.split("-")]
        cut = sum(any(len(side[i]) > longest for side in in_test) for i in range(10))
        assert report["pairs"][pair]["test"]["cut"] == cut
        assert len(short.pair(pair, "test")) == 10


def test_a_tokenizer_can_be_given(tmp_path):
    tree = write_tree(tmp_path / "tree", SIZES)
    prepare(settings_for(tree, tmp_path / "one"), log=quiet)
    given = {"path": str(tmp_path / "one" / "tokenizer.model"), "vocabulary_size": 7}
    prepare(settings_for(tree, tmp_path / "two", tokenizer=given), log=quiet)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    write_tree(tmp_path / "more", {"de-en": 50})
    with pytest.raises(MnmtError) as caught:
        prepare(settings_for(tmp_path / "more", tmp_path / "three", tokenizer=given), log=quiet)
    assert caught.value.code == "E105"


def test_pairs_kept_for_evaluation_have_dev_and_test_alone(tmp_path):
    tree = write_tree(tmp_path / "tree", {**SIZES, "no-zu": 40})
    report = prepare(settings_for(tree, tmp_path / "store"), log=quiet)
    store = TokenStore.open(tmp_path / "store")
    assert store.pairs("train") == sorted(SIZES)
    assert store.pairs("test") == sorted([*SIZES, "no-zu"])
    assert report["tasks"] == ["af-en", "no-en", "zu-en"]
    assert len(store.text("no-zu", "test", "zu")) == 10


def test_a_language_without_dev_and_test(tmp_path):
    write_pair(tmp_path / "tree", "af-en", train=parallel(80))
    prepare(settings_for(tmp_path / "tree", tmp_path / "store"), log=quiet)
    store = TokenStore.open(tmp_path / "store")
    assert (store.pairs("train"), store.pairs("dev"), store.pairs("test")) == (["af-en"], [], [])


def test_the_largest_pairs_are_shared_out_first(tmp_path):
    tree = write_tree(tmp_path / "tree", {"af-en": 400, "en-no": 200, "en-zu": 150, "de-en": 100})
    corpora = find_corpora(settings_for(tree, tmp_path / "store"))
    shares = [[c.pair for c in Ranks(rank, 2, None).share(corpora)] for rank in (0, 1)]
    assert shares == [["af-en"], ["en-no", "en-zu", "de-en"]] or shares == [["af-en", "de-en"], ["en-no", "en-zu"]]
    assert Ranks(0, 1, None).share(corpora)[0].pair == "af-en"


def run_cli(config: Path, *options: str, ranks: int = 1) -> subprocess.CompletedProcess:
    mpirun = Path(sys.executable).parent / "mpirun"
    if ranks > 1 and not mpirun.exists():
        pytest.skip("no mpirun beside this Python")
    launch = [str(mpirun), "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
    command = [*launch, sys.executable, "-m", "mnmt_scale", "prepare", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def test_mpi_gives_the_same_bytes_as_one_process(tmp_path):
    tree = write_tree(tmp_path / "tree", SIZES)
    report = prepare(settings_for(tree, tmp_path / "one"), log=quiet)
    (tmp_path / "c.toml").write_text(settings_text(tree, tmp_path / "many"))
    done = run_cli(tmp_path / "c.toml", "--json", ranks=2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"store": str(tmp_path / "many"), **report}
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")
    assert done.stderr.count("training a vocabulary") == 1


def test_an_error_of_the_other_rank_ends_all_with_one_line(tmp_path):
    broken = "en-zu"  # the second largest: the second rank's
    tree = write_tree(tmp_path / "tree", SIZES)
    prepare(settings_for(tree, tmp_path / "store"), log=quiet)
    before = files_of(tmp_path / "store")
    path = tree / "supervised" / broken / f"opus.{broken}-train.en"
    path.write_bytes(path.read_bytes() + b"bad \xff line\n")
    other = path.with_name(path.name.removesuffix(".en") + "." + broken.replace("en", "").strip("-"))
    other.write_bytes(other.read_bytes() + b"line\n")
    (tmp_path / "c.toml").write_text(settings_text(tree, tmp_path / "store"))
    done = run_cli(tmp_path / "c.toml", ranks=2)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "MNMT-" in line]
    assert len(lines) == 1, done.stderr
    assert "MNMT-E203" in lines[0]
    assert f"{path}:{SIZES[broken] + 1}:5" in lines[0]
    assert "Traceback" not in done.stderr
    assert files_of(tmp_path / "store") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.toml", "store", "tree"]


def test_a_dry_run_lists_and_writes_nothing(tmp_path):
    tree = write_tree(tmp_path / "tree", {**SIZES, "no-zu": 40})
    (tmp_path / "c.toml").write_text(settings_text(tree, tmp_path / "store"))
    done = run_cli(tmp_path / "c.toml", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["tasks"] == ["af-en", "no-en", "zu-en"]
    assert {pair: entry["use"] for pair, entry in plan["pairs"].items()} == {
        **dict.fromkeys(SIZES, "training"),
        "no-zu": "evaluation",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.toml", "tree"]


def test_a_killed_prepare_leaves_the_old_store(tmp_path):
    tree = write_tree(tmp_path / "tree", SIZES)
    prepare(settings_for(tree, tmp_path / "store"), log=quiet)
    before = files_of(tmp_path / "store")
    (tmp_path / "c.toml").write_text(settings_text(tree, tmp_path / "store", vocabulary_size=390))
    command = [sys.executable, "-m", "mnmt_scale", "prepare", str(tmp_path / "c.toml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if line.startswith("encoding"):
                process.send_signal(signal.SIGKILL)
                break
        process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "store.partial").is_dir()
    assert files_of(tmp_path / "store") == before
    report = prepare(settings_for(tree, tmp_path / "store", vocabulary_size=390), log=quiet)
    assert TokenStore.open(tmp_path / "store").tokenizer.vocabulary_size == report["vocabulary_size"] == 390
    assert not (tmp_path / "store.partial").exists()


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    tree = write_tree(tmp_path / "tree", SIZES)
    prepare(settings_for(tree, tmp_path / "store"), log=quiet)
    before = files_of(tmp_path / "store")

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MnmtError) as caught:
        prepare(settings_for(tree, tmp_path / "store"), log=quiet)
    assert caught.value.code == "E401"
    assert "No space left" in str(caught.value)
    assert files_of(tmp_path / "store") == before
    assert not (tmp_path / "store.partial").exists()


def test_real_text(real_text, tmp_path):
    corpora = [CorpusConfig(path=str(real_text / "lafand"), pairs=["en-zul", "en-luo"])]
    data = settings_for(tmp_path, tmp_path / "store", corpora=corpora, vocabulary_size=800, tokenizer={"sample_lines": 1500})
    report = prepare(data, log=quiet)
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    assert {p: c["read"] for p, c in report["pairs"].items()} == {"en-luo": 4262, "en-zul": 3500}
    assert report["pairs"]["en-zul"]["dropped"]["overlap"] == 24
    for pair, counts in report["pairs"].items():
        assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
        assert counts["kept"] > 0.98 * counts["read"]
        train, test = store.pair(pair, "train"), store.text(pair, "test", pair.split("-")[1])
        rows = [train.side("en")[i].tolist() for i in range(50)]
        again = store.tokenizer.encode(store.tokenizer.decode(rows))
        assert again == rows  # text that was normalised comes back as it was
        assert len(test) == counts["test"]["sentences"]
