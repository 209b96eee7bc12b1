"""Batches of dev and test sentences: all of them, once, cut where too long."""

from __future__ import annotations

import pytest
import torch

from mnmt_scale.data.stream import count_cut, evaluation_batches
from mnmt_scale.flow import IGNORE
from mnmt_scale.tasks import TaskSet
from tests.support.memory_store import make_store
from tests.support.streams import sentences


@pytest.mark.parametrize("limit", [None, 0, 1, 13])
def test_evaluation_covers_every_sentence_once_and_cuts_long_ones(limit):
    store = make_store({"en-fr": 3}, dev=31, mean=12, longest=25)
    task = TaskSet([("de", "en"), ("fr", "en")])[1]
    corpus = store.pair("en-fr", "dev")
    batches = list(evaluation_batches(store, task, "dev", max_tokens=14, batch_tokens=60, limit=limit))
    rows = [int(r) for b in batches for r in b.rows]
    assert sorted(rows) == list(range(31 if limit is None else limit))
    cut = 0
    for number, b in enumerate(batches):
        assert (b.step, b.tasks) == (number, (1,))
        assert b.step_tokens == (int((b.target_out != IGNORE).sum()),)
        longer = torch.maximum(b.source_offsets.diff(), b.target_offsets.diff())
        assert int(longer.sum()) <= 60
        assert max(b.max_source, b.max_target) <= 14
        for _, row, source, labels in sentences(b):
            whole = []
            for language, ids in (("fr", source[1:-1]), ("en", labels[1:-1])):
                side = corpus.side(language)
                text = side.tokens[int(side.offsets[row]) : int(side.offsets[row + 1])].tolist()
                assert list(ids) == text[:12]
                whole.append(len(text))
            cut += max(whole) > 12
    assert cut == count_cut(store, task, "dev", max_tokens=14, limit=limit)
    assert cut > 0 or limit in (0, 1)
    if limit is None:
        assert len(batches) > 3
        firsts = [max(b.max_source, b.max_target) for b in batches]
        assert firsts == sorted(firsts, reverse=True)


def test_a_sentence_larger_than_an_evaluation_batch_is_a_batch():
    store = make_store({"en-fr": 3}, dev=5, mean=9)
    batches = list(evaluation_batches(store, TaskSet([("en", "fr")])[0], "test", max_tokens=30, batch_tokens=1))
    assert [b.num_sentences for b in batches] == [1] * 5
