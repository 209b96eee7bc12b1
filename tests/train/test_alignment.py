"""The rewards of MultiDDS-S: which sentences are drawn, and the mean cosine against T x T of them."""

from __future__ import annotations

import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mnmt_scale.dist import World
from mnmt_scale.errors import MnmtError
from mnmt_scale.tasks import TaskSet
from mnmt_scale.train.alignment import alignment, draw_batches, measure_alignment
from tests.support.alignment_cases import (
    DIRECTIONS,
    PlainGradients,
    cosines,
    small_store,
    stand_in,
    tiny_model,
)
from tests.support.memory_store import make_store
from tests.support.streams import sentences

TASK = TaskSet([("de", "en"), ("fr", "en")])[1]
WORLD = World(0, 1, 0, torch.device("cpu"))
ENGINE = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)


def draw(store, split="train", *, seed=1, step=0, max_tokens=30, batch_tokens=200, **parts):
    options = dict(seed=seed, step=step, max_tokens=max_tokens, batch_tokens=batch_tokens)
    return draw_batches(store, TASK, split, **options, **parts)


def rows_of(batches):
    return [int(row) for b in batches for row in b.rows]


def costs_of(batches):
    return [max(len(source), len(labels)) for b in batches for _, _, source, labels in sentences(b)]


@pytest.fixture(scope="module")
def store():
    return make_store({"en-fr": 3000}, dev=40, mean=9, longest=35)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_draw_fills_its_budget_with_different_sentences(store, split):
    (batch,) = draw(store, split)
    rows, costs = rows_of([batch]), costs_of([batch])
    assert len(set(rows)) == len(rows)
    assert max(costs) <= 30
    assert 200 - 30 < sum(costs) <= 200
    assert batch.tasks == (1,)
    assert batch.step_tokens == (int((batch.target_out != -100).sum()),)
    corpus = store.pair("en-fr", split)
    for _, row, source, labels in sentences(batch):
        for language, ids in (("fr", source), ("en", labels)):
            side = corpus.side(language)
            assert list(ids[1:-1]) == side.tokens[int(side.offsets[row]) : int(side.offsets[row + 1])].tolist()


def test_a_draw_reads_on_where_one_look_is_not_enough(store):
    """16,000 tokens are about 1,400 sentences: more than are looked up at once."""
    costs = costs_of(draw(store, batch_tokens=16_000))
    assert len(costs) > 1100
    assert 16_000 - 30 < sum(costs) <= 16_000


def test_a_draw_is_a_function_of_seed_step_and_split(store):
    assert rows_of(draw(store, step=3)) == rows_of(draw(store, step=3))
    others = (draw(store, step=4), draw(store, step=3, seed=2))
    for other in others:
        assert len(set(rows_of(other)) & set(rows_of(draw(store, step=3)))) <= 3


def test_a_draw_is_dealt_over_ranks_and_micro_batches(store):
    (whole,) = draw(store, step=2)
    for size, micros in ((2, 1), (3, 2), (1, 4)):
        parts = [draw(store, step=2, rank=rank, size=size, micros=micros) for rank in range(size)]
        assert all(len(mine) == micros for mine in parts)
        flat = [b for mine in parts for b in mine]
        assert sorted(rows_of(flat)) == sorted(rows_of([whole]))
        assert {b.step_tokens for b in flat} == {whole.step_tokens}
        assert [b.micro for b in parts[0]] == list(range(micros))
        loads = [int(b.source_offsets[-1] + b.target_offsets[-1]) for b in flat]
        assert max(loads) - min(loads) < 60


def test_small_splits_and_long_sentences():
    store = make_store({"en-fr": 4}, lengths={"en-fr": [(3, 4), (20, 3), (5, 6), (2, 2)]})
    assert sorted(rows_of(draw(store, max_tokens=10))) == [0, 2, 3]
    assert len(rows_of(draw(store, batch_tokens=1))) == 1, "one sentence at least"
    assert draw(store, max_tokens=3) == []
    parts = [draw(store, max_tokens=10, rank=rank, size=4, micros=2) for rank in range(4)]
    assert sorted(rows_of([b for mine in parts for b in mine])) == [0, 2, 3]
    assert sum(b.num_sentences == 0 for mine in parts for b in mine) == 5, "some parts have nothing, and still are batches"


def drawn(split, step=7, tokens=120):
    store = small_store()
    options = dict(seed=5, step=step, max_tokens=14, batch_tokens=tokens)
    return [draw_batches(store, t, split, **options) if store.has(t.pair, split) else [] for t in DIRECTIONS]


