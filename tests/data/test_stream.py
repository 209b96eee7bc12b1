"""The stream of training batches: content, order, independence of the rank count, resuming."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnmt_scale.data.order import name_key, stretch
from mnmt_scale.data.reader import count_pair
from mnmt_scale.data.stream import deal
from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import IGNORE
from mnmt_scale.tasks import TaskSet
from tests.support.memory_store import make_store
from tests.support.streams import LIMIT, STORE, TASKS, make_stream, same, sentences


def test_sentences_are_those_of_the_store():
    stream = make_stream(tasks_per_batch=3)
    for _ in range(20):
        (batch,) = stream.next()
        for task, row, source, labels in sentences(batch):
            t = TASKS[task]
            corpus = STORE.pair(t.pair, "train")
            for language, ids in ((t.source, source[1:-1]), (t.target, labels[1:-1])):
                side = corpus.side(language)
                assert list(ids) == side.tokens[int(side.offsets[row]) : int(side.offsets[row + 1])].tolist()
            assert (source[0], source[-1]) == (STORE.tokenizer.tag_id(t.source), 2)
            assert (labels[0], labels[-1]) == (IGNORE, 2)
        tags = batch.target_in[batch.target_offsets[:-1].long() + 1].tolist()
        assert tags == [STORE.tokenizer.tag_id(TASKS[task].target) for task, *_ in sentences(batch)]


def test_a_task_reads_its_whole_corpus_in_the_order_of_the_permutation():
    store = make_store({"en-zu": 150}, seed=1)
    tasks = TaskSet([("zu", "en"), ("en", "zu")])
    stream = make_stream(store, tasks, max_tokens=40, batch_tokens=111)
    rows = {0: [], 1: []}
    for _ in range(60):
        plan = stream.plan()
        for k, task in enumerate(plan.tasks):
            rows[task.index] += plan.table[0, plan.bounds[k] : plan.bounds[k + 1]].tolist()
    for task in tasks:
        seen = rows[task.index]
        assert len(seen) > 300
        assert seen == stretch(5, name_key(task.name), 0, len(seen), 150).tolist()
        assert sorted(seen[:150]) == sorted(seen[150:300]) == list(range(150))
    assert rows[0][:150] != rows[1][:150]
    assert rows[0][:150] != rows[0][150:300]


def test_long_sentences_are_passed_over_and_nothing_else():
    lengths = [(n, 3) if n % 2 else (3, n) for n in range(1, 31)]
    store = make_store({"en-fr": 30}, lengths={"en-fr": lengths})
    tasks = TaskSet([("en", "fr")])
    stream = make_stream(store, tasks, max_tokens=12, batch_tokens=20)
    assert stream.dropped == {"en-fr": 20}  # 11 .. 30: with tag and end more than 12
    order = [row for row in stretch(5, name_key("en-fr"), 0, 90, 30).tolist() if row < 10]
    seen = []
    while len(seen) < 30:
        seen += stream.plan().table[0].tolist()
    assert seen[:30] == order
    with pytest.raises(MnmtError, match=r"MNMT-E206.*none of 30 .* 2 tokens.*en-fr"):
        make_stream(store, tasks, max_tokens=2)
    with pytest.raises(MnmtError, match=r"MNMT-E502.*12 tokens.*step of 11.*en-fr"):
        make_stream(store, tasks, max_tokens=12, batch_tokens=11)


def test_counts_of_a_pair_by_hand():
    store = make_store({"en-fr": 4}, lengths={"en-fr": [(3, 5), (7, 1), (8, 2), (2, 9)]})
    counts = count_pair(store, "en-fr", 10)
    assert (counts.sentences, counts.kept, counts.longest) == (4, 3, 10)
    assert counts.mean_cost == pytest.approx((7 + 9 + 10) / 3)


@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    tasks_per_batch=st.integers(0, 5),
    within=st.sampled_from(["proportional", "equal"]),
    unit=st.sampled_from(["tokens", "sentences"]),
)
def test_what_a_step_holds_does_not_depend_on_the_ranks(size, accumulation, tasks_per_batch, within, unit):
    options = {"tasks_per_batch": tasks_per_batch, "within": within, "unit": unit}
    alone = make_stream(**options)
    ranks = [make_stream(rank=r, size=size, accumulation=accumulation, **options) for r in range(size)]
    for _ in range(4):
        (whole,) = alone.next()
        parts = [batch for stream in ranks for batch in stream.next()]
        assert len(parts) == size * accumulation
        assert sorted(s for b in parts for s in sentences(b)) == sorted(sentences(whole))
        assert {(b.step, b.tasks, b.step_tokens) for b in parts} == {(whole.step, whole.tasks, whole.step_tokens)}
        totals = [len(b.source_ids) + len(b.target_in) for b in parts]
        assert max(totals) - min(totals) <= 2 * LIMIT
        for b in parts:
            slots = b.sentence_task.tolist()
            assert slots == sorted(slots)
            assert b.source_segments[-1] == len(b.source_ids)
    assert len({json.dumps(s.state_dict()) for s in [alone, *ranks]}) == 1


def test_predicted_tokens_of_the_step_are_counted_before_it_runs():
    stream = make_stream(accumulation=3, tasks_per_batch=4)
    for _ in range(10):
        batches = stream.next()
        counted = np.zeros(4, dtype=int)
        for b in batches:
            for k in range(4):
                counted[k] += int((b.target_out[b.target_segments[k] : b.target_segments[k + 1]] != IGNORE).sum())
        assert tuple(counted) == batches[0].step_tokens


def test_parts_hold_all_lengths():
    tokens = np.random.default_rng(0).integers(4, 90, 400)
    parts = deal(tokens, 8)
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))
    totals = [int(tokens[p].sum()) for p in parts]
    assert max(totals) - min(totals) < 10  # dealing always in the same direction would make it nearly the longest, 90
    for p in parts:
        assert np.quantile(tokens[p], [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(tokens, [0.1, 0.5, 0.9]), abs=6)
    assert deal(tokens, 1)[0].tolist() == list(range(400))


def test_more_parts_than_sentences_leaves_empty_batches():
    streams = [make_stream(rank=r, size=9, accumulation=2, batch_tokens=40) for r in range(9)]
    empty = 0
    for _ in range(3):
        batches = [b for s in streams for b in s.next()]
        empty += sum(b.num_sentences == 0 for b in batches)
        for b in batches:
            assert len(b.source_segments) == len(b.tasks) + 1
            assert b.step_tokens == batches[0].step_tokens
            if b.num_sentences == 0:
                assert b.buckets.shapes == ()
                assert len(b.target_out) == 0
        assert sum(b.num_sentences for b in batches) > 0
    assert empty > 0


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"tasks_per_batch": 2}, {"unit": "sentences", "within": "equal", "tasks_per_batch": 3}]
)
def test_resuming_is_exact(options, prefetch):
    first = make_stream(prefetch=prefetch, **options)
    for _ in range(7):
        first.next()
    state = json.loads(json.dumps(first.state_dict()))
    later = [first.next()[0] for _ in range(9)]
    second = make_stream(seed=99, prefetch=prefetch, **options)  # the state brings its own seed
    second.next()
    second.load_state_dict(state)
    assert second.step == 7
    again = [second.next()[0] for _ in range(9)]
    assert all(same(a, b) for a, b in zip(later, again, strict=True))
    assert first.state_dict() == second.state_dict()
    # back to an earlier place in the same stream, and over to two ranks
    first.load_state_dict(state)
    assert same(first.next()[0], later[0])
    ranks = [make_stream(rank=r, size=2, prefetch=prefetch, **options) for r in range(2)]
    for stream in ranks:
        stream.load_state_dict(state)
    parts = [s for stream in ranks for s in sentences(stream.next()[0])]
    assert sorted(parts) == sorted(sentences(later[0]))
    for stream in (first, second, *ranks):
        stream.close()


def test_prefetching_changes_nothing():
    plain, ahead = make_stream(tasks_per_batch=3), make_stream(tasks_per_batch=3, prefetch=True)
    p = np.arange(1.0, len(TASKS) + 1)
    for step in range(12):
        if step == 5:
            plain.set_shares(p)
            ahead.set_shares(p)
        if step == 8:
            assert plain.plan().step_tokens == ahead.plan().step_tokens
        assert plain.state_dict() == ahead.state_dict()
        assert same(plain.next()[0], ahead.next()[0])
    ahead.close()
    assert same(plain.next()[0], ahead.next()[0])


def test_other_sampling_settings_may_be_resumed_with():
    before = make_stream()
    before.next()
    after = make_stream(kind="uniform")
    after.load_state_dict(before.state_dict())
    assert after.shares.tolist() == [1 / len(TASKS)] * len(TASKS)
    assert after.step == 1


def test_a_state_of_other_data_is_refused():
    state = make_stream().state_dict()
    fewer = TaskSet([("fr", "en")])
    other = make_store({"af-en": 300, "en-fr": 2501, "en-zu": 9, "de-en": 1200})
    for stream in (make_stream(tasks=fewer), make_stream(other), make_stream(max_tokens=LIMIT + 1)):
        with pytest.raises(MnmtError, match="MNMT-E405"):
            stream.load_state_dict(state)


@pytest.mark.parametrize("prefetch", [False, True])
def test_an_id_beyond_the_vocabulary_is_named(prefetch):
    store = make_store({"en-fr": 40}, seed=2)
    side = store.pair("en-fr", "train").side("fr")
    side.tokens[int(side.offsets[17])] = 6000
    stream = make_stream(store, TaskSet([("en", "fr")]), max_tokens=40, prefetch=prefetch)
    with pytest.raises(MnmtError, match=r"MNMT-E307.*6000.*pair en-fr, side fr, sentence 17"):
        collections.deque((stream.next() for _ in range(10)), maxlen=0)
    stream.close()


def test_falling_offsets_are_damage():
    store = make_store({"en-fr": 40}, seed=2)
    offsets = store.pair("en-fr", "train").side("en").offsets
    offsets[11] = offsets[10] - np.uint64(3)
    with pytest.raises(MnmtError, match="MNMT-E304"):
        make_stream(store, TaskSet([("en", "fr")]), max_tokens=40).next()


def test_one_task_one_sentence():
    store = make_store({"en-fr": 1}, lengths={"en-fr": [(3, 2)]})
    stream = make_stream(store, TaskSet([("fr", "en")]), max_tokens=9, batch_tokens=5000)
    (batch,) = stream.next()
    assert batch.num_sentences == 1000
    assert set(batch.rows.tolist()) == {0}
    assert batch.step_tokens == (4000,)  # English is the first side: three tokens and the end
    assert stream.state_dict()["cursors"]["fr-en"] == {"sentences": 1, "epoch": 1000, "position": 0, "credit": 0.0}


def test_description_for_the_log():
    said = make_stream(tasks_per_batch=3, size=2, accumulation=2).describe()
    assert json.loads(json.dumps(said)) == said
    assert said["p"].keys() == set(TASKS.names)
    assert sum(said["p"].values()) == pytest.approx(1)
    assert (said["tasks_per_batch"], said["parts"], said["within"], said["unit"]) == (3, 4, "proportional", "tokens")
    assert sum(said["dropped"].values()) + sum(said["sentences"].values()) == sum(STORE.sizes().values())


def test_batches_without_buckets():
    assert make_stream(bucketed=False).next()[0].buckets is None
    assert make_stream().next()[0].buckets is not None
