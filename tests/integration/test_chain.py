"""The verbs one after another, as a user types them, and every launcher with two ranks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mnmt_scale.engine.checkpoint import load_weights
from mnmt_scale.train.train import train
from tests.support.toy import ROOT, load, mnmt, outside_environment

BIN = Path(sys.executable).parent


def told(*arguments) -> dict:
    done = mnmt(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(command, text: str | None = None) -> subprocess.CompletedProcess:
    words = [str(word) for word in command]
    env = outside_environment()
    return subprocess.run(words, input=text, capture_output=True, text=True, cwd=ROOT, timeout=240, env=env)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    directory = tmp_path_factory.mktemp("chain") / "run"
    told("train", toy / "toy.toml", "--run-dir", directory)
    return directory


def test_prepare_again_gives_the_same_store(toy, tmp_path):
    told("prepare", toy / "toy.toml", "--set", f"data.store={tmp_path / 'store'}")
    files = sorted(p.relative_to(tmp_path / "store") for p in (tmp_path / "store").rglob("*") if p.is_file())
    assert files
    assert all((tmp_path / "store" / f).read_bytes() == (toy / "store" / f).read_bytes() for f in files)


def test_translate_keeps_order_and_empty_lines(trained):
    command = [sys.executable, "-m", "mnmt_scale", "translate", trained, "--from", "de", "--to", "en"]
    text = "ab ac\n\nad ae af\n"
    done = subprocess.run(
        list(map(str, command)), input=text, capture_output=True, text=True, cwd=ROOT, timeout=120, env=outside_environment()
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert len(lines) == 4
    assert lines[1] == lines[3] == ""


def test_evaluate_then_report(trained, tmp_path):
    scores = told("evaluate", trained, "--beam", "2")
    assert set(scores["directions"]) == {"af-en", "de-en", "no-en"}
    page = tmp_path / "report.html"
    told("report", trained, "--out", page)
    assert "af-en" in page.read_text()


def test_export_and_import_come_back_equal_and_are_a_start(toy, trained, tmp_path):
    told("export", trained, "--to", "hf", "--out", tmp_path / "hf")
    told("import", tmp_path / "hf", "--out", tmp_path / "again", "--direction", "af-en")
    ours, theirs = load_weights(trained, "best"), load_weights(tmp_path / "again", "last")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    start = ["--set", f"train.init_from={tmp_path / 'again'}", "--set", "train.max_steps=1"]
    told("train", toy / "toy.toml", "--run-dir", tmp_path / "on", "--set", "engine.optimizer.learning_rate=1e-12", *start)
    went_on = load_weights(tmp_path / "on", "last")
    assert all(torch.allclose(went_on[name], theirs[name], atol=1e-6) for name in theirs)


@pytest.fixture(scope="module")
def alone(toy, tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone") / "run"
    train(load(toy, "model.dropout=0.0"), directory)
    return load_weights(directory, "last")


LAUNCHERS = {
    "deepspeed": ["deepspeed", "--num_gpus", "2", "--module", "mnmt_scale"],
    "torchrun": ["torchrun", "--nproc_per_node", "2", "-m", "mnmt_scale"],
    "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", "mnmt"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_train_what_one_process_trains(toy, tmp_path, alone, launcher):
    program, *rest = LAUNCHERS[launcher]
    if shutil.which(program, path=str(BIN)) is None:
        pytest.skip(f"{program} is not installed")
    rest = [str(BIN / "mnmt") if word == "mnmt" else word for word in rest]
    stage = str(1 + list(LAUNCHERS).index(launcher))
    settings = ["--set", "model.dropout=0.0", "--set", f"engine.zero_stage={stage}"]
    command = [BIN / program, *rest, "train", toy / "toy.toml", "--run-dir", tmp_path / "run", *settings]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=240, env=outside_environment()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 rank(s)" in done.stderr
    weights = load_weights(tmp_path / "run", "last")
    for name, tensor in alone.items():
        if not name.endswith("k_proj.bias"):  # its true gradient is zero: Adam steps on its rounding noise
            assert torch.allclose(weights[name], tensor, rtol=1e-3, atol=2e-4), name
