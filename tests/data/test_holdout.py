"""Dev and test drawn from training text: how many, which, what is gone from training, and what is said to leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnmt_scale.cli.prepare import report_table
from mnmt_scale.data.build import prepare
from mnmt_scale.data.config import CorpusConfig, HoldOutConfig
from mnmt_scale.data.corpus import find_corpora
from mnmt_scale.data.holdout import draw_held_out
from mnmt_scale.data.ranks import Ranks
from mnmt_scale.data.store import TokenStore
from mnmt_scale.errors import MnmtError
from tests.support.corpora import sentences, settings_for, write_lines, write_pair

SIZES = {"de-en": 200, "en-fr": 120, "en-it": 60}


def quiet(line: str) -> None:
    pass


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three pairs over one list of English sentences, of which each has the first ones; one sentence comes three times, another
    twenty times and in the largest pair alone."""
    english = sentences(200, 7)
    english[3] = english[50] = english[1]
    english[130:150] = [english[130]] * 20
    for number, (pair, size) in enumerate(SIZES.items()):
        own = sentences(size, 20 + number, "aeioubdgkmtvwxyz")
        sides = [own if language != "en" else english[:size] for language in pair.split("-")]
        write_pair(tmp_path / "tree", pair, train=(sides[0], sides[1]))
    return tmp_path / "tree"


def held(store: TokenStore, pair: str, split: str) -> list[str]:
    return store.text(pair, split, "en")


def trained(store: TokenStore, pair: str) -> set[tuple[int, ...]]:
    side = store.pair(pair).side("en")
    return {tuple(side[i].tolist()) for i in range(len(side))}


def test_random_lines_of_each_pair_and_what_of_them_other_pairs_train_on(tree, tmp_path):
    data = settings_for(tree, tmp_path / "store", hold_out=HoldOutConfig(dev_sentences=8, test_sentences=12))
    report = prepare(data, log=quiet)
    store = TokenStore.open(tmp_path / "store")
    english = {pair: {s: held(store, pair, s) for s in ("dev", "test")} for pair in SIZES}
    for pair, size in SIZES.items():
        counts = report["pairs"][pair]
        assert [len(english[pair][s]) for s in ("dev", "test")] == [8, 12]
        assert counts["read"] == size == counts["kept"] + sum(counts["dropped"].values())
        assert counts["dropped"]["held_out"] == 20
        encoded = {s: store.tokenizer.encode(english[pair][s]) for s in ("dev", "test")}
        for split in ("dev", "test"):  # the slow truth of the leak: in English, against the other pairs' training text
            others = set().union(*(trained(store, other) for other in SIZES if other != pair))
            assert counts[split]["leaked"] == sum(tuple(ids) in others for ids in encoded[split])
        # no line of it is trained on, but for the two sentences that come more than once
        assert len(trained(store, pair) & {tuple(i) for s in encoded.values() for i in s}) <= 2
    assert english["de-en"]["test"] != english["en-fr"]["test"]
    assert sum(report["pairs"][p]["test"]["leaked"] for p in SIZES) > 12
    table = report_table(report)
    assert table.splitlines()[0].split()[-2:] == ["cut", "leaked"]
    total = sum(report["pairs"][p][s]["leaked"] for p in SIZES for s in ("dev", "test"))
    assert table.splitlines()[4].split()[-1] == str(total)


def test_by_pivot_no_held_sentence_is_trained_on_anywhere(tree, tmp_path):
    how = HoldOutConfig(dev_sentences=4, test_sentences=6, by="pivot")
    report = prepare(settings_for(tree, tmp_path / "store", hold_out=how), log=quiet)
    store = TokenStore.open(tmp_path / "store")
    texts = {split: {text for pair in SIZES for text in held(store, pair, split)} for split in ("dev", "test")}
    assert not texts["dev"] & texts["test"]
    ids = {tuple(i) for split in texts.values() for i in store.tokenizer.encode(sorted(split))}
    for pair, size in SIZES.items():
        assert not ids & trained(store, pair)
        counts = report["pairs"][pair]
        assert [len(set(held(store, pair, s))) for s in ("dev", "test")] == [4, 6]
        assert [counts[s]["leaked"] for s in ("dev", "test")] == [0, 0]
        # the share that the smallest pair gives up for its ten
        assert counts["dropped"]["held_out"] == pytest.approx(size / 6, abs=12)
    # a smaller pair has fewer candidates, so it reaches further down the same order
    assert set(held(store, "en-it", "test")) >= set(held(store, "de-en", "test")) & set(sentences(60, 7))