def test_the_rewards_are_the_mean_cosines():
    model, train, dev = tiny_model(), drawn("train"), drawn("dev")
    assert [len(b) for b in dev] == [1, 1, 0, 1]
    rewards = alignment(PlainGradients(model), train, dev)
    assert rewards == pytest.approx(cosines(model, train, dev), abs=1e-6)
    assert np.ptp(rewards) > 0.01
    reversed_ = alignment(PlainGradients(model), train[::-1], dev[::-1])
    assert reversed_ == pytest.approx(rewards[::-1], abs=1e-6)


def test_a_gradient_with_itself_has_cosine_one():
    model, train = tiny_model(), drawn("train")
    rewards = alignment(PlainGradients(model), train, [[], train[1], [], []])
    assert rewards[1] == pytest.approx(1.0, abs=1e-6)
    assert max(rewards[0], *rewards[2:]) < 0.999


def test_a_large_dev_gradient_does_not_drown_the_others():
    """MultiDDS without the S takes the cosine with the summed dev gradient, in which the largest decides."""

    class Louder(PlainGradients):
        def gradient(self, batches, scales):
            gradient = super().gradient(batches, scales)
            return {n: 1e3 * g for n, g in gradient.items()} if batches is dev[0] else gradient

    model, train, dev = tiny_model(), drawn("train"), drawn("dev")
    assert alignment(Louder(model), train, dev) == pytest.approx(cosines(model, train, dev), abs=1e-6)


def test_two_gradients_at_a_time():
    """The mean direction and the one that was measured last."""

    class Gradient(dict):
        pass

    class Watched(PlainGradients):
        alive: list[weakref.ref] = []

        def gradient(self, batches, scales):
            assert not any(ref() is not None for ref in self.alive), "the one before must be gone"
            gradient = Gradient(super().gradient(batches, scales))
            self.alive.append(weakref.ref(gradient))
            return gradient

        def inner(self, gradients):
            assert len(gradients) <= 2
            return super().inner(gradients)

    watched = Watched(tiny_model())
    alignment(watched, drawn("train"), drawn("dev"))
    assert len(watched.alive) == 7, "each gradient once: four of training, three of dev"


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_gradient_that_is_not_finite_is_its_own_tasks(split):
    class Broken(PlainGradients):
        def gradient(self, batches, scales):
            gradient = super().gradient(batches, scales)
            if batches is (train if split == "train" else dev)[1]:
                gradient["encoder.layer_norm.weight"][0] = math.inf
            return gradient

    model, train, dev = tiny_model(), drawn("train"), drawn("dev")
    rewards = alignment(Broken(model), train, dev)
    assert [math.isfinite(r) for r in rewards] == [True, False, True, True]
    kept = dev if split == "train" else [dev[0], [], [], dev[3]]
    truth = cosines(model, train, kept)
    assert [rewards[j] for j in (0, 2, 3)] == pytest.approx([truth[j] for j in (0, 2, 3)], abs=1e-6)


def test_what_a_training_measures():
    model = tiny_model()
    rewards = measure_alignment(stand_in(WORLD, ENGINE), PlainGradients(model))
    assert rewards == pytest.approx(cosines(model, drawn("train"), drawn("dev")), abs=1e-6)
    assert rewards == measure_alignment(stand_in(WORLD, ENGINE), PlainGradients(model))
    later = measure_alignment(stand_in(WORLD, ENGINE, step=8), PlainGradients(model))
    assert later == pytest.approx(cosines(model, drawn("train", step=8), drawn("dev", step=8)), abs=1e-6)
    assert later != pytest.approx(rewards, abs=1e-3), "another step draws other sentences"


def test_micro_batches_are_no_larger_than_those_of_training():
    sizes = []

    class Watched(PlainGradients):
        def gradient(self, batches, scales):
            sizes.append(len(batches))
            return super().gradient(batches, scales)

    model = tiny_model()
    few = measure_alignment(stand_in(WORLD, ENGINE), Watched(model))
    many = measure_alignment(stand_in(WORLD, ENGINE, batch_tokens=50), Watched(model))
    assert sizes == [1] * 7 + [3] * 7
    assert many == pytest.approx(few, abs=1e-5)


def test_without_dev_text():
    store = small_store()
    store.content["dev"].clear()
    with pytest.raises(MnmtError) as error:
        measure_alignment(stand_in(WORLD, ENGINE, store=store), PlainGradients(tiny_model()))
    assert error.value.code == "E507"
