"""Sentences drawn beside the training stream (draws of one task are tested with the rewards that use them too)."""

from __future__ import annotations

import numpy as np
import pytest

from mnmt_scale.data.draw import draw, pack
from mnmt_scale.tasks import TaskSet
from tests.support.memory_store import make_store
from tests.support.streams import sentences

STORE = make_store({"de-en": 800, "en-fr": 3000, "en-ru": 6}, mean=9, longest=35, seed=2)
TASKS = TaskSet([("de", "en"), ("en", "de"), ("fr", "en"), ("ru", "en")])
WIDE = dict(seed=3, step=5, max_tokens=30)


def drawn(task, tokens, **more):
    return draw(STORE, TASKS[task], "train", **{**WIDE, "batch_tokens": tokens, **more})


def test_a_larger_draw_begins_with_the_smaller_one():
    """However many sentences are looked up at once, they come in the same order."""
    long = drawn(2, 12_000).rows
    for tokens in (40, 300, 3000):
        rows = drawn(2, tokens).rows
        assert 0 < len(rows) < len(long)
        assert rows.tolist() == long[: len(rows)].tolist()


def test_rows_to_leave_out_are_passed_over_and_the_order_stays():
    whole = drawn(0, 600).rows
    without = whole[1::2]
    rest = drawn(0, 600, without=without).rows
    assert not set(rest) & set(without)
    assert rest[: len(whole[0::2])].tolist() == whole[0::2].tolist()
    assert drawn(0, 600, without=without).cost <= 600
    assert len(drawn(3, 600, without=np.arange(6)).rows) == 0


def test_several_draws_are_packed_together_by_task():
    draws = [drawn(0, 200), drawn(1, 100), drawn(3, 500, without=np.arange(6)), drawn(2, 150)]
    (batch,) = pack(draws, STORE.tokenizer, step=5)
    assert batch.tasks == (0, 1, 3, 2)
    assert batch.step_tokens == tuple(d.predicted for d in draws)
    assert batch.step_tokens[2] == 0
    assert np.bincount(batch.sentence_task.numpy(), minlength=4).tolist() == [len(d.rows) for d in draws]
    for k, d in enumerate(draws):
        task = TASKS[batch.tasks[k]]
        corpus = STORE.pair(task.pair, "train")
        mine = [s for s in sentences(batch) if s[0] == task.index]
        assert sum(len(labels) - 1 for *_, labels in mine) == d.predicted
        assert sum(max(len(source), len(labels)) for _, _, source, labels in mine) == d.cost
        for _, row, source, labels in mine:
            for language, ids in ((task.source, source), (task.target, labels)):
                side = corpus.side(language)
                assert list(ids[1:-1]) == side.tokens[int(side.offsets[row]) : int(side.offsets[row + 1])].tolist()


@pytest.mark.parametrize(("size", "micros"), [(2, 1), (3, 2), (1, 5)])
def test_several_draws_are_dealt_over_ranks_and_micro_batches(size, micros):
    draws = [drawn(task, 200) for task in range(4)]
    (whole,) = pack(draws, STORE.tokenizer, step=5)
    parts = [b for rank in range(size) for b in pack(draws, STORE.tokenizer, step=5, rank=rank, size=size, micros=micros)]
    assert len(parts) == size * micros
    assert sorted(s for b in parts for s in sentences(b)) == sorted(sentences(whole))
    assert {(b.tasks, b.step_tokens) for b in parts} == {(whole.tasks, whole.step_tokens)}
    loads = [len(b.source_ids) + len(b.target_in) for b in parts]
    assert max(loads) - min(loads) < 70, "parts differ by less than the longest sentence"
