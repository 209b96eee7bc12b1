"""``mnmt bench train``: the same sentences for everybody, and rows that can be read."""

import pytest
import torch

from mnmt_scale.bench.gemm_rate import GemmRate
from mnmt_scale.bench.table import markdown
from mnmt_scale.bench.train import _Run
from mnmt_scale.bench.train_data import (
    as_words,
    equal_batches,
    joeynmt_batches,
    padded_as_drawn,
    padded_by_length,
    sentences_of,
)
from mnmt_scale.flow import IGNORE
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.flops import training_flops
from tests.support.batches import batch_of, random_lengths

V, BUDGET = 60, 48
SMALL = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=16, d_ffn=32, heads=2)


def text():
    return [batch_of(random_lengths(9, tasks=2, seed=i), tasks=2, vocabulary=V, seed=i) for i in range(3)]


def as_set(sentences):
    return sorted((tuple(s.tolist()), tuple(t.tolist())) for s, t, *_ in sentences)


def unpad(batches):
    for b in batches:
        for ids, mask, labels in zip(b.inputs["input_ids"], b.inputs["attention_mask"], b.inputs["labels"], strict=True):
            yield ids[mask.bool()], labels[labels != IGNORE]


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
    batch = equal_batches(V, BUDGET, 12, 1)[0]
    products = GemmRate(SMALL, V, batch, torch.float32)
    attention = 4 * (12 * 12 * 16 * 2) + 4 * (12 * 13 // 2 + 12 * 12) * 16 * 2
    assert training_flops(SMALL, V, batch) - products.flops == 6 * attention
    assert products.run() > 0


def test_rows_of_a_small_run(tmp_path):
    pytest.importorskip("transformers")
    run = _Run(SMALL, V, BUDGET, 1, 1, ("model", "huggingface", "joeynmt"), None, tmp_path, lambda text: None)
    rows = run.measure("real text", text(), "fp32", unpadded=False)
    by_name = {(r["candidate"], r["metric"]): r for r in rows}
    assert by_name["mnmt_scale model + torch Adam", "target tokens per second"]["value"] > 0
    assert by_name["mnmt_scale model + torch Adam", "share of matrix-product rate"]["unit"] == "%"
    assert by_name["Hugging Face M2M100, sorted by length", "target tokens per second"]["value"] > 0
    assert by_name["JoeyNMT", "target tokens per second"]["value"] is None
    assert "not installed" in markdown(rows)


def test_broken_joeynmt_is_a_failed_row(tmp_path):
    run = _Run(SMALL, V, BUDGET, 1, 1, ("joeynmt",), "/nonexistent/python", tmp_path, lambda text: None)
    rows = run.measure("equal lengths", equal_batches(V, BUDGET, 12, 1), "fp32", unpadded=True)
    assert rows[-1]["value"] is None
    assert "nonexistent" in rows[-1]["settings"]["error"]
