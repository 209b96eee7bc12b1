"""Rows and the files they are written to."""

from __future__ import annotations

import csv
import json

import pytest

from mnmt_scale.bench.table import COLUMNS, figure, machine, markdown, row, write_tables

ROWS = [
    row("train", "base", "ours", "speed", [1.0, 4.0, 2.0, 3.0, 5.0], "tokens/s", dtype="fp32", threads=2),
    row("train", "base", "rival", "speed", 1234.5, "tokens/s", dtype="fp32", threads=1),
    row("train", "big", "rival", "speed", None, "tokens/s", dtype="fp32", threads=1, error="out of memory"),
]


def test_repetitions_become_quantiles():
    assert [ROWS[0][k] for k in ("value", "p20", "p50", "p80")] == pytest.approx([3.0, 1.8, 3.0, 4.2])
    assert [ROWS[1][k] for k in ("value", "p20", "p50", "p80")] == [1234.5, None, None, None]
    assert row("b", "c", "x", "m", [1.0, 3.0, 2.0], "s", best=min)["value"] == 1.0
    assert row("b", "c", "x", "m", [1.0, 3.0, 2.0], "s", best=max)["p50"] == 2.0


def test_files_hold_every_row_and_the_machine(tmp_path):
    paths = write_tables(ROWS, tmp_path / "out")
    assert sorted(paths) == ["csv", "json", "md"]
    document = json.loads((tmp_path / "out" / "train.json").read_text())
    assert document["rows"] == ROWS
    assert document["machine"] == machine()
    with open(paths["csv"], newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["candidate"] for line in lines] == ["ours", "rival", "rival"]
    assert float(lines[1]["value"]) == 1234.5
    assert json.loads(lines[2]["settings"])["error"] == "out of memory"
    assert set(COLUMNS) <= set(lines[0])
    assert machine()["cpu"] in (tmp_path / "out" / "train.md").read_text()


def test_markdown_puts_common_settings_below_and_others_in_columns():
    text = markdown(ROWS)
    header, rule, *body = text.split("\n\n")[0].splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")][6:] == ["threads", "error"]
    assert set(rule) == {"|", "-"}
    assert len({len(line) for line in (header, rule, *body)}) == 1
    assert "1.8 .. 4.2" in body[0]
    assert "1,234" in body[1]
    assert "failed" in body[2]
    assert "out of memory" in body[2]
    assert text.endswith("All rows: dtype = fp32.")


def test_a_setting_that_one_row_lacks_is_not_common():
    rows = [row("b", "c", "x", "m", 1.0, "s", limit=None), row("b", "c", "y", "m", 1.0, "s")]
    assert "All rows" not in markdown(rows)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "failed"), (12345.6, "12,346"), (0.123456, "0.1235"), (7, "7"), (True, "True"), ("fp32", "fp32")]
)
def test_figures_for_people(value, text):
    assert figure(value) == text


def test_the_machine_is_named():
    here = machine()
    assert here["cores"] >= 1
    assert here["ram_bytes"] > 2**28
    assert here["versions"]["numpy"]
