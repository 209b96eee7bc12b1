"""Snakemake run for real on stages that are shell scripts: failures, interrupts, going on; and what may be missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mnmt_scale.cli.workflow import app
from mnmt_scale.errors import MnmtError
from mnmt_scale.workflows import compare as compare_module
from mnmt_scale.workflows.follow import complaint
from mnmt_scale.workflows.snake import check_installed, run_snakemake
from tests.support import fake_slurm
from tests.support.staged import SAVES

PROFILE = Path(__file__).resolve().parents[2] / "launchers" / "slurm" / "profile"

FLOW = """
from tests.support.staged import command

rule all:
    input:
        [f"{name}.done" for name in config["scripts"]],

for name, (needs, script) in config["scripts"].items():

    rule:
        name: name
        input: [f"{other}.done" for other in needs]
        output: f"{name}.done"
        threads: config["threads"]
        params: command=command(name, script + f"; touch {name}.done")
        shell: "{params.command}"
"""


@pytest.fixture
def flow(tmp_path, monkeypatch):
    """Runs a workflow of scripts, name -> (what it needs, script), in OUT, which is the working directory."""
    pytest.importorskip("snakemake")
    (tmp_path / "flow.smk").write_text(FLOW)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    said: list[str] = []

    def run(scripts, say=said.append, **more):
        config = {"scripts": {name: [list(needs), script] for name, (needs, script) in scripts.items()}, "threads": 1}
        return run_snakemake(str(tmp_path / "flow.smk"), Path(), config, cores=1, say=say, **more)

    run.out, run.said = out, said
    return run


def test_interrupted_then_failed_then_finished(flow):
    """One workflow started three times; Snakemake's lock and what it says of incomplete files never stand in the way."""

    def interrupt(line: str) -> None:
        flow.said.append(line)
        if line.startswith("a: begun") and not list(flow.out.glob("*.done")):
            while "\ntraining" not in (flow.out / "logs" / "a.log").read_text():
                pass
            raise KeyboardInterrupt

    scripts = {
        "a": ((), f"[ -e again ] || {{ touch again; {SAVES}; }}"),
        "b": (("a",), "[ -e mended ] || { echo 'MNMT-E501: not finite'; exit 2; }"),
        "c": (("b",), "true"),
        "d": (("a",), "true"),
    }
    first = flow(scripts, interrupt)
    assert (first.ok, first.interrupted, first.failed, list(first.logs)) == (False, True, {}, ["a"])
    assert "saved" in (flow.out / "logs" / "a.log").read_text()
    assert not list(flow.out.glob("*.done"))
    assert not (flow.out / "locks" / "stop").exists()

    second = flow(scripts)
    assert (second.ok, second.interrupted) == (False, False)
    assert second.failed == {"b": "MNMT-E501: not finite"}
    assert sorted(second.logs) == ["a", "b", "d"]  # c needs b
    assert second.logs["b"] == str(flow.out / "logs" / "b.log")
    assert sorted(path.stem for path in flow.out.glob("*.done")) == ["a", "d"]
    assert "b: failed: MNMT-E501: not finite" in flow.said

    (flow.out / "mended").touch()
    third = flow(scripts)
    assert (third.ok, third.failed, sorted(third.logs)) == (True, {}, ["b", "c"])


def test_a_snakemake_whose_workflow_was_killed_is_waited_for(flow):
    """It would begin stages beside those of the next start, with that one's name."""
    (flow.out / "locks" / "snakemake").mkdir(parents=True)
    words = ["flock", str(flow.out / "locks" / "snakemake" / ".lock"), "bash", "-c", "while [ ! -e locks/stop ]; do :; done"]
    left = subprocess.Popen(words, cwd=flow.out)
    while not (flow.out / "locks" / "snakemake" / ".lock").exists():
        pass
    time.sleep(0.3)
    assert flow({"a": ((), "true")}).ok
    assert left.wait(10) == 0
    assert "Snakemake of an earlier start is still there: waiting for it to end" in flow.said
    assert not (flow.out / "locks" / "stop").exists()


def test_a_training_that_is_stopped_alone_stops_the_workflow(flow):
    result = flow({"a": ((), "exit 75"), "b": ((), "exit 75")})
    assert (result.ok, result.interrupted, result.failed) == (False, True, {})
    assert len(result.logs) == 1  # one core: the other one was not begun


