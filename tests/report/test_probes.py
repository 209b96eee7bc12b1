"""Probe files of a run: whole ones, damaged ones, those of others."""

from __future__ import annotations

import numpy as np
import pytest

from mnmt_scale.report.probes import read_file, spreads
from mnmt_scale.report.read import read_run
from tests.support.fake_measured import classes_of, curvature, gradients, measured_run, write_probe
from tests.support.fake_run import directions


def test_spreads_are_means_over_pairs_and_leave_out_what_has_no_direction():
    matrix = np.array([[1.0, 0.5, -0.5, np.nan], [0.5, 1.0, 0.1, np.nan], [-0.5, 0.1, 1.0, np.nan], [np.nan] * 4])
    found = spreads(matrix, ["high", "low", "low", "high"])
    assert set(found) == {"low-low", "high-low", "all"}
    assert found["high-low"].pairs == 2
    assert found["high-low"].mean == pytest.approx(0.0)
    assert found["high-low"].deviation == pytest.approx(0.5)
    assert found["all"].mean == pytest.approx(0.1 / 3)
    assert spreads(matrix, ["high", "low", None, None])["all"].pairs == 3
    assert spreads(np.ones((1, 1)), ["low"]) == {}


def test_probe_files_stand_in_for_lines_that_the_training_did_not_log(tmp_path):
    path = measured_run(tmp_path / "run", 4, without=("gradients", "curvature"))
    tasks, classes, random = directions(4), classes_of(4), np.random.default_rng(1)
    arrays = curvature(classes, random, 0.2)
    write_probe(path, "curvature", 500, tasks, classes, arrays)
    write_probe(path, "curvature", 700, tasks, classes, arrays, head={"split": "dev"})  # another split does not mix in
    run = read_run(path)
    assert [row["step"] for row in run.curvature] == [500, 1000]
    assert run.curvature[0]["directions"][tasks[1]]["top"] == pytest.approx(arrays["top"][1])
    lines = run.gradients[0]["groups"]["D.FC"]["cosine"]
    group = read_file(path / "probes" / "gradients-step-001000.safetensors").arrays["cosine"][5]
    assert lines["high-high"] == pytest.approx(group[0, 1])
    assert run.probes["curvature"].step == 1000


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-8]), "not a safetensors file"),
        (lambda f: f.write_bytes(b"\xff" * 40), "not a safetensors file"),
        (lambda f: f.write_bytes(b""), "not a safetensors file"),
        (lambda f: rewritten(f, version=2), "version 2"),
        (lambda f: rewritten(f, kind="entropy"), "a probe of 'entropy'"),
        (lambda f: rewritten(f, tasks=["al-en"]), "do not fit"),
        (lambda f: rewritten(f, tasks="a-b"), "it lacks tasks"),
        (lambda f: rewritten(f, tasks=[{}, [], 1, 2]), "its names are no text"),
        (lambda f: rewritten(f, step=None), "it lacks step"),
        (lambda f: rewritten(f, kind="curvature"), "it lacks largest"),
        (lambda f: foreign(f, None), "without a probe's metadata"),
        (lambda f: foreign(f, {"probe": "{"}), "without a probe's metadata"),
    ],
)
def test_a_file_that_is_no_probe_is_said_and_left_out(tmp_path, damage, said):
    path = measured_run(tmp_path / "run", 4)
    damage(path / "probes" / "gradients-step-001000.safetensors")
    run = read_run(path)
    (line,) = run.missing
    assert line.startswith("probes/gradients-step-001000.safetensors: ")
    assert said in line
    assert set(run.probes) == {"curvature"}


def rewritten(file, **head):
    tasks, classes = directions(4), classes_of(4)
    arrays = gradients(tasks, classes, np.random.default_rng(0), 1.0)
    written = write_probe(file.parent.parent, "gradients", 1, tasks, classes, arrays, head=head)
    written.replace(file)


def foreign(file, metadata):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, str(file), metadata)


def test_flipped_bytes_never_bring_the_report_down(tmp_path):
    path = measured_run(tmp_path / "run", 3)
    whole = (path / "probes" / "gradients-step-001000.safetensors").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        for place in random.integers(0, 1400, 3):  # the header
            broken[place] = random.integers(0, 256)
        (tmp_path / "x.safetensors").write_bytes(broken)
        try:
            probe = read_file(tmp_path / "x.safetensors")
        except ValueError:
            continue
        assert probe.arrays["cosine"].shape == (len(probe.groups), len(probe.tasks), len(probe.tasks))
