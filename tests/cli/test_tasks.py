"""Directions and language codes."""

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.tasks import TaskSet, directions_of, pair_name, parse_direction

PAIRS = ["af-en", "en-fr", "en-no", "fr-no"]


def test_pairs_are_alphabetical_whatever_the_direction():
    assert pair_name("en", "af") == "af-en"
    assert pair_name("en", "lij_Latn") == "en-lij_Latn"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("many-to-one", [("af", "en"), ("fr", "en"), ("no", "en")]),
        ("one-to-many", [("en", "af"), ("en", "fr"), ("en", "no")]),
    ],
)
def test_pivot_directions_leave_other_pairs_out(kind, expected):
    assert directions_of(PAIRS, kind, "en") == expected


def test_many_to_many_has_both_directions_of_every_pair():
    assert len(directions_of(PAIRS, "many-to-many")) == 8
    assert ("no", "fr") in directions_of(PAIRS, "many-to-many")


def test_chosen_direction_without_corpus_names_the_nearest():
    with pytest.raises(MnmtError, match=r"E105.*'fr-en'"):
        directions_of(PAIRS, "many-to-one", "en", ["fr-em"])


def test_unknown_pivot_names_the_nearest():
    with pytest.raises(MnmtError, match=r"E105.*'en'"):
        directions_of(PAIRS, "many-to-one", "eng")


@pytest.mark.parametrize("bad", ["en", "en-en", "en-fr-de", "zh-CN-en", "e-fr", "1x-en", ""])
def test_what_is_no_direction_is_refused(bad):
    with pytest.raises(MnmtError, match="E105"):
        parse_direction(bad)


def test_task_set_keeps_order_and_refuses_doubles():
    tasks = TaskSet([("no", "en"), ("en", "no")])
    assert [t.name for t in tasks] == ["no-en", "en-no"]
    assert tasks.by_name("en-no").index == 1
    assert tasks.pairs == ["en-no"]
    with pytest.raises(MnmtError, match="E208"):
        TaskSet([("ab", "en"), ("ab", "en")])
    with pytest.raises(MnmtError, match=r"E105.*'no-en'"):
        tasks.by_name("nn-en")