def test_what_snakemake_itself_complains_of_is_told(tmp_path):
    log = tmp_path / "snakemake.log"
    old = "MissingOutputException of an earlier start\n"
    text = (
        "Building DAG of jobs...\nMissingInputException in rule c in file x.smk, line 7:\n    Missing input files for rule c:\n"
    )
    log.write_text(f"{old}{text}  nothing.done\n")
    told = "MissingInputException in rule c in file x.smk, line 7: Missing input files for rule c:"
    assert complaint(log, len(old), 1) == told
    log.write_text("some output\nat the end\n")
    assert complaint(log, 0, 1) == "at the end"
    assert complaint(log, 0, -9) == "killed by signal 9"


def test_a_preempted_stage_goes_on_under_slurm(flow, monkeypatch, tmp_path):
    """The profile and the executor for real; Slurm's own commands are made up."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    monkeypatch.setenv("PATH", f"{fake_slurm.make(tmp_path / 'slurm')}:{os.environ['PATH']}")
    script = "[ -e again ] || { touch again; echo saved; exit 75; }; echo $SLURM_JOB_ID > job"
    quick = ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "1", "--latency-wait", "5"]
    result = flow({"a": ((), script)}, options=["--profile", str(PROFILE), *quick])
    assert (result.ok, result.failed, result.interrupted) == (True, {}, False)
    assert [line for line in flow.said if "s" in line.split()] == ["a: stopped after 0 s", "a: done after 0 s"]
    calls = (tmp_path / "slurm" / "calls").read_text().splitlines()
    (submitted,) = [line for line in calls if line.startswith("sbatch")]
    for word in ("--requeue", "--signal=TERM@120", "--cpus-per-task=8", "-t 1440", "--mem 64000"):
        assert word in submitted
    assert "scontrol requeue 100" in calls
    assert (flow.out / "job").read_text() == "100\n"


def test_what_is_missing_is_named_with_its_extra(monkeypatch, tmp_path):
    real, absent = importlib.util.find_spec, {"snakemake"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    with pytest.raises(MnmtError, match=r"E801: workflows need Snakemake; pip install 'mnmt_scale\[workflows\]'"):
        check_installed()
    absent.clear()
    absent.add("snakemake_executor_plugin_slurm")
    assert check_installed(["--cores", "3"]) is False
    for options in (["--executor", "slurm"], ["-e", "slurm"], ["--executor=slurm"], ["--profile", str(PROFILE)]):
        with pytest.raises(MnmtError, match=r"E801: Snakemake's plugin for Slurm is missing; .*\[slurm\]"):
            check_installed(options)
    absent.clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MnmtError, match="E801: Slurm is missing: no sbatch on the PATH"):
        check_installed(["--executor", "slurm"])
    (tmp_path / "sbatch").touch(0o755)
    assert check_installed(["--profile", str(PROFILE)]) is True
    assert check_installed(["--profile", str(PROFILE), "--executor", "local"]) is False


def test_options_share_the_machine_out(monkeypatch, tmp_path):
    (tmp_path / "a.toml").write_text("")
    found = []

    def run_comparison(configs, out, options, say):
        found.append(options.resources)
        return {"table": None, "outcome": {"interrupted": False}}

    monkeypatch.setattr(compare_module, "run_comparison", run_comparison)

    def call(*words: str):
        result = CliRunner().invoke(app, ["compare", str(tmp_path / "a.toml"), *words], catch_exceptions=False)
        assert result.exit_code == 0
        return found.pop()

    own = len(os.sched_getaffinity(0))
    one = call()
    assert (one.cores, one.threads, one.config()) == (own, own, {"threads": own, "gpus_per_training": 0})
    assert call("--cores", "8", "--threads", "2").threads == 2
    shared = call("--cores", "16", "--gpus", "8", "--gpus-per-training", "2", "--", "--profile", "p", "--seeds")
    assert (shared.threads, shared.gpus, shared.gpus_per_training) == (4, 8, 2)
    assert shared.options == ("--profile", "p", "--seeds")
    for words in (("--cores", "2", "--threads", "3"), ("--gpus", "1", "--gpus-per-training", "2")):
        with pytest.raises(MnmtError, match="E104.*is more than"):
            call(*words)


def test_more_gpus_than_may_be_seen_are_refused(flow, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(MnmtError, match="E104: 3 GPUs are more than CUDA_VISIBLE_DEVICES = 4,6 has"):
        flow({}, gpus=3)
