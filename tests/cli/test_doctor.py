"""``mnmt doctor``: what it finds here, what it says about a machine that lacks something, and its exit code."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from mnmt_scale.bench import machine_checks
from mnmt_scale.cli.main import app, run_verb_of


def doctor(*arguments: str, capsys) -> tuple[int, str]:
    import typer

    code = run_verb_of(typer.main.get_command(app), ["doctor", *arguments], debug=True)
    return code, capsys.readouterr().out


def test_this_machine_can_train(tmp_path, capsys):
    code, out = doctor("--dir", str(tmp_path / "runs"), "--json", capsys=capsys)
    result = json.loads(out)
    found = {check["what"]: check for check in result["checks"]}
    assert (code, result["training_works"]) == (0, True)
    assert found["training"]["status"] == "ok"
    assert "loss" in found["training"]["finding"]
    assert found["deepspeed"]["status"] == "ok"
    assert any("task_gram: native on cpu" in check["finding"] for check in result["checks"] if check["what"] == "kernels")
    assert list((tmp_path / "runs").iterdir()) == []  # the write probe cleans up


def test_kernels_are_not_claimed(monkeypatch):
    """Without the compiled module every op that has only a compiled version on CPU is said to run on its reference."""
    compiled = machine_checks.kernels()
    assert {check.status for check in compiled} == {"ok"}
    assert all("native on cpu" in check.finding for check in compiled[1:])
    monkeypatch.setattr("mnmt_scale.kernels.native.problem", "it is not there")
    absent = machine_checks.kernels()
    assert {check.status for check in absent} == {"warn"}
    assert len(absent) == len(compiled)
    assert all("torch reference on cpu" in check.finding and "not there" in check.remedy for check in absent[1:])


def test_what_is_forced_is_said(monkeypatch):
    monkeypatch.setenv("MNMT_KERNELS", "reference")
    assert any(check.status == "warn" and "forces reference" in check.finding for check in machine_checks.kernels())
    monkeypatch.setenv("MNMT_KERNELS", "foo")
    assert machine_checks.kernels()[-1].status == "fail"


def test_a_directory_that_cannot_be_written_fails(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, out = doctor("--dir", str(tmp_path / "file" / "runs"), "--no-trial", capsys=capsys)
    assert code == 1
    assert "fail  writing" in out
    assert "training cannot work here" in out


@pytest.mark.parametrize(("version", "status"), [(None, "fail"), ("2.9.1", "fail"), ("2.10.0", "ok"), ("2.13.0+cpu", "ok")])
def test_torch_versions(monkeypatch, version, status):
    monkeypatch.setattr(machine_checks, "_version", lambda package: version)
    check = machine_checks.torch_version()
    assert check.status == status
    assert (check.remedy is not None) == (status == "fail")


def test_missing_optional_packages_warn_with_the_extra(monkeypatch):
    monkeypatch.setattr(machine_checks.importlib.util, "find_spec", lambda name: None)
    checks = machine_checks.optional_packages()
    assert {check.status for check in checks} == {"warn"}
    assert any(check.remedy == "pip install 'mnmt_scale[parquet]'" for check in checks)


def test_an_unusable_launcher_environment_fails(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert machine_checks.launcher_environment().status == "fail"


def trial_output(**changes) -> str:
    result = {"losses": [3, 2], "device": "cpu", "dtype": "float32", "seconds": 1, "learns": True}
    return json.dumps(result | changes)


@pytest.mark.parametrize(
    ("stdout", "code", "status", "said"),
    [
        ("built successfully\n" + trial_output(), 0, "ok", "3.000 -> 2.000"),
        (trial_output(losses=[3, 4], learns=False), 0, "fail", "did not fall"),
        ("", -4, "fail", "signal 4"),
        ("noise", 1, "fail", "exit code 1: last words"),
    ],
)
def test_the_trial_process(monkeypatch, stdout, code, status, said):
    monkeypatch.setenv("RANK", "0")
    seen = {}

    def run(command, **options):
        seen.update(options["env"])
        return SimpleNamespace(stdout=stdout, stderr="first\nlast words\n", returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    check = machine_checks.trial_training()
    assert check.status == status
    assert said in check.finding
    assert "RANK" not in seen


def test_a_trial_that_hangs(monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    assert machine_checks.trial_training().status == "fail"


def test_no_trial_after_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(machine_checks, "deepspeed_version", lambda: machine_checks.Check("deepspeed", "fail", "not installed"))
    checks = machine_checks.examine(tmp_path)
    assert checks[-1].finding.startswith("not tried")
