"""The decoding benchmark measures candidates whose output is right, and only those; whatever fails is a row."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from mnmt_scale.bench import decode, decode_candidates
from mnmt_scale.bench.decode import bench_decode, random_case, run_case
from mnmt_scale.bench.decode_candidates import CANDIDATES, ours
from mnmt_scale.cli.main import app
from mnmt_scale.model import incremental
from tests.support.small_run import prepared_run

pytest.importorskip("transformers")


def quiet(line: str) -> None:
    """No log."""


@pytest.fixture(scope="module")
def case():
    return random_case("tiny", 300, 8, 8000)


def by_name(rows, metric="target tokens", dtype="fp32"):
    return {r["candidate"]: r for r in rows if r["metric"] == metric and r["settings"]["dtype"] == dtype}


def test_random_weights_beside_generate(monkeypatch):
    monkeypatch.setattr(decode, "GPU_ALONE", ())
    case = random_case("tiny", 300, 6, 400)
    rows = list(bench_decode(case, beams=(3,), dtypes=("fp32", "bf16"), repetitions=1, log=quiet))
    assert json.loads(json.dumps(rows)) == rows
    figures = {(r["settings"]["dtype"], r["case"].split()[-1], r["candidate"], r["metric"]): r for r in rows}
    for dtype, beam in (("fp32", "3"), ("bf16", "3")):
        mine, theirs, whole, third = (figures[dtype, beam, name, "target tokens"] for name in CANDIDATES)
        assert mine["value"] > 0
        assert theirs["value"] > 0
        if dtype == "fp32":
            assert {r["settings"]["equal_outputs"] for r in (mine, theirs, whole)} == {"6/6"}
            assert len(case.batches(3)) > 1, "one batch is another cut"
            assert mine["settings"]["log_prob"] == pytest.approx(theirs["settings"]["log_prob"], abs=1e-4)
        else:
            assert int(theirs["settings"]["equal_to_fp32"].split("/")[0]) >= 2
        assert mine["settings"]["target_tokens"] == sum(case.limits) - 6
        assert figures[dtype, beam, "mnmt_scale", "speed over hf-generate"]["value"] == pytest.approx(
            mine["value"] / theirs["value"], rel=1e-6
        )
        assert figures[dtype, beam, "mnmt_scale", "speed over hf-generate, one batch"]["value"] > 0
        assert third["value"] is None
        assert "trained runs" in third["settings"]["error"]


def test_a_run_beside_generate_and_ctranslate2(tmp_path):
    pytest.importorskip("ctranslate2")
    case = run_case(prepared_run(tmp_path), 5, "de-en", batch_tokens=77)
    assert case.config(2).batch_tokens == 77
    rows = list(bench_decode(case, beams=(1, 2), repetitions=1, log=quiet))
    for name in ("mnmt_scale", "hf-generate", "ctranslate2"):
        assert all(r["value"] > 0 for r in rows if r["candidate"] == name)
    measured = {r["candidate"]: r for r in rows if r["metric"] == "target tokens" and r["case"].endswith("beam 1")}
    assert set(measured) == {"mnmt_scale", "hf-generate", "ctranslate2"}
    assert {r["settings"]["equal_outputs"] for r in measured.values()} == {"5/5"}
    assert measured["mnmt_scale"]["settings"]["ends"] == "natural"


def test_the_probability_of_outputs_is_that_of_the_log_softmax(case):
    outputs = ours(case, torch.device("cpu"), "fp32", None)(1)
    scores = decode.mean_log_prob(case, outputs)
    worse = [[tokens[0], *[7] * (len(tokens) - 1)] for tokens in outputs]
    assert decode.mean_log_prob(case, worse) < scores - 1
    # by hand, for one sentence whose output ends by itself: </s> counts, the tag does not
    one = decode.Case("", case.opened, case.sources[:1], [9], case.task, True)
    decoder = incremental.Decoder(case.opened.model)
    state = incremental.DecodingState(decoder, torch.tensor(one.sources), torch.tensor([len(one.sources[0])]), 1)
    steps = [state.begin(torch.tensor([[2, one.tag]]))] + [state.step(torch.tensor([[t]])) for t in (50, 60)]
    expected = sum(float(logits[0].log_softmax(0)[t]) for logits, t in zip(steps, (50, 60, 2), strict=True)) / 3
    assert decode.mean_log_prob(one, [[50, 60]]) == pytest.approx(expected, abs=1e-4)


def test_a_candidate_with_other_output_is_reported_and_not_timed(case, monkeypatch):
    wrong = {"mnmt_scale": ours, "wrong": lambda *_: lambda beam: [[7]] * len(case.sources)}
    monkeypatch.setattr(decode, "CANDIDATES", wrong)
    for dtype in ("fp32", "bf16"):
        rows = list(bench_decode(case, beams=(2,), dtypes=(dtype,), repetitions=1, log=quiet))
        found = by_name(rows, dtype=dtype)
        assert found["wrong"]["value"] is None
        assert found["wrong"]["settings"]["error"].startswith("outputs differ from ours")
        assert found["mnmt_scale"]["value"] > 0
        assert [r["metric"] for r in rows] == ["target tokens"] * 2


def unordered(monkeypatch):
    step = incremental.DecodingState.step
    monkeypatch.setattr(incremental.DecodingState, "step", lambda self, t, p=None, out=None: step(self, t, None, out))


def padding_seen(monkeypatch):
    encode = incremental.Decoder.encode
    monkeypatch.setattr(incremental.Decoder, "encode", lambda self, *args: (encode(self, *args)[0], None))


def misplaced(monkeypatch):
    embed = incremental.Decoder.embed
    monkeypatch.setattr(incremental.Decoder, "embed", lambda self, ids, start: embed(self, ids, start + (start > 0)))


@pytest.mark.parametrize("damage", [unordered, padding_seen, misplaced])
def test_a_broken_decoder_of_ours_is_found_in_bf16(monkeypatch, damage):
    case = random_case("tiny", 300, 16, 8000)
    whole = ours(case, torch.device("cpu"), "fp32", None)(4)
    monkeypatch.setattr(decode, "_exact", lambda *_: whole)
    monkeypatch.setattr(decode, "CANDIDATES", {"mnmt_scale": ours})
    (row,) = bench_decode(case, beams=(4,), dtypes=("bf16",), repetitions=1, log=quiet)
    assert row["value"] > 0
    damage(monkeypatch)
    (row,) = bench_decode(case, beams=(4,), dtypes=("bf16",), repetitions=1, log=quiet)
    assert row["value"] is None
    assert "outputs" in row["settings"]["error"]


def test_ours_is_found_wrong_where_a_rival_is_more_probable(case, monkeypatch):
    monkeypatch.setattr(decode, "CANDIDATES", {name: CANDIDATES[name] for name in ("mnmt_scale", "hf-generate")})
    unordered(monkeypatch)
    found = by_name(bench_decode(case, beams=(4,), repetitions=1, log=quiet))
    assert found["mnmt_scale"]["value"] is None
    assert "less probable than others" in found["mnmt_scale"]["settings"]["error"]


def test_whoever_fails_is_a_row_and_the_others_go_on(case, monkeypatch):
    def runs_out(*_):
        def decode_it(beam):
            if beam > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nMore.")
            return ours(case, torch.device("cpu"), "fp32", None)(beam)

        return decode_it

    def cannot_start(*_):
        raise RuntimeError("no such kernel\nfor this device")

    def from_second_call(*_):
        decode_it, calls = ours(case, torch.device("cpu"), "fp32", None), []

        def decode_or_fail(beam):
            calls.append(beam)
            if len(calls) == 2:
                raise ValueError("second time")
            return decode_it(beam)

        return decode_or_fail

    others = {"out": runs_out, "unstarted": cannot_start, "later": from_second_call}
    monkeypatch.setattr(decode, "CANDIDATES", {"mnmt_scale": ours, **others})
    rows = list(bench_decode(case, beams=(3, 1), repetitions=2, log=quiet))
    three = {r["candidate"]: r for r in rows if r["case"].endswith("beam 3") and r["metric"] == "target tokens"}
    one = {r["candidate"]: r for r in rows if r["case"].endswith("beam 1") and r["metric"] == "target tokens"}
    assert three["mnmt_scale"]["value"] > 0
    assert three["out"]["settings"]["error"] == "out of memory: CUDA out of memory. Tried to allocate 1 GiB."
    assert three["later"]["settings"]["error"] == "ValueError: second time"
    assert one["out"]["value"] > 0
    assert one["later"]["value"] > 0
    assert [found["unstarted"]["settings"]["error"] for found in (three, one)] == ["RuntimeError: no such kernel"] * 2


def test_rounds_end_with_the_time(case, monkeypatch):
    monkeypatch.setattr(decode, "CANDIDATES", {"mnmt_scale": ours})
    (row,) = bench_decode(case, beams=(1,), repetitions=50, seconds=0.0, log=quiet)
    assert row["settings"]["repetitions"] == 1
    (row,) = bench_decode(case, beams=(1,), repetitions=2, seconds=1e9, log=quiet)
    assert row["settings"]["repetitions"] == 2


def test_a_rivals_gpu_that_is_not_there_is_said(case, monkeypatch):
    translator = pytest.importorskip("ctranslate2")
    monkeypatch.setattr(translator, "get_cuda_device_count", lambda: 0)
    natural = decode.Case("", case.opened, case.sources, case.limits, case.task, True)
    with pytest.raises(decode_candidates.Unavailable, match="sees no GPU"):
        decode_candidates.ctranslate2(natural, torch.device("cuda"), "fp32", None)


def test_the_verb_writes_what_there_is(case, monkeypatch, tmp_path):
    monkeypatch.setattr(decode, "CANDIDATES", {"mnmt_scale": ours})
    started = ["bench", "decode", "--preset", "tiny", "--vocabulary-size", "300", "--sentences", "3", "--repetitions", "1"]
    place = ["--device", "cpu", "--out", str(tmp_path), "--dtype", "bf16", "--batch-tokens", "100"]
    assert CliRunner().invoke(app, [*started, *place]).exit_code == 0
    rows = json.loads((tmp_path / "decode.json").read_text())["rows"]
    assert [r["settings"]["dtype"] for r in rows] == ["bf16", "bf16"]
    result = CliRunner().invoke(app, [*started, *place, "--dtype", "fp8"])
    assert result.exit_code != 0
