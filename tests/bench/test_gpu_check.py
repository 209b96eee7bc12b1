"""``launchers/gpu_check.sh``: with a stand-in for Python, so that every way a part can end takes no time."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from mnmt_scale.cli.bench import app

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launchers" / "gpu_check.sh"

STAND_IN = """#!/usr/bin/env bash
case "$*" in
    "-m mnmt_scale.bench.summary"*) exec "$REAL" "$@" ;;
    *gpu_check_venv.py\\ make*) mkdir -p "${@: -1}/bin"; ln -sf "$0" "${@: -1}/bin/python"; exit ;;
    "-c import sys; print(sys.executable)") echo "$0"; exit ;;
esac
echo "${MNMT_KERNELS:-ours} $*" >>"$CALLS"
folder="${@: -1}"
table() { mkdir -p "$folder"; printf '{"machine": {}, "rows": [%s]}' "$1" >"$folder/table.json"; }
row() { printf '{"bench": "b", "case": "c", "candidate": "mnmt_scale", "metric": "m", "unit": "x", "p20": null, "p80": null, '
    printf '"value": %s, "settings": {"op": "%s", "error": "%s"}}' "$1" "$2" "$3"; }
case "$*" in
    *"-m pytest -m gpu"*) echo "[gw0] PASSED tests/a.py::test_one "; echo "[gw1] FAILED tests/a.py::test_two[x y] "
        echo "[gw1] FAILED tests/a.py::test_three "; exit 1 ;;
    *"-m pytest"*test_two*) [ "$CUDA_LAUNCH_BLOCKING" = 1 ] ;;
    *"-m pytest"*) echo "the traceback"; exit 1 ;;
    *"mnmt_scale doctor") eval "${DOCTOR:-:}" ;;
    *"bench decode"*) [ -n "${MNMT_KERNELS:-}" ] && table "$(row 1 '' '')" || table "$(row null '' 'CUDA error')" ;;
    *"bench kernels"*--ops*) table "$(row 1 fisher '')" ;;
    *"bench kernels"*) table "$(row 1 gram ''), $(row null fisher 'AcceleratorError: CUDA error: an illegal memory access')" ;;
    *"import constructed"*) mkdir -p "$folder/store-4000"; touch "$folder/store-4000/store.json" ;;
    *"bench data"*) echo '"quoted" \\back\\'; exit 3 ;;
