"""The run directory: one holder at a time, metrics that a resumed run continues."""

import json
import os
import subprocess
import sys

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.runlog import RunLock, RunLog, environment, time_left, write_atomically


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_directory_of_a_living_process_is_refused_and_named(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mnmt_scale.runlog import RunLock; "
        "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline().strip() == b"held"
        with pytest.raises(MnmtError, match=rf"E402.*process {holder.pid} "):
            RunLock(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    RunLock(tmp_path).release()  # free again once the holder was killed


def test_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MnmtError, match="E401"):
        RunLock(tmp_path / "file" / "run")


def test_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    log = RunLog(tmp_path)
    for step in (10, 20, 30):
        log.record("train", step=step, loss=1.0, tasks={"a-b": {"loss": 1.0, "nll": 0.9, "tokens": 5}})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"kind": "train", "st')  # a process killed in the middle of a line
    log = RunLog(tmp_path, resumed_at=20)
    log.record("train", step=25, loss=0.5)
    log.close()
    assert [row["step"] for row in lines(tmp_path)] == [10, 20, 25]


def test_fresh_start_keeps_nothing_of_an_earlier_run(tmp_path):
    for _ in range(2):
        log = RunLog(tmp_path)
        log.record("train", step=10, loss=1.0)
        log.close()
    assert len(lines(tmp_path)) == 1


def test_other_ranks_write_nothing(tmp_path):
    log = RunLog(tmp_path / "run", active=False)
    log.record("train", step=1, loss=1.0)
    log.say("hello")
    log.close()
    assert not (tmp_path / "run").exists()


def test_lines_go_to_standard_error_and_log(tmp_path, capsys):
    log = RunLog(tmp_path)
    log.say("step 1")
    log.close()
    assert "step 1" in capsys.readouterr().err
    assert "step 1" in (tmp_path / "log.txt").read_text()


def test_write_atomically_leaves_no_other_file(tmp_path):
    write_atomically(tmp_path / "a.json", "1")
    write_atomically(tmp_path / "a.json", "22")
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "22"


def test_environment_names_versions_and_machine():
    found = environment(2)
    assert found["packages"]["torch"].startswith("2.")
    assert found["world_size"] == 2
    assert found["cores"] >= 1


def test_display_on_a_terminal_shows_step_loss_rate_and_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    log = RunLog(tmp_path, total_steps=40)
    log.advance(10, 2.5, 1234.0)
    log.say("half [way]")
    log.close()
    shown = capsys.readouterr().err
    assert "10/40" in shown
    assert "loss 2.500" in shown
    assert "1,234 tokens/s" in shown
    assert "half [way]" in shown


def test_time_left_is_to_the_last_step_or_the_limit():
    assert time_left(10.0, 5, 15, None) == 30.0
    assert time_left(10.0, 5, 15, 25.0) == 15.0
    assert time_left(30.0, 5, 15, 25.0) == 0.0
