"""``mnmt cluster`` on the command line: what it prints, warns of and writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer

from mnmt_scale.cli.main import app, run_verb_of
from mnmt_scale.groups import read_groups
from tests.support.affinity_files import affinity_file

FIGURE_1 = np.array([[1.1, 0.2, 0.2], [0.3, 0.9, -0.2], [-0.2, 0.1, 1.2]])


def mnmt(*arguments) -> int:
    return run_verb_of(typer.main.get_command(app), [str(a) for a in arguments], debug=False)


@pytest.fixture
def probe(tmp_path):
    return affinity_file(tmp_path / "a.safetensors", ["en-de", "en-nl", "en-fr"], FIGURE_1, variance=0.9)


def test_a_groups_file_its_table_and_its_warnings(probe, tmp_path, capsys):
    out = tmp_path / "new" / "groups.json"
    assert mnmt("cluster", "ftac", probe, "--out", out) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "3 directions in 2 clusters, overall affinity 1.95",
        "  0       1.25  en-de en-nl",
        "  1        0.7  en-fr  + en-de",
        f"written: {out}",
    ]
    # the standard error of a cell is sqrt(0.9 / 10) = 0.3: all six beside the diagonal, the helper with them
    (warning,) = printed.err.splitlines()
    assert warning.startswith("warning: 6 of 9 cells lie within their standard error of zero")
    assert "1 of 1 helpers" in warning
    file = read_groups(out)
    assert file.grouping.clusters == (("en-de", "en-nl"), ("en-fr",))
    assert file.grouping.helpers == ((), ("en-de",))
    assert file.about["warnings"] == [warning.removeprefix("warning: ")]


def test_json_and_agreement(probe, tmp_path, capsys):
    assert mnmt("cluster", "ftac", probe, "--out", tmp_path / "g.json", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["clusters"] == [["en-de", "en-nl"], ["en-fr"]]
    assert result["overall"] == pytest.approx(1.95)
    (tmp_path / "f.json").write_text('{"de": "Germanic", "nl": "Germanic", "fr": "Romance"}')
    assert mnmt("cluster", "ftac", probe, "--out", tmp_path / "g.json", "--families", tmp_path / "f.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "against families: adjusted Rand index 1.000"
    assert lines[-2].startswith("affinity within families 0.25, across -0.025")  # (0.2 + 0.3) / 2, (0.2 - 0.2 - 0.2 + 0.1) / 4
    assert read_groups(tmp_path / "g.json").about["agreement"]["effect"]["within"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clusters", "4"], "MNMT-E608: 4 clusters of 3 directions"),
        (["--helpers", "fuzy"], "MNMT-E608: no such choice: 'fuzy' at --helpers; did you mean 'fuzzy'?"),
        (["--min-count", "11"], "MNMT-E607: 9 of 9 cells were measured less than 11 times: en-de -> en-de"),
        (["--since", "100"], "MNMT-E607: no window of steps begins at 100 or later"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(probe, tmp_path, capsys, arguments, message):
    assert mnmt("cluster", "ftac", probe, "--out", tmp_path / "g.json", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "g.json").exists()
