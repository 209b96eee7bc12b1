"""``mnmt bench train --method``: every row is there, the figures follow from the seconds, the bounds are judged. No speed."""

import math
from pathlib import Path

import pytest
import torch

from mnmt_scale.bench import method_cost
from mnmt_scale.bench.method_cost import OBSERVED_BOUND, bench_methods, judged, mix, mixes, paired, report, verdicts
from mnmt_scale.bench.method_memory import bound_bytes, peak_bytes
from mnmt_scale.bench.method_steps import NAMES, PLAIN, Trainee, Variant
from mnmt_scale.bench.method_text import largest, text_of
from mnmt_scale.bench.table import row
from mnmt_scale.bench.train_data import prepared
from mnmt_scale.data.store import TokenStore
from mnmt_scale.errors import MnmtError
from mnmt_scale.methods.catalog import METHODS
from mnmt_scale.methods.spec import Facts
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.transformer import Transformer
from tests.support.corpora import write_tree

PAIRS = {"de-en": 120, "en-fr": 60, "en-ru": 60}
MODEL = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "d_ffn": 32, "heads": 2}
SMALL = {"vocabulary_size": 400, "budget": 256, "rounds": 2, "dtypes": ("fp32",), "device": "cpu"}
FACTS = Facts(("de-en", "fr-en", "ru-en"), (0.4, 0.3, 0.3), 3, 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("bench") / "tree", PAIRS)


@pytest.fixture(scope="module")
def trainee(corpus, tmp_path_factory):
    found = Trainee(prepared(corpus, tmp_path_factory.mktemp("store"), 400), MODEL, 8, "fp32", 256, batches=3)
    yield found
    found.close()


def observed_row(ratios, **settings):
    return row("train-methods", "text, K = 4", "cats, observed step, segmented", "times a plain step", ratios, "x", **settings)


def test_the_mix_of_plain_and_observed_steps_by_hand():
    assert mix(1.3, 10) == pytest.approx(1.03)
    assert mix(2.0, 100) == pytest.approx(1.01)
    assert mix(1.7, 1) == pytest.approx(1.7)


def test_ratios_are_of_the_same_round():
    assert paired([2.0, None, 9.0], [1.0, 5.0, 3.0]) == [2.0, 3.0]


def test_mixes_have_the_interval_of_the_ratios_and_their_bounds():
    cats = Variant.of("cats", {}, FACTS)
    found = {r["candidate"]: r for r in mixes("text", cats, [1.1, 1.2, 1.6], {"dtype": "fp32"})}
    ten, hundred = found["cats, m = 10"], found["cats, m = 100"]
    assert ten["value"] == pytest.approx(1.02)
    assert (ten["settings"]["bound"], ten["settings"]["met"]) == (1.05, "yes")
    assert ten["p80"] == pytest.approx((9 + 1.2 + 0.6 * 0.4) / 10)
    assert hundred["value"] == pytest.approx(1.002)
    assert hundred["settings"]["bound"] == 1.01
    assert "99 plain + 1 observed" in hundred["metric"]


def test_a_method_that_always_observes_has_no_mix():
    current = Variant.of("gramian", {"weights": "current"}, FACTS)
    assert (current.period, current.request.gram, current.only_gram) == (1, "first", False)
    assert mixes("text", current, [1.5], {}) == []
    lagged = Variant.of("gramian", {"weights": "lagged"}, FACTS)
    assert lagged.name != current.name


@pytest.mark.parametrize(
    ("ratios", "met", "line"),
    [
        ([1.2, 1.25, 1.29], "yes", "met: "),
        ([1.2, 1.29, 1.5], "yes", "met, p80 above it: "),
        ([1.2, 1.31, 1.4], "no", "missed: "),
        ([OBSERVED_BOUND] * 3, "yes", "met: "),
    ],
)
def test_a_bound_is_judged_by_the_median(ratios, met, line):
    r = judged(observed_row(ratios, dtype="fp32"), OBSERVED_BOUND)
    assert r["settings"]["met"] == met
    (said,) = verdicts([r])
    assert said.startswith(line)
    assert "bound 1.3 x" in said
    assert said in report([r])


def test_what_has_no_bound_or_no_figure_is_not_judged():
    assert verdicts([observed_row([9.0]), judged(observed_row(None), 1.3), judged(observed_row([9.0]), None)]) == []


def test_memory_bound_by_hand():
    model = Transformer(ModelConfig(**MODEL), 60)
    table, largest = 60 * 16, 16 * 32 + 32  # fc1: 16 x 32 and a bias of 32; fc2's bias has 16
    assert bound_bytes(model, 3, torch.float32) == 3 * (table + largest) * 4
    assert bound_bytes(model, 8, torch.bfloat16) == 8 * (table + largest) * 2


