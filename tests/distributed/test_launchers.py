"""Each launcher starts two CPU ranks of a real training, through the scripts of ``launchers/``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mnmt_scale.engine import checkpoint
from tests.support.ranks import ROOT
from tests.support.tiny_run import make_store


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


def environment(**more):
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    path = os.pathsep.join([str(Path(sys.executable).parent), clean["PATH"]])
    return {**clean, "PATH": path, "PYTHONPATH": str(ROOT), "MNMT_DEVICE": "cpu", "OMP_NUM_THREADS": "1", **more}


def run(command, **more):
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=180, cwd=ROOT)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "mpirun"])
def test_two_ranks_train(config, tmp_path, launcher):
    if launcher == "mpirun" and shutil.which("mpirun", path=environment()["PATH"]) is None:
        pytest.skip("no mpirun here")
    more = {"NUM_RANKS": "2", "MPIRUN_OPTIONS": "--oversubscribe" + (" --allow-run-as-root" if os.getuid() == 0 else "")}
    command = ["bash", str(ROOT / "launchers" / f"train_{launcher}.sh"), str(config), "--run-dir", str(tmp_path / "run")]
    done = run([*command, "--set", "train.max_steps=2", "--set", "engine.zero_stage=2"], **more)
    assert done.returncode == 0, done.stderr[-3000:]
    info = checkpoint.newest(tmp_path / "run")
    assert (info.step, info.manifest["world_size"], info.manifest["zero_stage"]) == (2, 2, 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == [1, 2], "rank 0 alone writes the metrics"


def test_alone_it_is_one_rank(config, tmp_path):
    command = [sys.executable, "-m", "mnmt_scale", "train", str(config), "--run-dir", str(tmp_path / "run")]
    done = run([*command, "--set", "train.max_steps=1"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert checkpoint.newest(tmp_path / "run").manifest["world_size"] == 1
    assert "Warning" not in done.stderr
    assert "DeepSpeed" not in done.stdout + done.stderr


def test_a_half_set_environment_is_refused_in_one_line(config, tmp_path):
    command = [sys.executable, "-m", "mnmt_scale", "train", str(config), "--run-dir", str(tmp_path / "run")]
    done = run(command, RANK="0")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("MNMT-E803")
    assert "WORLD_SIZE" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_hostfile_is_refused(config):
    for launcher in ("deepspeed", "mpirun"):
        done = run(["bash", str(ROOT / "launchers" / f"train_{launcher}.sh"), str(config)], HOSTFILE="/nonexistent/hosts")
        assert done.returncode == 2
        assert "no such HOSTFILE" in done.stderr


def test_the_slurm_script_is_shell():
    assert run(["bash", "-n", str(ROOT / "launchers" / "slurm" / "train.sbatch")]).returncode == 0
