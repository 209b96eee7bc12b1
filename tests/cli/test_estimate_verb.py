"""``mnmt estimate`` and ``mnmt report`` on the command line."""

from __future__ import annotations

import json

import pytest
import typer

from mnmt_scale.cli.main import app, run_verb_of
from tests.support.fake_run import fake_run


def mnmt(*arguments: str) -> int:
    return run_verb_of(typer.main.get_command(app), list(arguments), debug=False)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[model]\npreset = "ted"\n[train]\nmax_steps = 1000\n')
    return str(path)


def test_text_says_that_it_is_an_estimate_and_from_what(config, capsys):
    assert mnmt("estimate", config, "--gpus", "4", "--gpu", "a100-80", "--price", "2") == 0
    out = capsys.readouterr().out
    for phrase in (
        "An estimate by formula",
        "--rate 312",
        "--mfu 0.11",
        "--link",
        "not counted",
        "cost",
        "  1*",
        "target tokens per second",
    ):
        assert phrase in out


def test_what_is_given_is_used(config, capsys):
    given = ["--rate", "10", "--mfu", "0.5", "--link", "2", "--memory", "1", "--set", "engine.zero_stage=3"]
    assert mnmt("estimate", config, "--gpus", "2", "--gpu", "cpu", "--json", *given) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["assumed"]["rate"] == 1e13
    assert result["assumed"]["mfu"] == 0.5
    assert result["assumed"]["link"] == 2e9
    assert result["memory_available"] == 1 << 30
    assert result["zero_stage"] == 3
    assert [row["fits"] for row in result["memory"]] == [False, False, False]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--gpu", "h2000"], "MNMT-E102"), (["--gpus", "0"], "MNMT-E102"), (["--set", "model.heds=3"], "MNMT-E101")],
)
def test_errors_are_one_line(config, capsys, arguments, said):
    assert mnmt("estimate", config, *arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_report_goes_into_the_run_unless_told(tmp_path, capsys):
    run = fake_run(tmp_path / "run", 2)
    assert mnmt("report", str(run), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["html"] == str(run / "report.html")
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "report.csv").exists()


def test_report_of_no_run(tmp_path, capsys):
    assert mnmt("report", str(tmp_path)) == 2
    assert "MNMT-E407" in capsys.readouterr().err
