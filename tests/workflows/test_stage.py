"""One stage as a process: its log and note, what stops it, what it does to its verb, and who has which GPU."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.runlog import RunLock
from mnmt_scale.workflows.stage import command, program, read_status, take_gpus
from tests.support.staged import ROOT, SAVES


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "locks").mkdir()
    (tmp_path / "user").mkdir()
    describe(tmp_path)
    return tmp_path


def describe(out: Path, **changes) -> None:
    """What ``run_snakemake`` tells stages; this process is the workflow."""
    told = {"id": "first", "pid": os.getpid(), "host": socket.gethostname(), "directory": str(out / "user"), "devices": []}
    (out / "locks" / "workflow.json").write_text(json.dumps({**told, "slurm": False, **changes}))


def begin(out: Path, script: str, *options: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "tests.support.staged", "--name", "s", "--log", "logs/s.log", *options, "--", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, cwd=out, stderr=subprocess.PIPE, text=True, env=environment)


def run(out: Path, script: str, *options: str) -> tuple[int, str, dict]:
    stage = begin(out, script, *options)
    error = stage.communicate(timeout=60)[1]
    return stage.returncode, error, read_status(out / "locks" / "s")


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def saving(out: Path) -> subprocess.Popen:
    """A stage whose training is under way."""
    stage = begin(out, SAVES)
    until(lambda: "\ntraining" in log_of(out))
    assert read_status(out / "locks" / "s")["state"] == "running"
    return stage


def log_of(out: Path) -> str:
    path = out / "logs" / "s.log"
    return path.read_text() if path.exists() else ""


def test_a_verb_runs_where_the_user_is_and_its_output_is_the_log(out):
    code, _, status = run(out, "pwd; echo there >&2; touch made", "--gpus", "0")
    assert (code, status["state"], status["code"]) == (0, "done", 0)
    assert (out / "user" / "made").exists()
    assert log_of(out).splitlines()[1:] == [str(out / "user"), "there"]
    assert log_of(out).startswith("$ mnmt 'pwd; ")


def test_what_failed_is_told_and_not_begun_again_by_the_same_workflow(out):
    script = "echo run >> n; echo 'MNMT-E501: loss is not finite'; echo bye; exit 3"
    code, error, status = run(out, script)
    assert (code, status["state"], status["why"]) == (3, "failed", "MNMT-E501: loss is not finite")
    assert error == "s: MNMT-E501: loss is not finite\n"
    assert run(out, script)[0] == 3
    assert (out / "user" / "n").read_text() == "run\n"
    describe(out, id="second")
    assert run(out, script)[0] == 3
    assert (out / "user" / "n").read_text() == "run\nrun\n"


def test_a_signal_the_stop_file_and_the_end_of_the_workflow_stop_a_training(out):
    for how in ("signal", "file", "workflow"):
        workflow = subprocess.Popen(["sleep", "100"])
        describe(out, pid=workflow.pid, id=how)
        for name in ("logs/s.log", "locks/stop"):
            (out / name).unlink(missing_ok=True)
        stage = saving(out)
        if how == "signal":
            stage.send_signal(signal.SIGTERM)
        elif how == "file":
            (out / "locks" / "stop").touch()
        workflow.kill()
        workflow.wait()  # as after kill -9: it can tell nobody
        assert stage.wait(60) == 75, how
        status = read_status(out / "locks" / "s")
        assert (status["state"], status["why"]) == ("stopped", "told to stop, and saved")
        assert log_of(out).endswith("saved\n")
        stage.stderr.close()
    (out / "locks" / "stop").touch()
    assert run(out, "touch begun")[0] == 75
    assert not (out / "user" / "begun").exists()


def test_a_training_that_was_stopped_by_itself_stops_all_of_this_machine(out):
    assert run(out, "exit 75")[0] == 75
    assert (out / "locks" / "stop").exists()


def test_a_training_whose_stage_is_killed_saves_and_holds_the_lock_until_then(out):
    stage = begin(out, f"echo $$ > pid; {SAVES.replace('echo saved', 'mkfifo wait; read < wait; echo saved')}")
    until(lambda: "\ntraining" in log_of(out))
    stage.kill()
    stage.communicate()
    until((out / "user" / "wait").exists)  # told to stop, and not done with it
    with pytest.raises(MnmtError, match="E402"):
        RunLock(out / "locks" / "s")
    (out / "user" / "wait").write_text("go on\n")
    until(lambda: log_of(out).endswith("saved\n"))
    until(lambda: not Path("/proc", (out / "user" / "pid").read_text().strip()).exists())
    RunLock(out / "locks" / "s").release()


def test_a_killed_verb_is_a_failure_that_says_so(out):
    code, _, status = run(out, "echo 'step 5 loss 3.2'; kill -9 $$")
    assert (code, status["why"]) == (137, "killed by signal 9")


def test_gpus_are_shared_out_and_seen_by_the_verb(out):
    held = take_gpus(out, 1, ["3", "5", "7"], lambda: False)
    assert list(held.values()) == ["3"]
    describe(out, devices=["3", "5", "7"])
    assert run(out, "echo $CUDA_VISIBLE_DEVICES", "--gpus", "2")[0] == 0
    assert log_of(out).splitlines()[1] == "5,7"
    asked = iter([False, True])
    assert list(take_gpus(out, 3, ["3", "5", "7"], lambda: next(asked)).values()) == ["5", "7"]  # told to stop while it waits
    describe(out, devices=["3"], slurm=True)
    assert run(out, "echo ${CUDA_VISIBLE_DEVICES-slurm}", "--gpus", "1")[0] == 0  # Slurm has given them out already
    assert log_of(out).splitlines()[-1] == os.environ.get("CUDA_VISIBLE_DEVICES", "slurm")
    for lock in held:
        lock.release()


def test_a_training_on_several_gpus_is_started_by_torchrun():
    assert program(["train", "a.toml"], 1)[1:] == ["-m", "mnmt_scale", "train", "a.toml"]
    assert program(["evaluate", "run"], 2)[1:] == ["-m", "mnmt_scale", "evaluate", "run"]
    words = program(["train", "a.toml"], 2)
    assert words[2] == "torch.distributed.run"
    assert words[words.index("--nproc_per_node") + 1] == "2"
    assert words[-4:] == ["-m", "mnmt_scale", "train", "a.toml"]


def test_words_with_spaces_and_quotes_survive_the_shell():
    words = ["train", "a file.toml", "--set", "name='x {y}'"]
    text = command("s.train", words, 2, "here.log")
    assert text.startswith("exec ")
    assert shlex.split(text)[4:] == ["--name", "s.train", "--log", "here.log", "--gpus", "2", "--", *words]