def test_a_split_that_is_there_is_kept_and_the_draw_depends_on_the_seed_alone(tree, tmp_path):
    write_pair(tree, "en-it", dev=(["one line"], ["una riga"]))
    drawn = {}
    for seed, size in ((1, 1), (1, 2), (2, 1)):
        how = HoldOutConfig(dev_sentences=5, test_sentences=5, seed=seed)
        data = settings_for(tree, tmp_path / "none", hold_out=how)
        corpora = find_corpora(data)
        found = {}
        if size == 1:
            found = draw_held_out(data, Ranks(0, 1, None), corpora, tmp_path / f"work-{seed}-{size}")
        else:  # each of two ranks has its own pairs, and draws the same
            for rank in range(2):
                one = [c for c in corpora if c in Ranks(rank, 2, None).share(corpora)]
                found |= draw_held_out(data, Ranks(0, 1, None), one, tmp_path / f"work-{seed}-{size}")
        assert found["en-it"].splits == ("test",)
        assert found["en-it"].corpus.sources["dev"].paths[0].parent == tree / "supervised" / "en-it"
        paths = {p: d.corpus.sources["test"].path_of("en") for p, d in found.items()}
        drawn[seed, size] = {pair: path.read_text() for pair, path in paths.items()}
    assert drawn[1, 1] == drawn[1, 2]
    assert all(drawn[1, 1][pair] != drawn[2, 1][pair] for pair in SIZES)


def test_what_cannot_be_drawn_is_refused(tree, tmp_path):
    def refuse(words: str, tree: Path = tree, **changes) -> None:
        with pytest.raises(MnmtError, match=words):
            prepare(settings_for(tree, tmp_path / "store", hold_out=HoldOutConfig(**changes)), log=quiet)
        assert not (tmp_path / "store").exists()

    refuse("E207: 40 of 60 lines would be held out, more than 50%.*en-it", dev_sentences=20, test_sentences=20)
    refuse("E207: 90 test sentences are to be drawn, but 60 of 60 lines.*en-it", test_sentences=90)
    write_pair(tmp_path / "other", "de-fr", train=(["a"] * 9, ["b"] * 9))
    data = settings_for(tmp_path / "other", tmp_path / "store", directions="many-to-many")
    data = data.model_copy(update={"hold_out": HoldOutConfig(test_sentences=1, by="pivot")})
    with pytest.raises(MnmtError, match="E104.*de-fr has no side in 'en'"):
        prepare(data, log=quiet)


def test_blank_and_bad_lines_and_odd_white_space(tmp_path):
    first, second = sentences(40, 1), sentences(40, 2)
    first[10:20] = [" \u00a0"] * 10
    first[6] = "two\u2028lines\r"
    for language, lines in (("de", first), ("en", second)):
        write_lines(tmp_path / f"text.{language}", lines)
    raw = (tmp_path / "text.de").read_bytes().split(b"\n")
    raw[9] = b"\xff"
    (tmp_path / "text.de").write_bytes(b"\n".join(raw).replace(b"\r", b" \r "))
    corpora = [CorpusConfig(reader="moses", pair="de-en", train=str(tmp_path / "text"))]
    changes = {"corpora": corpora, "hold_out": HoldOutConfig(test_sentences=18), "clean": {"on_bad_line": "drop"}}
    data = settings_for(tmp_path, tmp_path / "store", vocabulary_size=310, **changes)
    counts = prepare(data, log=quiet)["pairs"]["de-en"]
    assert counts["read"] == 40
    assert counts["dropped"] == {"bad_line": 1, "held_out": 18, "empty": 10}
    assert counts["kept"] == 11
    store = TokenStore.open(tmp_path / "store")
    assert all(line.strip() for line in store.text("de-en", "test", "de"))
    np.testing.assert_equal(len(store.pair("de-en", "test")), 18)
