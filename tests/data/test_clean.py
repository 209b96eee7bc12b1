"""Cleaning: what goes, what stays, and that every sentence pair is counted once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnmt_scale.data.clean import Cleaner, HeldOut, SeenHashes, normalise
from mnmt_scale.data.config import CleanConfig
from mnmt_scale.errors import MnmtError


def cleaned(pairs, held_out=(), **settings):
    config = CleanConfig(**settings)
    held = HeldOut(config.overlap)
    held.add([a for a, _ in held_out], [b for _, b in held_out])
    cleaner = Cleaner(config, held)
    kept = cleaner.clean([a for a, _ in pairs], [b for _, b in pairs])
    return list(zip(*kept, strict=True)), cleaner


def test_white_space_of_any_kind_becomes_one_space():
    assert normalise("\u00a0 a\t\tb\r\u000b\u2028c\u3000d \u0085") == "a b c d"
    kept, cleaner = cleaned([("a\t b\r", " A\u00a0B")])
    assert kept == [("a b", "A B")]
    assert cleaner.counts.kept == 1


def test_one_reason_per_sentence_pair():
    pairs = [
        ("good sentence", "gute Satz"),
        ("", "leer"),
        ("blank", " \t\u00a0"),
        ("w " * 251, "viele"),
        ("long", "x" * 2501),
        ("y" * 100, "z"),
        ("same", "same"),
        ("good  sentence", "gute Satz "),
        ("in dev", "im Dev"),
        ("in dev", "anders"),
    ]
    kept, cleaner = cleaned(pairs, held_out=[("in  dev", "im Dev")])
    assert kept == [("good sentence", "gute Satz"), ("in dev", "anders")]
    counts = cleaner.counts
    assert counts.dropped == {"empty": 2, "too_long": 2, "ratio": 1, "copy": 1, "duplicate": 1, "overlap": 1}
    assert counts.read == len(pairs) == counts.kept + sum(counts.dropped.values())


def test_a_line_of_a_hundred_thousand_tokens_is_dropped_as_too_long():
    kept, cleaner = cleaned([("w " * 100_000, "v " * 100_000), ("a", "b")])
    assert kept == [("a", "b")]
    assert cleaner.counts.dropped == {"too_long": 1}


def test_limits_are_inclusive():
    kept, _ = cleaned([("a " * 5, "b " * 5), ("c " * 6, "d")], max_words=5, max_ratio=100.0)
    assert len(kept) == 1
    kept, _ = cleaned([("a" * 30, "b" * 10), ("a" * 31, "b" * 10)], max_ratio=2.0)  # (30 + 10) / (10 + 10) = 2
    assert kept == [("a" * 30, "b" * 10)]
    kept, _ = cleaned([("a" * 9, "b" * 9), ("a" * 10, "b" * 9)], max_characters=9)
    assert len(kept) == 1


@pytest.mark.parametrize(("overlap", "left"), [("pair", 3), ("either_side", 1), ("off", 4)])
def test_overlap_with_dev_and_test(overlap, left):
    pairs = [("a b", "A B"), ("a b", "other"), ("other", "A B"), ("b", "A")]
    kept, cleaner = cleaned(pairs, held_out=[("a\tb", "A B")], overlap=overlap)
    assert len(kept) == left
    assert cleaner.counts.dropped.get("overlap", 0) == 4 - left


def test_a_blank_dev_line_holds_nothing_out():
    kept, _ = cleaned([("a", "b"), ("c", "d")], held_out=[("", "x"), ("y", " ")], overlap="either_side")
    assert len(kept) == 2


def test_duplicates_and_copies_can_be_kept():
    pairs = [("a", "b"), ("a", "b"), ("a", "c"), ("s", "s")]
    assert len(cleaned(pairs)[0]) == 2
    assert len(cleaned(pairs, duplicates="off", copies="keep")[0]) == 4


def test_duplicates_are_found_across_blocks_and_the_first_stays():
    cleaner = Cleaner(CleanConfig())
    assert cleaner.clean(["a", "b"], ["A", "B"]) == (["a", "b"], ["A", "B"])
    assert cleaner.clean(["c", "b", "c"], ["C", "B", "C"]) == (["c"], ["C"])
    assert cleaner.clean(["b c"], ["B"]) == (["b c"], ["B"])
    assert cleaner.counts.dropped == {"duplicate": 2}


def test_the_border_between_the_sides_counts():
    assert len(cleaned([("a b", "c"), ("a", "b c")])[0]) == 2


@given(st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=12))
def test_seen_hashes_is_a_set_that_keeps_first_occurrences(blocks):
    seen, truth = SeenHashes(), set()
    for block in blocks:
        wanted = [x not in truth and x not in block[:i] for i, x in enumerate(block)]
        got = seen.add(np.array(block, dtype=np.uint64))
        assert got.tolist() == wanted
        truth.update(block)


def test_seen_hashes_stay_at_8_bytes_each():
    seen = SeenHashes()
    generator = np.random.default_rng(0)
    for _ in range(50):
        seen.add(generator.integers(0, 2**63, 1000, dtype=np.uint64))
    assert sum(run.nbytes for run in seen._runs) == 8 * 50_000
    assert len(seen._runs) <= 7


def refused(cleaner: Cleaner, pair: str = "de-en") -> MnmtError:
    with pytest.raises(MnmtError) as caught:
        cleaner.check(pair)
    return caught.value


def test_nothing_left_is_refused_with_the_reasons():
    _, cleaner = cleaned([("x", "x"), ("", "b"), ("a", "")])
    error = refused(cleaner)
    assert error.code == "E206"
    assert "empty 2, copy 1" in str(error)


def test_a_side_without_text_is_named():
    _, cleaner = cleaned([("a", ""), ("b", " ")])
    error = refused(cleaner)
    assert error.code == "E204"
    assert " en side" in str(error)


def test_too_much_overlap_is_refused_and_just_enough_is_not():
    pairs = [("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")]
    _, cleaner = cleaned(pairs, held_out=pairs[:3])
    error = refused(cleaner)
    assert error.code == "E207"
    assert "3 of 4" in str(error)
    _, cleaner = cleaned(pairs, held_out=pairs[:2])
    cleaner.check("de-en")
    assert cleaner.counts.dropped == {"overlap": 2}
