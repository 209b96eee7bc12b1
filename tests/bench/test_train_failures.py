"""``mnmt bench train``: who runs out of memory or time, or cannot compile, is a row, and the others go on."""

import signal
from contextlib import suppress

import pytest
import torch

from mnmt_scale.bench import train_candidates
from mnmt_scale.bench.gemm_rate import GemmRate
from mnmt_scale.bench.kernel_case import Unavailable
from mnmt_scale.bench.timing import TooLong, time_limit
from mnmt_scale.bench.train_candidates import BareModel, HuggingFace
from mnmt_scale.bench.train_cases import CompileTime
from mnmt_scale.bench.train_data import (
    equal_batches,
)
from tests.support.train_contest import BUDGET, CPU, OURS, RIVAL, SMALL, SPEED, V, by_name, cases, contest


@pytest.mark.parametrize("fails_at", [1, 5])
def test_a_rival_without_memory_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, fails_at):
    pytest.importorskip("transformers")
    calls = []

    def update(self, batch):
        calls.append(batch)
        if len(calls) == fails_at:
            raise torch.OutOfMemoryError("Tried to allocate 90 GiB.\nmore")

    monkeypatch.setattr(HuggingFace, "update", update)
    found = by_name(list(contest(tmp_path).rows(cases())))
    failed = found["real text", f"{RIVAL}, sorted by length", SPEED]
    assert failed["value"] is None
    assert failed["settings"]["error"] == "out of memory: Tried to allocate 90 GiB."
    assert found["real text", OURS, SPEED]["value"] > 0
    assert found["equal lengths", f"{RIVAL}, no padding", SPEED]["value"] > 0
    assert ("real text", OURS, f"speed over {RIVAL}, sorted by length") not in found


def test_nothing_is_left_of_an_update_that_failed():
    batch = equal_batches(V, BUDGET, 12, 1)[0]
    model = BareModel(SMALL, V, torch.float32, CPU)
    for p in model.model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    model.update(model.ready(batch))
    assert all(bool(p.isfinite().all()) for p in model.model.parameters())
    assert all(p.grad is None for p in model.model.parameters())


def test_products_without_memory_cost_only_their_share(tmp_path, monkeypatch):
    def run(self):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(GemmRate, "run", run)
    found = by_name(list(contest(tmp_path, ["model"]).rows(cases()[:1])))
    assert found["real text", "matrix products of the model's shapes", "rate"]["settings"]["error"].startswith("out of memory")
    assert found["real text", OURS, SPEED]["value"] > 0
    assert ("real text", OURS, "share of matrix-product rate") not in found


def test_broken_joeynmt_is_a_failed_row(tmp_path):
    rows = list(contest(tmp_path, ["joeynmt"], joeynmt="/nonexistent/python").rows(cases()[1:]))
    assert rows[-1]["value"] is None
    assert "nonexistent" in rows[-1]["settings"]["error"]


def test_compiled_rivals_come_after_the_others_and_ours_stand_once(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    asked = []

    def compiled(function, device, *, dynamic):
        asked.append(dynamic)
        return function

    monkeypatch.setattr(train_candidates, "compiled", compiled)
    rows = list(contest(tmp_path, compile_time=CompileTime(100.0)).rows(cases()))
    found = by_name(rows)
    assert asked == [True, False]
    names = [r["candidate"] for r in rows if r["candidate"].startswith(RIVAL) and r["metric"] == SPEED]
    kinds = ["{}, sorted by length", "{}, no padding", "{} compiled, sorted by length", "{} compiled, no padding"]
    assert names == [kind.format(RIVAL) for kind in kinds] + [f"{RIVAL}, padded as drawn"]
    assert found["real text", OURS, f"speed over {RIVAL} compiled, sorted by length"]["value"] > 0
    assert found["equal lengths", f"{RIVAL} compiled, no padding", "compile time"]["unit"] == "s"


def test_compiling_ends_with_its_time(tmp_path, monkeypatch):
    pytest.importorskip("transformers")

    def endless(*_, **__):
        while True:
            with suppress(Exception):  # as compilers do
                sum(range(1000))

    monkeypatch.setattr(train_candidates, "compiled", endless)
    before = signal.getsignal(signal.SIGALRM)
    found = by_name(list(contest(tmp_path, compile_time=CompileTime(0.05)).rows(cases())))
    errors = [found[case.name, f"{RIVAL} compiled, {padding}", SPEED]["settings"]["error"] for case, padding in
              zip(cases(), ("sorted by length", "no padding"), strict=True)]  # fmt: skip
    assert errors == ["compiling took longer than 0 s", "not compiled: the time for compiling is used up"]
    assert found["real text", f"{RIVAL}, padded as drawn", SPEED]["value"] > 0
    assert signal.getsignal(signal.SIGALRM) is before


def test_without_a_compiler_a_row_says_so(tmp_path, monkeypatch):
    pytest.importorskip("transformers")

    def compiled(*_, **__):
        raise Unavailable("torch.compile needs triton")

    monkeypatch.setattr(train_candidates, "compiled", compiled)
    found = by_name(list(contest(tmp_path, compile_time=CompileTime(9.0)).rows(cases()[1:])))
    assert found["equal lengths", f"{RIVAL} compiled, no padding", SPEED]["settings"]["error"] == "torch.compile needs triton"


def test_a_time_limit_leaves_other_timers_alone():
    left = signal.setitimer(signal.ITIMER_REAL, 500.0)
    try:
        with pytest.raises(TooLong, match="this took longer"), time_limit(0.01, "this"):
            signal.pause()
        with time_limit(None, "that"), time_limit(100.0, "that"):
            pass
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
