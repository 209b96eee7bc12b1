"""Triton's row kernels: their cases in the interpreter (and on a GPU), and their compilation for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REGISTERS = 65536
"""Of a multiprocessor, capability 8.0 and 9.0."""

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(module: str, *arguments: str, interpret: bool, **variables: str) -> str:
    """Output of a module in a process of its own: triton chooses between interpreter and compiler when it is imported."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | variables
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_cases_in_the_interpreter():
    said = run("pytest", "tests/kernels/triton_cases.py", "-p", "no:cacheprovider", interpret=True)
    assert " passed" in said
    assert "skipped" not in said


@pytest.mark.gpu
def test_cases_on_the_device():
    said = run("pytest", "tests/kernels/triton_cases.py", "-p", "no:cacheprovider", "-m", "", interpret=False)
    assert " passed" in said


def test_compiled_ahead_of_time_without_spills(tmp_path):
    """Every variant holds 1024 threads of a multiprocessor in registers and reads 16 bytes at a time."""
    from triton import knobs

    try:
        knobs.nvidia.ptxas, knobs.nvidia.cuobjdump  # noqa: B018 (looked for here)
    except RuntimeError as error:
        pytest.skip(f"triton cannot compile for NVIDIA: {error}")
    said = run("tests.kernels.triton_compile", "80", "90", interpret=False, TRITON_CACHE_DIR=str(tmp_path))
    variants = [json.loads(line) for line in said.splitlines()]
    assert {v["sm"] for v in variants} == {80, 90}
    for variant in variants:
        assert variant["stack_bytes"] == 0, variant
        assert variant["registers"] * 1024 <= REGISTERS, variant
        assert variant["load_bytes"] == 16, variant