esac
"""


class Check:
    """One directory for a run of the script."""

    def __init__(self, folder: Path) -> None:
        self.out, self.calls, python = folder / "out", folder / "calls", folder / "python"
        python.write_text(STAND_IN)
        python.chmod(0o755)
        (folder / "place" / "venv" / "bin").mkdir(parents=True)
        (folder / "place" / "venv" / "bin" / "python").symlink_to(python)  # as part build leaves it
        self.environment = {**os.environ, "PYTHON": str(python), "GPU_CHECK_PLACE": str(folder / "place")}
        self.environment |= {"REAL": sys.executable, "CALLS": str(self.calls)}

    def command(self, parts: str, *more: str) -> list[str]:
        return [str(SCRIPT), "--parts", parts, "--out", str(self.out), *more]

    def run(self, parts: str, *more: str) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(parts, *more), env=self.environment, capture_output=True, text=True, timeout=60)

    def parts(self) -> dict[str, dict]:
        return {p["part"]: p for p in json.loads((self.out / "parts.json").read_text())}

    def called(self, words: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if words in line]


@pytest.fixture
def check(tmp_path) -> Check:
    return Check(tmp_path)


def test_parts_run_in_order_what_fails_stops_nothing_and_unused_time_is_passed_on(check):
    done = check.run("build,data,doctor", "--device", "cpu", "--quick", "--minutes", "2")
    parts = check.parts()
    assert done.returncode == 1, done.stderr
    assert list(parts) == ["build", "data", "doctor"]
    assert [p["rc"] for p in parts.values()] == [0, 3, 0]
    assert 0 <= 90 * 105 // 125 - parts["build"]["limit"] <= 3, "its share, less what a busy machine took to begin"
    assert 105 - 15 < parts["doctor"]["limit"] <= 105, "all that the others left"
    assert "bench data --pairs 2000" in parts["data"]["command"]
    report = (check.out / "report.md").read_text()
    assert "failed with exit code 3" in report
    assert '"quoted" \\back\\' in report, "the end of its log"
    assert report[: report.index("## Parts")] in done.stdout
    assert not list(check.out.glob("*/.*"))


def test_a_part_that_hangs_is_stopped_at_its_share_and_the_next_one_runs(check):
    check.environment["DOCTOR"] = "exec sleep 60"
    done = check.run("doctor,sanitizer", "--minutes", "2", "--device", "cpu")
    parts = check.parts()
    assert done.returncode == 1
    assert parts["doctor"]["rc"] == 124
    assert 0 <= 20 * 105 // 260 - parts["doctor"]["limit"] <= 3
    assert parts["sanitizer"]["rc"] == 127, "there is no such program, and that is a line too"


def test_the_script_told_to_stop_still_reports(check):
    check.environment["DOCTOR"] = 'trap "echo had time to write; exit 1" TERM; touch "$CALLS.up"; while :; do sleep 0.1; done'
    started = subprocess.Popen(check.command("doctor,data", "--device", "cpu"), env=check.environment, stdout=subprocess.PIPE)
    while not Path(f"{check.calls}.up").exists():
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=30)
    assert started.returncode == 1
    assert {p["part"]: p["rc"] for p in check.parts().values()} == {"doctor": 124, "data": 124}
    assert "had time to write" in (check.out / "logs" / "doctor.log").read_text()
    assert "had no time left" in (check.out / "report.md").read_text()


def test_what_our_kernels_break_is_measured_again(check):
    check.run("kernels,decode", "--device", "cpu")
    assert [line.split()[0] for line in check.called("bench decode")] == ["ours", "reference"]
    assert check.called("bench decode")[1].endswith("decode-reference")
    assert [re.findall("--ops (.*) --out", line) for line in check.called("bench kernels")] == [[], ["fisher"]]
    report = (check.out / "report.md").read_text()
    for heading in ("# kernels\n", "# kernels/fisher\n", "# decode\n", "# decode-reference (MNMT_KERNELS=reference)\n"):
        assert heading in report


def test_text_is_prepared_once_for_all_trainings(check):
    check.run("methods,affinity", "--device", "cpu")
    assert len(check.called("import constructed")) == 1
    trained = check.called("bench train")
    assert len(trained) == 3
    assert all("--store" in line and "constructed/store-4000" in line for line in trained)


def test_failed_tests_run_once_more_by_themselves(check):
    check.run("tests", "--device", "cpu")
    assert len(check.called("-m pytest -m ''") or check.called("-m pytest -m  ")) == 2
    report = (check.out / "report.md").read_text()
    assert "1 passed, 2 failed." in report
    assert "- failed: `tests/a.py::test_two[x y]`; passes by itself" in report
    assert "- failed: `tests/a.py::test_three`; by itself too" in report
    assert "the traceback" in (check.out / "logs" / "tests.log").read_text()


@pytest.mark.parametrize("words", ["--parts kernel", "--minutes 9.5", "--device gpu", "--wheels nowhere", "--out", "--outt x"])
def test_a_wrong_option_is_refused_before_anything_runs(check, words):
    done = subprocess.run([str(SCRIPT), *words.split()], env=check.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check.sh: ")
    assert not check.calls.exists()


def commands() -> list[str]:
    everything = "kernels,train-base,methods,train-presets,decode,affinity,data,quality"
    lines = []
    for more in ([], ["--device", "cpu", "--quick"], ["--store", str(ROOT)]):
        done = subprocess.run([str(SCRIPT), "--list", "--parts", everything, *more], capture_output=True, text=True)
        lines += re.findall(r"^\+ mnmt bench (.*)$", done.stdout, flags=re.M)
    return list(dict.fromkeys(lines))


def test_every_benchmark_is_called_as_it_can_be():
    program = typer.main.get_command(app)
    lines = commands()
    assert len(lines) > 20
    for line in lines:
        verb, *words = shlex.split(line)
        program.commands[verb].make_context(verb, words)  # refuses what it does not know


def test_the_environment_sees_the_callers_packages_and_changes_none(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_check_venv", ROOT / "launchers" / "gpu_check_venv.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.make(tmp_path / "v")
    (own,) = (tmp_path / "v").glob("lib/python*/site-packages")
    (own / "pydantic.py").write_text("here = True\n")
    ask = "import numpy, pydantic, sys; print(numpy.__file__, pydantic.here, sys.prefix)"
    said = subprocess.run([tmp_path / "v" / "bin" / "python", "-c", ask], capture_output=True, text=True, cwd=tmp_path).stdout
    assert said.split() == [importlib.util.find_spec("numpy").origin, "True", str(tmp_path / "v")], (
        "its own packages come first"
    )

    ran: list[list[str]] = []
    monkeypatch.setattr(made, "met", lambda one: not one.startswith(("hypothesis", "liger")))
    said = lambda command: "no wheel" if "liger" in " ".join(command) else None  # noqa: E731
    monkeypatch.setattr(made, "run", lambda command, end: ran.append(command) or said(command))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "v"))
    assert made.fill("python3", tmp_path) == 0, "what only some rows need may be missing"
    asked = [[word.split(">")[0] for word in command if ">=" in word] for command in ran]
    assert asked == [["liger-kernel", "hypothesis"], ["liger-kernel"], ["hypothesis"]], "one alone stops no other"
    assert "--no-index" in ran[0]
    pins = (tmp_path / "v" / "pins.txt").read_text()
    assert re.search(r"^torch==", pins, flags=re.M)
    monkeypatch.setattr(made, "met", lambda one: not one.startswith("deepspeed"))
    assert made.fill("python3", None) == 1
    assert "--no-index" not in ran[-1]
