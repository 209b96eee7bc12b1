"""``mnmt bench kernels --targets``, and a GPU's clock, which leaves the launch out of the time."""

from __future__ import annotations

import json

import torch
from typer.testing import CliRunner

from mnmt_scale.bench import kernels, timing
from mnmt_scale.bench.kernel_case import OURS, Candidate, Case, Cost
from mnmt_scale.bench.peaks import Peaks
from mnmt_scale.cli.bench import app
from mnmt_scale.errors import MnmtError

CPU = torch.device("cpu")


def test_the_targets_from_the_command_line(tmp_path):
    options = ["--targets", "--quick", "--ops", "fisher_similarity", "--device", "cpu", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["kernels", *options])
    assert result.exit_code == 0, result.output
    cases = {r["case"] for r in json.loads((tmp_path / "kernels.json").read_text())["rows"] if r["candidate"] == OURS}
    assert {case.partition(",")[2].split(",")[0].strip() for case in cases} == {
        "resident", "streamed from host memory", "pair sums", "overlap"
    }  # fmt: skip


def test_full_and_targets_exclude_each_other(tmp_path):
    result = CliRunner().invoke(app, ["kernels", "--full", "--targets", "--out", str(tmp_path)])
    assert isinstance(result.exception, MnmtError)
    assert result.exception.code == "E104"


def test_the_launch_is_hidden_and_told_on_a_gpu(monkeypatch):
    """On streams that only keep a record: the device sleeps before its clock starts, and the host's time is a row."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def elapsed_time(self, end):
            return 3.0

    fakes = {"synchronize": lambda device: log.append("wait"), "Event": Event, "_sleep": lambda n: log.append(f"sleep {n}")}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    clock = timing.Clock(CPU, flush=False, ahead_ms=2.0)
    clock.device = torch.device("cuda")
    seconds, result = clock.time(lambda: log.append("call") or 7)
    assert (seconds, result) == (3e-3, 7)
    assert log == ["wait", "sleep 3600000", "record", "call", "record", "wait"]
    assert 0 < clock.host_seconds < 1

    case = Case("task_gram", "two numbers", {"n": 2}, Cost(8, "8 bytes", "read"), 0, lambda device: None)
    finding = kernels.Finding(Candidate(OURS, lambda: None), seconds=[1.0, 2.0], host_seconds=[0.5], extra_bytes=0)
    rows = kernels._rows(case, finding, Peaks(rates={"read": 1.0}), [], {"op": "task_gram", "device": "cuda"})
    assert [r["p50"] for r in rows if r["metric"] == "host time"] == [500.0]
    rows = kernels._rows(case, finding, Peaks(rates={"read": 1.0}), [], {"op": "task_gram", "device": "cpu"})
    assert not any(r["metric"] == "host time" for r in rows)
