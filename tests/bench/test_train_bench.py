"""``mnmt bench train``: the same sentences for everybody, rows that can be read, and nobody's failure but his own. No speed."""

import re
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from mnmt_scale.bench import train, train_candidates
from mnmt_scale.bench.estimate import parameter_count
from mnmt_scale.bench.gemm_rate import GemmRate
from mnmt_scale.bench.table import markdown, row
from mnmt_scale.bench.timing import Clock
from mnmt_scale.bench.train_candidates import BareModel, Candidate, HuggingFace, Trainer, hugging_face_config
from mnmt_scale.bench.train_cases import Contest
from mnmt_scale.bench.train_data import (
    as_words,
    equal_batches,
    joeynmt_batches,
    padded_as_drawn,
    padded_by_length,
    prepared,
    real_batches,
    sentences_of,
)
from mnmt_scale.cli.bench import app
from mnmt_scale.data.store import TokenStore
from mnmt_scale.errors import MnmtError
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.flops import training_flops
from tests.support.corpora import write_tree
from tests.support.train_contest import BUDGET, CPU, OURS, RIVAL, SMALL, SPEED, V, as_set, by_name, cases, contest, text, unpad


@pytest.mark.parametrize("cut", [padded_as_drawn, lambda b: padded_by_length(b, BUDGET)])
def test_padded_batches_hold_exactly_our_sentences(cut):
    batches = text()
    theirs = cut(batches)
    expected = as_set((s, labels[1:]) for s, _, labels in sentences_of(batches))
    assert as_set(unpad(theirs)) == expected
    assert sum(b.tokens for b in theirs) == sum(sum(b.step_tokens) for b in batches)


def test_sorted_batches_keep_the_budget():
    for batch in padded_by_length(text(), BUDGET):
        assert max(batch.inputs["input_ids"].numel(), batch.inputs["labels"].numel()) <= BUDGET


def test_joeynmt_gets_our_words_by_its_own_rule():
    batches = text()
    words = joeynmt_batches(batches, BUDGET)
    expected = sorted((tuple(s[:-1].tolist()), tuple(y[1:-1].tolist())) for s, _, y in sentences_of(batches))
    assert sorted((tuple(s), tuple(t)) for part in words for s, t in part) == expected
    assert sorted((tuple(s), tuple(t)) for part in as_words(padded_as_drawn(batches)) for s, t in part) == expected
    for part in words[:-1]:
        longest = [max(max(len(s) + 1, len(t) + 2) for s, t in part[:n]) * n for n in (len(part) - 1, len(part)) if n]
        assert longest[-1] >= BUDGET
        assert len(longest) == 1 or longest[0] < BUDGET