def test_peak_counts_every_allocation_that_lives_at_once():
    held = []

    def call():
        first = torch.ones(1 << 20)  # 4 MiB
        del first
        second, third = torch.ones(1 << 19), torch.ones(2 << 20)  # 2 + 8 MiB
        held.append(torch.ones(1 << 18))  # 1 MiB
        return second, third

    assert peak_bytes(torch.device("cpu"), call) / 2**20 == pytest.approx(11, abs=0.01)
    assert len(held) == 2, "one call untracked, one tracked"


def test_memory_of_a_step_is_counted_not_sampled(trainee):
    (cats,) = trainee.variants("cats")
    device, batches = torch.device("cpu"), trainee.batches[0]
    for step in (lambda: trainee.plain(batches), lambda: trainee.observed(cats, "segmented", batches)):
        peaks = {peak_bytes(device, step) for _ in range(2)}
        assert len(peaks) == 1, "two equal steps"
        assert peaks.pop() > 4 * 400 * 16, "less than the gradient of the table alone"


def test_all_kinds_of_steps_take_turns_on_the_same_batches(trainee):
    assert trainee.num_tasks == 3
    assert all(len(step) == 1 and len(step[0].tasks) == 3 for step in trainee.batches)
    kinds = trainee.kinds([v for name in ("cats", "gramian") for v in trainee.variants(name)], rare=3)
    seen = []
    for kind in kinds:
        kind.take = lambda batches, take=kind.take, name=kind.name: (seen.append((name, batches[0].step)), take(batches))[1]
    seconds = trainee.in_turns(kinds, 4)
    assert [len([s for s in seconds[k.name] if s]) for k in kinds] == [2 if k.route == "per_task" else 4 for k in kinds]
    for number in range(-1, 4):
        assert (PLAIN, trainee.batches[number % 3][0].step) in seen
    assert len({name for name, _ in seen}) == len(kinds) == 1 + 2 * 3


def test_every_method_can_be_measured(trainee):
    for name in NAMES:
        for variant in trainee.variants(name):
            for kind in trainee.kinds([variant])[1:]:
                kind.take(trainee.batches[0])
    assert set(NAMES) == set(METHODS) - {"joint", "affinity", "ftac"}


def test_a_training_observes_as_its_schedule_says(trainee, monkeypatch):
    (cats,) = trainee.variants("cats")
    grams = []
    update = trainee.learner.update
    monkeypatch.setattr(trainee.learner, "update", lambda *a, gram="", **k: (grams.append(gram), update(*a, gram=gram, **k))[1])
    joint, method = trainee.trainings(cats, 2)
    assert len(joint) == len(method) == 2
    assert len(grams) == 4 * cats.period
    assert sum(g == "beside" for g in grams) == 2


def test_rows_of_a_small_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(method_cost, "SIZES", MODEL)
    rows = list(bench_methods(["cats", "gramian"], data=corpus, tasks=(2, 8, 16), work=tmp_path, **SMALL))
    assert [r["case"] for r in rows if r["candidate"] == PLAIN and r["metric"] == "time"] == ["tree, K = 2", "tree, K = 3"]
    found = {(r["case"][-1], r["candidate"], r["metric"]): r for r in rows}
    assert len(found) == len(rows)
    observed = {c for k, c, m in found if k == "2" and m == "times a plain step"}
    assert len(observed) == 2 * 3  # cats, gramian at this step's and at the last Gram; two routes
    bounded = {(c, m): r["settings"]["bound"] for (k, c, m), r in found.items() if k == "2" and "bound" in r["settings"]}
    segmented = ("cats, observed step, segmented", "times a plain step")
    assert bounded[segmented] == 1.3
    assert bounded["cats, m = 10", "training over joint (9 plain + 1 observed)"] == 1.05
    assert bounded["cats, m = 10", "training over joint (20 steps timed)"] == 1.05
    assert bounded["cats, m = 100", "training over joint (99 plain + 1 observed)"] == 1.01
    table, largest = 400 * 16, 16 * 32 + 32
    assert bounded["cats, observed step, segmented", "peak above a plain step's"] == round(2 * (table + largest) * 4 / 2**20, 1)
    ratio = found["2", *segmented]
    mixed = found["2", "cats, m = 10", "training over joint (9 plain + 1 observed)"]
    assert mixed["value"] == pytest.approx((9 + ratio["value"]) / 10)
    assert all(r["value"] is not None and math.isfinite(r["value"]) for r in rows)
    assert ("3", "cats, m = 10", "training over joint (20 steps timed)") not in found  # timed directly at the first K alone
    assert len(verdicts(rows)) == sum("bound" in r["settings"] for r in rows)


def test_unknown_method_names_the_nearest():
    with pytest.raises(MnmtError, match="E102.*catz.*'cats'"):
        list(bench_methods(["catz"]))
    with pytest.raises(MnmtError, match="E102"):
        list(bench_methods(["joint"]))


