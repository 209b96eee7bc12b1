"""``mnmt bench summary``: targets met and missed, and everything that is not whole is said and stops nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mnmt_scale.bench import summary, targets
from mnmt_scale.bench.table import JOURNAL, row
from mnmt_scale.bench.targets import MET, MISSED, OPEN, TARGETS, UNKNOWN, judge, lost_ops, ours_failed, verdicts
from mnmt_scale.cli.bench import app
from mnmt_scale.cli.bench_output import gather

GRAM = {"op": "task_gram", "d": 110_000_000, "cut": "flat", "variant": "plain", "device": "cuda"}
LCE = {"op": "linear_cross_entropy", "T": 16384, "V": 64_000, "H": 512, "dtype": "bf16", "device": "cuda"}
SPEED = "target tokens per second"
KD = {**LCE, "op": "linear_distillation"}
BASE = {"preset": "base", "vocabulary": 64_000, "batch_tokens": 32_768, "dtype": "bf16", "device": "cuda"}


def share(value, K=8, dtype="bf16", **more):
    return row("kernels", "task_gram, flat", "mnmt_scale", "share of peak", value, "%", K=K, dtype=dtype, **{**GRAM, **more})


def kernel(settings, candidate, metric, value, **more):
    return row("kernels", "a case", candidate, metric, value, "x", **settings, **more)


def training(candidate, metric, value, case="real text (x)", **more):
    return row("train", case, candidate, metric, value, "x", **{**BASE, **more})


def found(rows, part="kernels", absent=None):
    """what -> [(which, verdict, seen, note)]"""
    by: dict[str, list] = {}
    for v in verdicts({part: rows}, absent or {}):
        by.setdefault(v.target.what, []).append((v.which, v.verdict, v.seen, v.note))
    return by


def test_each_number_of_tasks_gets_a_verdict_and_the_bound_itself_meets_it():
    by = found(
        [share(85.0), share(84.9, K=4), share(99.0, cut="300 fragments"), share(99.0, d=1000), share(99.0, device="cpu", K=2)]
    )
    assert by["task_gram, d = 110M, flat"] == [
        ("K = 8, dtype = bf16", MET, 85.0, ""),
        ("K = 4, dtype = bf16", MISSED, 84.9, ""),
    ]
    assert by["task_gram, d = 110M, 300 fragments"] == [("K = 8, dtype = bf16", MET, 99.0, "")]
    assert by["fisher_accumulate, d = 110M, flat"] == [("", UNKNOWN, None, "there is no such row")]


def test_the_combination_variant_is_another_target_nobody_set():
    assert found([share(99.0, variant="combination")])["task_gram, d = 110M, flat"][0][1] == UNKNOWN


def test_a_rival_that_is_missing_is_why():
    rows = [
        kernel(LCE, "mnmt_scale", "speed-up over Liger-Kernel", 0.99),
        kernel(LCE, "torch linear_cross_entropy, chunked", "time", None, error="torch 2.11 has none"),
        kernel(LCE, "mnmt_scale", "extra memory", 400.0),
    ]
    by = found(rows)
    assert by["linear_cross_entropy, T = 16k, V = 64k: over Liger"] == [("", MISSED, 0.99, "")]
    name = "linear_cross_entropy, T = 16k, V = 64k: over torch's own"
    assert by[name] == [("", UNKNOWN, None, "torch linear_cross_entropy, chunked: torch 2.11 has none")]
    assert by["linear_cross_entropy, T = 16k, V = 64k: no [T, V] tensor in memory"][0][1:3] == (MET, 400.0)


def test_our_own_failure_is_why():
    by = found([kernel(LCE, "mnmt_scale", "time", None, error="wrong: relative error 1")])
    assert by["linear_cross_entropy, T = 16k, V = 64k: over Liger"][0][3] == "mnmt_scale: wrong: relative error 1"


def test_a_row_of_a_second_attempt_counts_beside_the_failed_first():
    by = found([{**share(None), "settings": share(None)["settings"] | {"error": "CUDA error"}}, share(90.0)])
    assert by["task_gram, d = 110M, flat"] == [("K = 8, dtype = bf16", MET, 90.0, "mnmt_scale: CUDA error")]


def test_memory_of_four_teachers_is_held_against_that_of_one():
    rows = [kernel(KD, "mnmt_scale", "extra memory", value, C=C) for C, value in ((1, 100.0), (4, 110.0))]
    name = "linear_distillation, same shape: memory of C = 4 over C = 1"
    assert found(rows)[name] == [("", MISSED, pytest.approx(1.1), "")]
    assert found(rows[:1])[name][0][1] == UNKNOWN


def test_a_ratio_that_is_written_the_other_way_round_is_turned():
    settings = {"op": "fisher_similarity", "P": 100, "d": 110_000_000, "device": "cuda"}
    name = "fisher_similarity, 100 pairs x 110M: streamed, over the transfer alone"
    for value, verdict in ((0.8, MET), (0.75, MISSED)):
        case = "streamed from host memory, P=100"
        rows = [row("kernels", case, "mnmt_scale", "speed-up over the transfer alone", value, "x", **settings)]
        assert found(rows)[name] == [("", verdict, 1 / value, "")]


def test_the_fastest_rival_counts_and_says_which_it_was():
    rows = [
        training("mnmt_scale engine", "speed over M2M100 eager", 2.0),
        training("mnmt_scale engine", "speed over M2M100 compiled", 1.4),
        training("mnmt_scale engine", "speed over JoeyNMT", 0.5),
        training("mnmt_scale engine", "target tokens per second", 400_001.0),
        training("mnmt_scale engine", "target tokens per second", 1.0, case="equal lengths (30)"),
        training("mnmt_scale model + torch Adam", "target tokens per second", 1.0),
    ]
    by = found(rows, "train-base")
    name = "training base, over the faster of M2M100 eager and compiled"
    assert by[name] == [("", MISSED, 1.4, "speed over M2M100 compiled; real text (x)")]
    assert by["training base, V = 64k, 32k tokens a step, bf16"] == [("", MET, 400_001.0, "real text (x)")]


def test_a_reference_in_place_of_a_kernel_meets_nothing():
    name = "task_gram, d = 110M, flat"
    assert found([share(99.0, runs="native")])[name][0][1] == MET
    assert found([share(99.0, runs="reference")])[name][0][1:] == (UNKNOWN, None, "mnmt_scale: ran on the torch reference")
    rows = [training("mnmt_scale engine", SPEED, 500_000.0, runs="reference")]
    assert found(rows, "train-base")["training base, V = 64k, 32k tokens a step, bf16"][0][1] == UNKNOWN


def test_the_faster_of_two_is_not_known_where_one_was_not_measured():
    rows = [training("mnmt_scale engine", "speed over Hugging Face M2M100, sorted by length", 2.0, case="constructed text (x)")]
    name = "training base, over the faster of M2M100 eager and compiled"
    note = "constructed text (x); no speed over Hugging Face M2M100 compiled"
    assert found(rows, "train-base")[name] == [("", OPEN, 2.0, note)]
    rows.append(
        training("Hugging Face M2M100 compiled, sorted by length", SPEED, None, error="compiling took longer than 40 s")
    )
    assert found(rows, "train-base")[name][0][1] == OPEN
    rows[0]["value"] = 1.4
    assert found(rows, "train-base")[name][0][1] == MISSED


def test_every_target_says_what_would_meet_it():
    for target in TARGETS:
        assert judge(target, [], "why")[0].note == "why"
        assert target.part in ("kernels", "train-base", "train-presets", "methods", "decode")


def test_only_an_error_of_the_device_takes_other_ops_along():
    rows = [
        kernel(GRAM, "mnmt_scale", "time", None, error="AcceleratorError: CUDA error: an illegal memory access"),
        kernel(LCE, "Liger-Kernel", "time", None, error="not installed"),
        kernel(KD, "mnmt_scale", "time", None, error="AcceleratorError: CUDA error: an illegal memory access"),
        kernel({"op": "machine"}, "machine", "rate", None, error="CUDA error"),
    ]
    assert lost_ops(rows) == ["task_gram", "linear_distillation"]
    assert ours_failed(rows)
    assert not ours_failed(rows[1:2])
    assert not ours_failed([kernel(LCE, "mnmt_scale engine", "time", None, error="out of memory: 9 GB")])


def directory(tmp_path: Path, parts: list, tables: dict[str, list]) -> Path:
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    (tmp_path / "logs").mkdir()
    machine = {"cpu": "a cpu", "cores": 16, "ram_bytes": 2**37, "instruction_set": None, "gpu": "a gpu", "system": "s",
               "python": "3", "versions": {}}  # fmt: skip
    for folder, rows in tables.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    return tmp_path


def a_part(name, rc=0, seconds=5):
    return {"part": name, "command": "c", "rc": rc, "seconds": seconds, "limit": 9}


def test_what_is_not_whole_is_said_and_the_rest_is_there(tmp_path):
    parts = [a_part("kernels"), a_part("train-base", 124), a_part("methods", 70), a_part("decode", 124, 0)]
    out = directory(tmp_path, parts, {"kernels": [share(90.0)], "kernels-reference": [share(1.0, K=4)]})
    (out / "decode").mkdir()
    (out / "decode" / "decode.json").write_text('{"machine": {}, "rows": [')
    (out / "train-base").mkdir()
    speed = training("mnmt_scale engine", "target tokens per second", 5.0)
    (out / "train-base" / JOURNAL).write_text(json.dumps(speed) + "\n" + json.dumps(speed)[:30])
    (out / "logs" / "methods.log").write_text("begins\nmnmt: no such thing\n")
    stack = "Current thread 0x1 (most recent call first):\n" + '  File "a.py", line 3 in f\n' * 20
    (out / "logs" / "train-base.log").write_text(f"[3/9] the engine\n{stack}")
    (out / "kernels" / "x.md").write_text("A machine.\n\nMeasured then.\n\n## Its own table\n")
    done = CliRunner().invoke(app, ["summary", str(out)])
    assert done.exit_code == 0, done.output
    report, document = (out / "report.md").read_text(), json.loads((out / "report.json").read_text())
    assert "a gpu" in report
    assert "## Its own table" in report
    assert "A machine." not in report
    assert "decode/decode.json cannot be read" in report
    assert "train-base: killed before it wrote its table; the 1 rows" in report
    by = {(t["target"], t["which"]): t for t in document["targets"]}
    assert by["task_gram, d = 110M, flat", "K = 8, dtype = bf16"]["verdict"] == MET
    assert ("task_gram, d = 110M, flat", "K = 4, dtype = bf16") not in by, "the references meet no target"
    assert by["CATS, m = 1, over a plain step", ""]["note"] == "part methods failed with exit code 70: mnmt: no such thing"
    assert by["beam 5, base, 500 sentences", ""]["note"] == "part decode had no time left"
    assert by["training m2m418", ""]["note"] == "part train-presets did not run"
    assert by["training base, V = 64k, 32k tokens a step, bf16", ""]["seen"] == 5.0
    assert (
        by["training base, over the faster of M2M100 eager and compiled", ""]["note"]
        == "part train-base was stopped after 5 s: [3/9] the engine"
    )
    assert {r["table"] for r in document["rows"]} == {"kernels", "kernels-reference", "train-base"}


def test_an_empty_directory_is_a_report_that_nothing_was_measured(tmp_path):
    paths = summary.write_report(tmp_path)
    assert f"{len(TARGETS)} not measured." in paths["text"]
    assert "did not get so far" in paths["text"]


def test_outcomes_are_those_that_workers_tell(tmp_path):
    (tmp_path / "tests").mkdir()
    lines = [
        "tests/a.py::one[x y] ",
        "[gw0] PASSED tests/a.py::one[x y] ",
        "tests/c.py::hangs ",
        "[gw2] ERROR tests/b.py::three",
        "FAILED tests/b.py::four - a summary line",
    ]
    log = "\n".join(lines)
    (tmp_path / "tests" / "pytest.log").write_text(log)
    by = {"tests/a.py::one[x y]": "PASSED", "tests/b.py::three": "ERROR", "tests/c.py::hangs": "UNFINISHED"}
    assert summary.read(tmp_path).tests == by
    assert "- unfinished: `tests/c.py::hangs`" in summary.write_report(tmp_path)["text"]


def test_a_measurement_keeps_a_journal_until_its_table_is_written(tmp_path):
    seen = []

    def measured():
        yield share(1.0)
        seen.append([json.loads(line)["value"] for line in (tmp_path / JOURNAL).read_text().splitlines()])
        threading.Timer(0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Event().wait(10)

    with pytest.raises(KeyboardInterrupt):
        gather(measured(), tmp_path, False)
    assert seen == [[1.0]]
    assert not (tmp_path / JOURNAL).exists()
    assert [r["value"] for r in summary.rows_in(tmp_path)] == [1.0]


def test_targets_are_those_of_the_documentation():
    text = (Path(targets.__file__).parents[2] / "docs" / "gpu-check.md").read_text()
    for target in TARGETS:
        assert f"| {target.what} |" in text, target.what
