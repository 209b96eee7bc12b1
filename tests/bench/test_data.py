"""The data benchmark on a toy: the repeated store is a store, and every row is there."""

from __future__ import annotations

import json

import pytest

from mnmt_scale.bench.data import anonymous_bytes, bench_data, check_batch
from mnmt_scale.bench.repeat_store import repeat_store
from mnmt_scale.data.build import prepare
from mnmt_scale.data.config import BatchConfig, CorpusConfig, DataConfig, SamplingConfig, TokenizerConfig
from mnmt_scale.data.store import TokenStore
from mnmt_scale.data.stream import BatchStream
from mnmt_scale.data.synthetic import SyntheticConfig, generate
from mnmt_scale.tasks import TaskSet


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    path = tmp_path_factory.mktemp("languages")
    generate(
        SyntheticConfig(families=[2], largest_sentences=200, smallest_sentences=150, dev_sentences=5, test_sentences=5), path
    )
    return path


@pytest.fixture(scope="module")
def small(tree, tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "small"
    prepare(
        DataConfig(
            store=str(store),
            corpora=[CorpusConfig(path=str(tree))],
            tokenizer=TokenizerConfig(vocabulary_size=500, character_coverage=1.0),
        ),
        log=lambda line: None,
    )
    return store


def test_a_repeated_store_opens_verifies_and_repeats(small, tmp_path):
    held = repeat_store(small, tmp_path / "large", 1000)
    one, many = TokenStore.open(small), TokenStore.open(tmp_path / "large")
    many.verify()
    times = held // sum(one.sizes().values())
    assert held >= 1000
    assert held - sum(one.sizes().values()) < 1000
    assert many.pairs("dev") == one.pairs("dev")
    for pair in one.pairs("train"):
        before, after = one.pair(pair), many.pair(pair)
        n = len(before)
        assert len(after) == times * n
        for language in before.languages:
            for row in (0, 1, n - 1):
                sentence = before.side(language)[row].tolist()
                assert all(after.side(language)[row + n * i].tolist() == sentence for i in range(times))


def test_batches_are_checked_against_the_store(small):
    store = TokenStore.open(small)
    tasks = TaskSet([tuple(store.pairs("train")[0].split("-"))])
    stream = BatchStream(store, tasks, SamplingConfig(), BatchConfig(batch_tokens=500, prefetch=False), max_tokens=256, seed=1)
    (batch,) = stream.next()
    assert check_batch(store, tasks, batch) == batch.num_sentences > 5
    batch.target_in[3] += 1
    with pytest.raises(AssertionError):
        check_batch(store, tasks, batch)


def test_the_whole_benchmark_on_a_toy(tree, tmp_path):
    measured = bench_data(
        tree,
        work=tmp_path,
        pairs=2000,
        fewer_pairs=500,
        batch_tokens=(1000,),
        vocabulary_size=500,
        repetitions=2,
        seconds=0.02,
        text_pairs=100,
        log=lambda line: None,
    )
    rows = [next(measured)]
    assert rows[0]["case"] == "prepare, all stages"
    assert list(tmp_path.iterdir()) != [], "the rest has been measured before the first row was given"
    rows += measured
    assert json.loads(json.dumps(rows)) == rows
    assert [r["case"] for r in rows if r["metric"] == "wall clock"] == ["cleaning", "encoding"] + [
        "loader, 1000 tokens a step"
    ] * 2
    assert all(r["value"] > 0 for r in rows if r["unit"] == "sentence pairs/s")
    assert all(r["value"] > 20 for r in rows if r["unit"] == "equal")
    memory = [r for r in rows if r["unit"] == "MiB"]
    assert len(memory) == 4
    assert memory[3]["settings"]["pairs"] >= 3 * memory[1]["settings"]["pairs"]
    assert list(tmp_path.iterdir()) == []


def test_anonymous_memory_is_read():
    assert anonymous_bytes() > 2**20