def test_a_method_that_fails_is_a_row_and_the_others_go_on(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(method_cost, "SIZES", MODEL)
    made, closed, take = [], [], Trainee.observed

    def observed(self, variant, route, batches):
        if variant.name == "gradnorm":
            raise torch.OutOfMemoryError("CUDA out of memory\nwith a second line")
        take(self, variant, route, batches)

    init, close = Trainee.__init__, Trainee.close
    monkeypatch.setattr(Trainee, "observed", observed)
    monkeypatch.setattr(Trainee, "__init__", lambda self, *a, **k: (made.append(self), init(self, *a, **k))[1])
    monkeypatch.setattr(Trainee, "close", lambda self: (closed.append(self), close(self))[1])
    rows = bench_methods(["cats", "gradnorm", "chi_ibr"], data=corpus, tasks=(2,), work=tmp_path, **SMALL)
    first = [next(rows) for _ in range(3)]
    assert [(r["candidate"], r["metric"]) for r in first[:2]] == [(PLAIN, "time"), (PLAIN, "target tokens")]
    assert first[2]["candidate"] == "cats, observed step, segmented", "given before the next method is measured"
    assert len(made) == 1
    rows = [*first, *rows]
    (failed,) = [r for r in rows if r["value"] is None]
    assert (failed["case"], failed["candidate"]) == ("tree, K = 2", "gradnorm")
    assert failed["settings"]["error"] == "OutOfMemoryError: CUDA out of memory"
    assert [r["metric"] for r in rows if r["candidate"].startswith("chi_ibr")] == ["times a plain step"]
    assert len(made) == 2, "an engine that was interrupted in a step is not used again"
    assert made == closed
    assert "failed" in report(rows)


def test_a_model_that_cannot_be_built_is_a_row(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(method_cost, "SIZES", {**MODEL, "heads": 3})  # 16 is no multiple of 6
    rows = list(bench_methods(["cats", "gramian"], data=corpus, tasks=(2,), work=tmp_path, **SMALL))
    assert [(r["candidate"], r["value"]) for r in rows] == [("cats", None), ("gramian", None)]


def test_seconds_leave_out_what_is_slow(trainee, monkeypatch):
    variants = [v for name in ("cats", "multidds") for v in trainee.variants(name)]
    cost = {"cats, observed step, segmented": 1.0, "cats, observed step, per_task": 3.0, PLAIN: 1.0}
    kinds = trainee.kinds(variants, rare=3)
    taken = []
    for kind in kinds:
        kind.take = lambda batches, name=kind.name: taken.append(name)
    monkeypatch.setattr(trainee, "seconds", lambda call: (call(), cost.get(taken[-1], 50.0))[1])
    seconds = trainee.in_turns(kinds, 20, 40.0)  # 10 for each of the four kinds
    count = {name: len([s for s in found if s]) for name, found in seconds.items()}
    multidds = next(k.name for k in kinds if k.variant and k.variant.name == "multidds")
    # per_task: rounds 0, 3 and 6 are within its share, 9 is not; the slow one is measured twice all the same
    assert count == {PLAIN: 10, "cats, observed step, segmented": 10, "cats, observed step, per_task": 3, multidds: 2}
    assert {len(found) for found in seconds.values()} == {10}
    assert len(trainee.in_turns(kinds, 5)[multidds]) == 5


def test_stretches_of_steps_keep_to_the_seconds():
    assert method_cost._blocks(10, 10, 0.1, None) == 3
    assert method_cost._blocks(10, 10, 0.1, 4.0) == 2
    assert method_cost._blocks(10, 10, 9.0, 4.0) == 1


def test_a_larger_vocabulary_has_rows_that_no_text_uses(corpus, tmp_path):
    data, text = text_of(corpus, None, tmp_path, 400, None, lambda line: None)
    assert (text, data.tasks) == ("tree", None)
    found = Trainee(data, MODEL, 2, "fp32", 256, batches=1, device="cpu", vocabulary_size=700)
    try:
        assert found.learner.engine.module.shared.weight.shape == (700, 16)
        found.plain(found.batches[0])
    finally:
        found.close()
    with pytest.raises(MnmtError, match="E102.*300.*400"):
        text_of(None, Path(data.store), tmp_path, 300, None, lambda line: None)


def test_a_store_is_taken_as_it_is(corpus, tmp_path):
    store = Path(prepared(corpus, tmp_path, 400).store)
    data, text = text_of(None, store, tmp_path / "work", None, 2, lambda line: None)
    assert (Path(data.store), text) == (store, "store-400")
    assert data.tasks == ["de-en", "fr-en"], "most text first, as many as asked for, in the store's order"
    assert largest(TokenStore.open(store), 9) == ["de-en", "fr-en", "ru-en"]


def test_bounds_of_a_gpu_are_its_own():
    cats = Variant.of("cats", {}, FACTS)
    found = {r["candidate"]: r["settings"] for r in mixes("text", cats, [1.4], {"device": "cuda"})}
    assert (found["cats, m = 10"]["bound"], found["cats, m = 10"]["met"]) == (1.03, "no")