def test_products_are_the_formula_without_attention():
    clock, batch = Clock(CPU, flush=False), equal_batches(V, BUDGET, 12, 1)[0]
    products = GemmRate(SMALL, V, [batch], torch.float32, clock)
    attention = 4 * (12 * 12 * 16 * 2) + 4 * (12 * 13 // 2 + 12 * 12) * 16 * 2
    assert training_flops(SMALL, V, batch) - products.flops == 6 * attention
    assert products.run() > 0
    assert GemmRate(SMALL, V, [batch, *text()], torch.float32, clock).flops == products.flops + sum(
        GemmRate(SMALL, V, [b], torch.float32, clock).flops for b in text()
    )


def test_a_store_that_is_there_is_used_as_it_is(tmp_path):
    tree = write_tree(tmp_path / "tree", {"de-en": 60, "en-fr": 60})
    made = prepared(tree, tmp_path, 400)
    store = TokenStore.open(made.store)
    again = prepared(tmp_path / "no such tree", tmp_path / "nowhere", 9999, TokenStore.open(made.store).path)
    assert (again.store, again.max_tokens) == (made.store, made.max_tokens)
    assert again.tasks == store.report["tasks"] == ["de-en", "fr-en"]
    assert not (tmp_path / "nowhere").exists()
    first, second = (real_batches(data, 256, 2) for data in (made, again))
    assert all(torch.equal(a.source_ids, b.source_ids) for a, b in zip(first, second, strict=True))
    with pytest.raises(MnmtError, match=r"E102.*smaller than the text's vocabulary of 400.*--vocabulary-size"):
        list(train.bench_train(store=store.path, vocabulary_size=399, device="cpu"))
    with pytest.raises(MnmtError, match="E303"):
        prepared(tree, tmp_path, 400, tmp_path / "empty")


def test_one_table_of_two_models_larger_than_the_text(tmp_path, monkeypatch):
    tree = write_tree(tmp_path / "tree", {"de-en": 60, "en-fr": 60})
    store = prepared(tree, tmp_path, 400).store
    monkeypatch.setattr(train, "SIZES", SMALL.model_dump(exclude={"preset"}))
    rows = list(
        train.bench_train(
            store=train.Path(store), presets=[None, "tiny"], vocabulary_size=450, budget=128, batches=2, rounds=1,
            dtypes=["fp32"], device="cpu", candidates=["model"],
        )
    )  # fmt: skip
    speeds = [r for r in rows if r["metric"] == SPEED]
    assert [(r["settings"]["preset"], r["settings"]["width"]) for r in speeds] == [("", "16/32")] * 2 + [
        ("tiny", "128/512")
    ] * 2
    assert {r["settings"]["vocabulary"] for r in rows} == {450}
    assert [r["case"].split(" (")[0] for r in speeds] == ["real text", "equal lengths"] * 2


@pytest.mark.parametrize("preset", ["ted", "m2m418"])
def test_hugging_faces_model_has_the_same_parameters(preset):
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(preset=preset)
    with torch.device("meta"):
        rival = transformers.M2M100ForConditionalGeneration(hugging_face_config(config, 128_112))
    assert sum(p.numel() for p in rival.parameters()) == parameter_count(config, 128_112)


def test_rows_of_a_small_run(tmp_path):
    pytest.importorskip("transformers")
    real, equal = cases()
    rows = list(contest(tmp_path, ("model", "huggingface", "joeynmt"), rounds=3, peak_rate=1e9).rows([real, equal]))
    found = by_name(rows)
    for case, padding in ((real, "sorted by length"), (equal, "no padding"), (real, "padded as drawn")):
        ours, theirs = found[case.name, OURS, SPEED], found[case.name, f"{RIVAL}, {padding}", SPEED]
        assert ours["value"] > 0
        assert theirs["value"] > 0
        over = found[case.name, OURS, f"speed over {RIVAL}, {padding}"]
        assert over["unit"] == "x"
        if padding != "padded as drawn":  # which has rounds of its own
            lowest, highest = ours["p20"] / theirs["p80"], ours["p80"] / theirs["p20"]
            assert 0.5 * lowest < over["value"] < 2 * highest
    assert found[real.name, OURS, "share of matrix-product rate"]["unit"] == "%"
    flops, tokens = sum(training_flops(SMALL, V, b) for b in real.batches), sum(sum(b.step_tokens) for b in real.batches)
    for name in (OURS, f"{RIVAL}, sorted by length"):
        mfu = found[real.name, name, "MFU"]
        assert mfu["value"] == pytest.approx(100 * flops / 1e9 * found[real.name, name, SPEED]["value"] / tokens)
    assert found[real.name, "JoeyNMT", SPEED]["value"] is None
    assert "not installed" in markdown(rows)
    assert not any(r["metric"] in ("peak memory", "compile time") for r in rows)


def test_ratios_are_those_of_each_round(tmp_path):
    mine, rival = Candidate(OURS, [], 10), Candidate("rival", [], 20)
    mine.seconds, rival.seconds = [1.0, 2.0, 4.0], [1.0, 8.0, 4.0]
    only = contest(tmp_path)._speeds(cases()[0], [mine], [rival], {})
    assert [(r["value"], r["p20"]) for r in only] == [(0.5, pytest.approx(0.5))]
    mine.seconds, rival.seconds = [1.0, 1.0, 1.0], [1.0, 8.0, 4.0]
    assert next(iter(contest(tmp_path)._speeds(cases()[0], [mine], [rival], {})))["value"] == 2.0
    rival.problem = "it broke"
    assert not list(contest(tmp_path)._speeds(cases()[0], [mine], [rival], {}))


@pytest.mark.parametrize(("stop_at", "rounds"), [(5, 1), (4, 0), (2, 0)])
def test_who_is_stopped_gives_the_rounds_that_are_whole(tmp_path, monkeypatch, stop_at, rounds):
    attempts, attempt = [], Contest._attempt  # each candidate begins, then they take turns

    def stopped(self, candidate, call):
        attempts.append(candidate.name)
        if len(attempts) == stop_at:
            raise KeyboardInterrupt
        attempt(self, candidate, call)

    monkeypatch.setattr(Contest, "_attempt", stopped)
    rows, measured = [], contest(tmp_path, rounds=3).rows(cases())
    with pytest.raises(KeyboardInterrupt):
        deque(map(rows.append, measured))
    speeds = {r["candidate"]: r for r in rows if r["metric"] == SPEED}
    assert OURS in speeds
    assert len(speeds) == 2
    assert all((r["value"] is not None) == bool(rounds) for r in speeds.values())
    assert all(r["settings"]["rounds"] == rounds for r in speeds.values())


def test_ours_take_sentences_as_a_training_would_hand_them_over():
    batch = text()[0]
    assert BareModel(SMALL, V, torch.float32, CPU).ready(batch).buckets is not None
    packed = SMALL.model_copy(update={"attention": "packed"})
    assert BareModel(packed, V, torch.float32, CPU).ready(batch).buckets is None


def test_a_mask_that_hides_nothing_is_left_out(monkeypatch):
    pytest.importorskip("transformers")
    rival = HuggingFace(SMALL, V, torch.float32, CPU)
    rival.model.eval()
    full, ragged = padded_as_drawn(equal_batches(V, BUDGET, 12, 1))[0], padded_as_drawn(text())[0]
    assert "attention_mask" not in rival.ready(full).inputs
    assert rival.ready(ragged).inputs.keys() == ragged.inputs.keys()
    torch.testing.assert_close(rival._loss(rival.ready(full).inputs), rival._loss(full.inputs))
    monkeypatch.setattr(train_candidates, "compiled", lambda function, device, dynamic: function)
    many_shapes = HuggingFace(SMALL, V, torch.float32, CPU, compiling="dynamic")  # one without it would be compiled again
    assert "attention_mask" in many_shapes.ready(full).inputs


def test_memory_is_what_stays_and_the_peak_of_the_largest_update(monkeypatch):
    class Fake(Trainer):
        updates: list

        def __init__(self):
            self.updates = []

        def ready(self, batch):
            return batch

        def update(self, batch):
            self.updates.append(batch)

    batches, trainer = text(), Fake()
    allocated = iter([1000, 1700, 9999])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    monkeypatch.setattr(train_candidates, "peak_extra_bytes", lambda device, call: (30, call()))
    clock = SimpleNamespace(device=torch.device("cuda"), time=lambda call: (2.0, call()))
    first, second = (Candidate(name, batches, 1, lambda: trainer) for name in "ab")
    first.begin(clock)
    assert (first.peak_bytes, first.first_seconds) == (730, 2.0)
    largest = max(batches, key=lambda b: b.source_ids.numel() + b.target_in.numel())
    assert [id(b) for b in trainer.updates] == [id(b) for b in [*batches, largest]]
    second.begin(clock)
    assert second.peak_bytes == 730


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "x", "--store", "y"], "E104.*--data and --store exclude each other"),
        (["--method", "cats", "--data", "x", "--store", "y"], "E104.*--data and --store exclude each other"),
        (["--method", "cats", "--preset", "ted", "--preset", "big"], "E104.*several --preset and --method"),
        (["--preset", "bas"], "E102.*'bas'.*--preset.*base"),
        (["--device", "tpu"], "E102.*'tpu'"),
    ],
)
def test_options_that_cannot_be(options, said):
    result = CliRunner().invoke(app, ["train", *options])
    assert isinstance(result.exception, MnmtError)
    assert re.search(said, str(result.exception))


def test_options_arrive(tmp_path, monkeypatch):
    given = {}

    def bench_train(**options):
        given.update(options)
        yield row("train", "a", "b", "c", 1.0, "s")
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "bench_train", bench_train)
    words = "train --preset base --preset big --store s --vocabulary-size 64000 --batch-tokens 32768 --dtype bf16 --device cpu"
    CliRunner().invoke(app, [*words.split(), "--compile", "--compile-seconds", "40", "--rounds", "7", "--out", str(tmp_path)])
    wanted = {"presets": ["base", "big"], "vocabulary_size": 64000, "budget": 32768, "dtypes": ["bf16"], "rounds": 7}
    assert (
        given.items() >= (wanted | {"device": "cpu", "compile_seconds": 40.0, "store": train.Path("s"), "data": None}).items()
    )
    assert (tmp_path / "train.json").exists()
    CliRunner().invoke(app, ["train", "--out", str(tmp_path)])
    assert given.items() >= {"presets": [None], "vocabulary_size": None, "compile_seconds": 0.0}.items()
