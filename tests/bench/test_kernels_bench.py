"""``mnmt bench kernels``: what is wrong or cannot run is a row, candidates take turns, percentages are of measured peaks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from typer.testing import CliRunner

from mnmt_scale.bench import kernels, timing
from mnmt_scale.bench.kernel_case import OURS, Candidate, Case, Cost, Unavailable, Workload, errors, same_bits
from mnmt_scale.bench.kernel_pivot import pivot
from mnmt_scale.bench.kernels import bench_kernels, measure_case, share_of_peak
from mnmt_scale.bench.peaks import Peaks
from mnmt_scale.cli.bench import app
from mnmt_scale.errors import MnmtError

CPU = torch.device("cpu")
RIGHT = {"y": torch.tensor([1.0, -4.0])}


class SteppingClock(timing.Clock):
    """Every call takes one second more than the one before it; the order of calls is kept."""

    def __init__(self) -> None:
        super().__init__(CPU, flush=False)
        self.calls = 0

    def time(self, call):
        self.calls += 1
        return float(self.calls), call()


def say(log: list[str], name: str, result=RIGHT) -> Callable:
    def start():
        def call():
            log.append(name)
            return result() if callable(result) else result

        return call

    return start


def a_case(candidates, *, tolerance=1e-6, repeatable=False, peak="read", amount=8_000_000_000, input_bytes=0) -> Case:
    def build(device):
        return Workload(candidates, lambda: {"y": torch.tensor([1.0, -4.0], dtype=torch.float64)}, tolerance, repeatable)

    return Case("task_gram", "two numbers", {"n": 2}, Cost(amount, "8 GB", peak), input_bytes, build)


def rows_of(case: Case, peaks: Peaks | None = None, budget: float = 0.0):
    rows = measure_case(case, SteppingClock(), peaks or Peaks(rates={"read": 4e9}), budget)
    return {(r["candidate"], r["metric"]): r for r in rows}


def failing(kind):
    def call():
        raise kind("no room for 3 TB\nmore lines")

    return call


def test_failures_are_rows_and_do_not_stop_the_others():
    def absent():
        raise Unavailable("needs a GPU")

    log: list[str] = []
    candidates = [
        Candidate(OURS, say(log, "ours")),
        Candidate("raises", say(log, "raises", failing(ValueError))),
        Candidate("runs out", say(log, "runs out", failing(torch.OutOfMemoryError))),
        Candidate("absent", absent),
        Candidate("huge", say(log, "huge"), needs_bytes=2**60),
    ]
    found = rows_of(a_case(candidates))
    reasons = {name: found[name, "time"]["settings"]["error"] for name in ("raises", "runs out", "absent", "huge")}
    assert reasons["raises"] == "ValueError: no room for 3 TB"
    assert reasons["runs out"] == "out of memory: no room for 3 TB"
    assert reasons["absent"] == "needs a GPU"
    assert reasons["huge"].startswith("out of memory: it needs 1073741824.0 GiB")
    assert all(found[name, "time"]["value"] is None for name in reasons)
    assert found[OURS, "time"]["settings"]["rounds"] >= 5
    assert "huge" not in log
    assert json.loads(json.dumps(list(found.values()), allow_nan=False)) == list(found.values())


@pytest.mark.parametrize("wrong", [[1.0, -4.001], [1.0, math.nan], [1.0, -math.inf], [1.0]])
def test_wrong_results_are_said_and_not_timed(wrong):
    log: list[str] = []
    candidates = [Candidate(OURS, say(log, "ours")), Candidate("wrong", say(log, "wrong", {"y": torch.tensor(wrong)}))]
    found = rows_of(a_case(candidates, tolerance=1e-4))
    assert log.count("wrong") == 1
    assert found["wrong", "time"]["value"] is None
    assert found["wrong", "time"]["settings"]["error"].startswith("wrong: relative error")
    assert (OURS, "speed-up over wrong") not in found
    assert ("wrong", "rate") not in found


def test_a_rival_may_round_more_than_we_may():
    near = {"y": torch.tensor([1.0, -4.04])}
    candidates = [Candidate(OURS, say([], "a", near)), Candidate("rounds", say([], "b", near), tolerance=0.1)]
    found = rows_of(a_case(candidates))
    assert found[OURS, "time"]["value"] is None
    assert found["rounds", "relative error"]["value"] == pytest.approx(0.01, rel=1e-4)
    assert found["rounds", "relative error"]["settings"]["absolute_error"] == pytest.approx(0.04, rel=1e-4)


def test_promised_bits_are_checked():
    numbers = iter([1.0, 1.0 + 1e-7] * 50)

    def unsteady():
        return {"y": torch.tensor([next(numbers), -4.0])}

    candidates = [Candidate(OURS, say([], "ours", unsteady)), Candidate("same", say([], "same"))]
    assert "two runs differ" in rows_of(a_case(candidates, repeatable=True))[OURS, "time"]["settings"]["error"]
    found = rows_of(a_case(candidates, repeatable=False))
    assert found[OURS, "relative error"]["settings"]["repeatable"] is False
    assert found["same", "relative error"]["settings"]["repeatable"] is True


def test_candidates_take_turns_and_who_begins_changes():
    log: list[str] = []
    case = a_case([Candidate(name, say(log, name)) for name in (OURS, "b", "c")])
    rows_of(case)
    checks, rounds = log[:3], [log[i : i + 3] for i in range(3, len(log), 3)]
    assert checks == [OURS, "b", "c"]
    assert rounds[:5] == [[OURS, "b", "c"], ["b", "c", OURS], ["c", OURS, "b"], [OURS, "b", "c"], ["b", "c", OURS]]


@pytest.mark.parametrize(("round_seconds", "budget", "rounds"), [(7, 2.0, 2), (3, 2.0, 2), (1, 2.0, 5), (1, 7.5, 7)])
def test_five_rounds_or_the_budget_and_two_where_they_are_long(monkeypatch, round_seconds, budget, rounds):
    now = iter(range(0, 10_000, round_seconds))
    monkeypatch.setattr(kernels.time, "perf_counter", lambda: next(now))
    found = rows_of(a_case([Candidate(OURS, say([], OURS))]), budget=budget)
    assert found[OURS, "time"]["settings"]["rounds"] == rounds


def test_rates_shares_and_speed_ups_by_hand():
    case = a_case([Candidate(OURS, say([], OURS)), Candidate("rival", say([], "rival"))])
    found = rows_of(case)  # checks take calls 1 and 2; then ours, rival, rival, ours, ours, rival, ...
    ours, rivals = [3.0, 6.0, 7.0, 10.0, 11.0], [4.0, 5.0, 8.0, 9.0, 12.0]
    assert found[OURS, "time"]["p50"] == 7000.0
    assert found[OURS, "rate"]["p50"] == pytest.approx(8 / 7)
    assert found[OURS, "rate"]["unit"] == "GB/s"
    assert found[OURS, "share of peak"]["p50"] == pytest.approx(100 * 2 / 7)  # 8 GB at 4 GB/s are 2 s
    assert found[OURS, "speed-up over rival"]["p50"] == pytest.approx(sorted(b / a for a, b in zip(ours, rivals))[2])
    assert share_of_peak(8, [1.0, 4.0], [16.0, 8.0]) == [50.0, 25.0]


def test_the_stream_of_a_case_is_measured_in_every_round():
    log: list[str] = []
    case = a_case([Candidate(OURS, say(log, OURS))])
    found = rows_of(case, Peaks(rates={"read": 1.0}, streams={"read": (lambda: log.append("read"), 4_000_000_000)}))
    assert log == [OURS, *["read", OURS] * 5]
    shares = [100 * (8e9 / s) / (4e9 / (s - 1)) for s in (3, 5, 7, 9, 11)]  # the stream takes a second less each time
    assert found[OURS, "share of peak"]["p50"] == pytest.approx(sorted(shares)[2])


def test_a_device_that_is_lost_between_two_calls_is_everybody_s_row(monkeypatch):
    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    case = a_case([Candidate(OURS, say([], OURS)), Candidate("rival", say([], "rival"))])
    found = rows_of(case, Peaks(rates={"read": 1.0}, streams={"read": (lost, 1)}))
    assert all("illegal memory access" in found[name, "time"]["settings"]["error"] for name in (OURS, "rival"))
    monkeypatch.setattr(kernels, "available_bytes", lost)
    assert "illegal" in rows_of(case)[OURS, "time"]["settings"]["error"]
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    timing.release(torch.device("cuda"))


def test_a_peak_that_is_missing_is_said():
    peaks = Peaks(missing={"read": "read was not measured: no compiler"})
    found = rows_of(a_case([Candidate(OURS, say([], OURS))]), peaks)
    assert found[OURS, "share of peak"]["value"] is None
    assert found[OURS, "share of peak"]["settings"]["error"] == "read was not measured: no compiler"
    assert found[OURS, "time"]["value"] > 0


def test_a_case_too_large_for_the_machine_is_a_row():
    (row,) = rows_of(a_case([Candidate(OURS, say([], OURS))], input_bytes=2**60)).values()
    assert row["value"] is None
    assert "1073741824.0 GiB" in row["settings"]["error"]


def test_compile_time_is_the_first_call_beyond_the_others():
    found = rows_of(a_case([Candidate(OURS, say([], OURS)), Candidate("compiled", say([], "c"), compiles=True)]))
    assert (OURS, "compile time") not in found
    assert found["compiled", "compile time"]["value"] == 0.0  # the stepping clock's first calls are its shortest


def test_errors_are_relative_to_each_output():
    truth = {"a": torch.tensor([100.0, 0.0]).double(), "b": [torch.tensor([1.0]).double(), torch.tensor([2.0]).double()]}
    outputs = {"a": torch.tensor([100.0, 1.0]), "b": [torch.tensor([1.0]), torch.tensor([2.5])]}
    assert errors(outputs, truth) == (1.0, 0.25)
    assert errors({"b": outputs["b"]}, truth) == (0.5, 0.25)
    assert errors({"n": 3}, {"n": 3}) == (0.0, 0.0)
    assert same_bits({"a": torch.tensor([math.nan])}, {"a": torch.tensor([math.nan])})
    assert not same_bits({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])})


def test_memory_on_cpu_is_that_of_the_call():
    bytes_held = 64 << 20
    extra, _ = timing.peak_extra_bytes(CPU, lambda: (torch.ones(bytes_held // 4) * 2.0).sum())
    if extra is None:
        pytest.skip("this system does not reset the high-water mark of resident memory")
    assert 1.98 * bytes_held < extra < 2.2 * bytes_held
    extra, _ = timing.peak_extra_bytes(CPU, lambda: torch.ones(bytes_held // 4))
    assert 0.98 * bytes_held < extra < 1.2 * bytes_held


def test_quick_run_from_the_command_line(tmp_path):
    result = CliRunner().invoke(
        app, ["kernels", "--quick", "--ops", "task_gram, linear_cross_entropy", "--device", "cpu", "--threads", "1",
              "--out", str(tmp_path), "--json"]
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "kernels.json").read_text())
    assert json.loads(result.stdout)["rows"] == document["rows"]
    rows = document["rows"]
    assert {r["settings"]["op"] for r in rows} == {"machine", "task_gram", "linear_cross_entropy"}
    ours = [r for r in rows if r["candidate"] == OURS and r["metric"] == "share of peak"]
    assert len(ours) == 4
    assert all(r["value"] > 0 and r["settings"]["threads"] == 1 for r in ours)
    liger = [r for r in rows if r["candidate"] == "Liger-Kernel"]
    assert liger[0]["value"] is None
    assert "instruction_set" in document["machine"]
    text = (tmp_path / "kernels.md").read_text()
    assert "## task_gram" in text
    assert "**mnmt_scale**" in text
    assert text.count("\n") < 70
    assert torch.get_num_threads() >= 1


def test_an_interrupted_run_writes_what_there_is(tmp_path, monkeypatch):
    cases: list[str] = []

    def interrupted(case, *rest):
        if cases:
            raise KeyboardInterrupt
        cases.append(case.title)
        return measure_case(a_case([Candidate(OURS, say([], OURS))]), SteppingClock(), Peaks(rates={"read": 1.0}), 0.0)

    monkeypatch.setattr(kernels, "measure_case", interrupted)
    result = CliRunner().invoke(app, ["kernels", "--quick", "--ops", "task_gram", "--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code != 0
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert [r["metric"] for r in rows if r["candidate"] == OURS] == [
        "relative error", "time", "rate", "share of peak", "extra memory"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ops": ["task_grams"]}, r"E102.*task_grams.*--ops; did you mean 'task_gram'"),
        ({"ops": ["zzz"]}, r"E102.*one of: task_gram"),
        ({"seconds": -1.0}, r"E102.*-1.0 s.*--seconds"),
        ({"seconds": math.nan}, r"E102.*nan"),
        ({"device": "cup"}, r"E102.*did you mean 'cpu'"),
    ],
)
def test_bad_options_are_refused(options, named):
    with pytest.raises(MnmtError, match=named):
        next(bench_kernels(**options))


def test_the_table_for_people_has_a_line_for_every_candidate():
    candidates = [Candidate(OURS, say([], OURS)), Candidate("rival", say([], "r")), Candidate("broken", failing(ValueError))]
    found = rows_of(a_case(candidates))
    text = pivot(list(found.values()))
    lines = [line for line in text.splitlines() if line.startswith("| two numbers")]
    assert [line.split("|")[2].strip() for line in lines] == [f"**{OURS}**", "rival", "broken"]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert cells[0][3] == "7,000"
    assert cells[0][5:7] == ["1.143 GB/s", "28.57"]
    assert cells[1][7] == "1.091 x"
    assert cells[2][3] == "failed"
    assert "no room for 3 TB" in cells[2][11]
    assert "Model: 8 GB, of read." in text
