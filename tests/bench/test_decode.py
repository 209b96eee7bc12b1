"""The decoding benchmark measures candidates that give the same output, and only those."""

from __future__ import annotations

import pytest

from mnmt_scale.bench import decode
from mnmt_scale.bench.decode import bench_decode, random_case, run_case
from tests.support.small_run import prepared_run

pytest.importorskip("transformers")


def quiet(line: str) -> None:
    """No log."""


def test_random_weights_beside_generate():
    case = random_case("tiny", 300, 6, 400)
    rows = bench_decode(case, beams=(3, 1), repetitions=1, log=quiet)
    figures = {(r["case"].split()[-1], r["candidate"], r["metric"]): r for r in rows}
    for beam in ("3", "1"):
        ours, theirs = (figures[beam, name, "target tokens"] for name in ("mnmt_scale", "hf-generate"))
        assert ours["value"] > 0
        assert theirs["value"] > 0
        assert ours["settings"]["equal_outputs"] == theirs["settings"]["equal_outputs"] == "6/6"
        assert ours["settings"]["target_tokens"] == sum(case.limits) - 6
        assert figures[beam, "mnmt_scale", "speed over hf-generate"]["value"] == pytest.approx(
            ours["value"] / theirs["value"], rel=1e-6
        )


def test_a_run_beside_generate_and_ctranslate2(tmp_path):
    pytest.importorskip("ctranslate2")
    rows = bench_decode(run_case(prepared_run(tmp_path), 5, "de-en"), beams=(1, 2), repetitions=1, log=quiet)
    for name in ("mnmt_scale", "hf-generate", "ctranslate2"):
        assert all(r["value"] > 0 for r in rows if r["candidate"] == name)
    measured = {r["candidate"]: r for r in rows if r["metric"] == "target tokens" and r["case"].endswith("beam 1")}
    assert set(measured) == {"mnmt_scale", "hf-generate", "ctranslate2"}
    assert {r["settings"]["equal_outputs"] for r in measured.values()} == {"5/5"}
    assert measured["mnmt_scale"]["settings"]["ends"] == "natural"


def test_a_candidate_with_other_output_is_reported_and_not_timed(monkeypatch):
    case = random_case("tiny", 300, 4, 400)
    ours = decode._ours(case)
    monkeypatch.setattr(decode, "_candidates", lambda *_: {"mnmt_scale": ours, "wrong": lambda beam: [[7]] * 4})
    rows = {r["candidate"]: r for r in bench_decode(case, beams=(2,), repetitions=1, log=quiet)}
    assert rows["wrong"]["value"] is None
    assert rows["wrong"]["settings"]["error"] == "outputs differ from ours"
    assert rows["mnmt_scale"]["value"] > 0
