"""Groups files: written, read back, and refused when they are damaged or do not fit."""

from __future__ import annotations

import json

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import Grouping
from mnmt_scale.groups import read_groups, write_groups

GROUPING = Grouping("ftac", (("en-de", "en-nl"), ("en-fr",)), (("en-fr",), ()))


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "groups.json"
    write_groups(path, GROUPING, {"overall": 1.95, "note": "of a test"})
    found = read_groups(path, known=["en-fr", "en-nl", "en-de", "en-ru"])
    assert found.grouping == GROUPING
    assert found.about == {"overall": 1.95, "note": "of a test"}
    assert found.grouping.tasks == ("en-de", "en-fr", "en-nl")
    assert list(path.parent.iterdir()) == [path]


def test_an_unknown_direction_is_named_with_the_nearest(tmp_path):
    path = tmp_path / "groups.json"
    write_groups(path, GROUPING, {})
    with pytest.raises(MnmtError, match=r"E105: unknown direction 'en-nl' at .*groups\.json; did you mean 'en-no'"):
        read_groups(path, known=["en-de", "en-fr", "en-no"])
    write_groups(path, Grouping("x", (("en-de",), ("en-nl",)), (("en-xx",), ())), {})
    with pytest.raises(MnmtError, match="E105: unknown direction 'en-xx'"):
        read_groups(path, known=["en-de", "en-nl"])


def table(**changes):
    good = {
        "version": 1, "kind": "groups", "method": "ftac", "clusters": [["en-de", "en-nl"], ["en-fr"]],
        "helpers": [["en-fr"], []], "about": {},
    }  # fmt: skip
    return {key: value for key, value in (good | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "probe"}, "E606: not a groups file"),
        ({"version": 2}, "E606: groups file of version 2"),
        ({"method": None}, "E606: it lacks method or about"),
        ({"about": []}, "E606: it lacks method or about"),
        ({"clusters": None}, "E606: clusters is no list"),
        ({"clusters": [["en-de", 3], ["en-fr"]]}, "E606: clusters is no list"),
        ({"clusters": [["en-de", "en-fr"], ["en-fr"]]}, "E606: en-fr is in two clusters"),
        ({"clusters": [["en-de", "en-nl", "en-fr"], []]}, "E606: a cluster without a direction"),
        ({"clusters": [], "helpers": []}, "E606: a cluster without a direction"),
        ({"helpers": [[]]}, "E606: 2 clusters, but 1 lists of helpers"),
        ({"helpers": [["en-de"], []]}, "E606: helper en-de of the cluster of en-de is in it"),
        ({"helpers": [["en-ru"], []]}, "E606: helper en-ru"),
        ({"helpers": [["en-fr", "en-fr"], []]}, "E606: helper en-fr"),
        ({"clusters": [["en-de", "en_nl"], ["en-fr"]]}, "E105: 'en_nl' is not a direction"),
    ],
)
def test_damaged_groups_are_refused(tmp_path, changes, match):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(table(**changes)))
    with pytest.raises(MnmtError, match=match):
        read_groups(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "groups.json"
    path.write_bytes(content)
    with pytest.raises(MnmtError, match=r"E606.*mnmt cluster"):
        read_groups(path)
    with pytest.raises(MnmtError, match="E606: cannot be read"):
        read_groups(tmp_path / "nothing.json")


def test_a_directory_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MnmtError, match="E401"):
        write_groups(tmp_path / "file" / "groups.json", GROUPING, {})
