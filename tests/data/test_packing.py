"""Packed batches and their padded layout, against plain loops and numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnmt_scale.data.packing import make_buckets, pack_batch
from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import IGNORE
from mnmt_scale.tasks import TaskSet
from tests.support.memory_store import MemoryTokenizer

TOKENIZER = MemoryTokenizer(["de", "en", "fr"], vocabulary_size=40)  # tags 4, 5, 6; words from 7
TASKS = list(TaskSet([("de", "en"), ("en", "fr"), ("fr", "en")]))


def test_a_batch_by_hand():
    batch = pack_batch([[10], [11, 12], [13]], [[20, 21], [22], [23, 24, 25]], [0, 0, 2], TASKS, TOKENIZER, step=3, micro=1)
    assert batch.source_ids.tolist() == [4, 10, 2, 4, 11, 12, 2, 6, 13, 2]
    assert batch.target_in.tolist() == [2, 5, 20, 21, 2, 5, 22, 2, 5, 23, 24, 25]
    assert batch.target_out.tolist() == [IGNORE, 20, 21, 2, IGNORE, 22, 2, IGNORE, 23, 24, 25, 2]
    assert batch.source_offsets.tolist() == [0, 3, 7, 10]
    assert batch.target_offsets.tolist() == [0, 4, 7, 12]
    assert batch.source_offsets.dtype == batch.target_offsets.dtype == torch.int32
    assert batch.source_ids.dtype == batch.target_in.dtype == batch.target_out.dtype == torch.int64
    assert batch.source_segments == (0, 7, 7, 10)
    assert batch.target_segments == (0, 7, 7, 12)
    assert batch.sentence_task.tolist() == [0, 0, 2]
    assert batch.rows.tolist() == [0, 1, 2]
    assert batch.tasks == (0, 1, 2)
    assert batch.step_tokens == (5, 0, 4)
    assert (batch.step, batch.micro, batch.max_source, batch.max_target) == (3, 1, 4, 5)
    assert batch.num_sentences == 3


def test_what_is_known_of_the_step_is_kept():
    batch = pack_batch([[10]], [[20]], [1], TASKS, TOKENIZER, rows=[77], step_tokens=[9, 8, 7], bucketed=False)
    assert batch.step_tokens == (9, 8, 7)
    assert batch.rows.tolist() == [77]
    assert batch.buckets is None


def test_an_empty_side_is_a_tag_and_an_end():
    batch = pack_batch([[]], [[]], [1], TASKS, TOKENIZER)
    assert batch.source_ids.tolist() == [5, 2]
    assert batch.target_in.tolist() == [2, 6]
    assert batch.target_out.tolist() == [IGNORE, 2]


def test_a_batch_of_no_sentences():
    batch = pack_batch([], [], [], TASKS, TOKENIZER, step_tokens=[3, 2, 1])
    assert batch.num_sentences == 0
    assert [len(x) for x in (batch.source_ids, batch.target_in, batch.target_out, batch.rows)] == [0] * 4
    assert batch.source_offsets.tolist() == batch.target_offsets.tolist() == [0]
    assert batch.source_segments == batch.target_segments == (0, 0, 0, 0)
    assert batch.buckets.shapes == batch.buckets.source_lengths == ()
    assert batch.buckets.source_index.dtype == torch.int64
    assert len(batch.buckets.source_index) == len(batch.buckets.target_inverse) == 0
    assert (batch.max_source, batch.max_target) == (0, 0)


def test_an_id_beyond_the_vocabulary_names_pair_side_and_row():
    with pytest.raises(MnmtError, match=r"MNMT-E307.*id 40 .* 40 .*pair en-fr, side en, sentence 8"):
        pack_batch([[7], [8], [9]], [[7], [7], [7, 40]], [0, 1, 2], TASKS, TOKENIZER, rows=[5, 6, 8])
    with pytest.raises(MnmtError, match=r"pair de-en, side de, sentence 5"):
        pack_batch([[7, 99], [8]], [[7], [7]], [0, 1], TASKS, TOKENIZER, rows=[5, 6])


lengths = st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=0, max_size=60)


@settings(max_examples=150, deadline=None)
@given(pairs=lengths, max_waste=st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_buckets_lay_out_every_sentence_and_invert(pairs, max_waste):
    source, target = [a for a, _ in pairs], [b for _, b in pairs]
    buckets = make_buckets(source, target, max_waste)
    for side, (widths, index, inverse) in enumerate(
        [(source, buckets.source_index, buckets.source_inverse), (target, buckets.target_index, buckets.target_inverse)]
    ):
        rows = torch.arange(sum(widths))
        assert index[inverse].tolist() == rows.tolist()
        sentence = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths, dtype=torch.int64))
        first = np.cumsum([0, *widths])
        cell = 0
        for block, (count, *sides) in enumerate(buckets.shapes):
            padded = index[cell : cell + count * sides[side]].view(count, sides[side])
            for i in range(count):
                owner = int(sentence[padded[i, 0]])
                width = widths[owner]
                assert padded[i, :width].tolist() == list(range(first[owner], first[owner] + width))
                assert (sentence[padded[i]] == owner).all()  # padding stays within the sentence
                known = buckets.source_lengths[block]
                if side == 0:
                    assert width == (sides[0] if known is None else int(known[i]))
            if side == 0 and buckets.source_lengths[block] is not None:
                assert int(buckets.source_lengths[block].min()) < sides[0] == int(buckets.source_lengths[block].max())
            cell += count * sides[side]
        assert cell == len(index)
        if widths:
            assert 1 - len(inverse) / len(index) <= max_waste + 1e-9
    assert sum(count for count, _, _ in buckets.shapes) == len(pairs)
    assert buckets.identity == (
        buckets.source_index.tolist() == buckets.source_inverse.tolist() == list(range(sum(source)))
        and buckets.target_index.tolist() == buckets.target_inverse.tolist() == list(range(sum(target)))
    )


def test_equal_lengths_are_one_block_without_gathers():
    buckets = make_buckets([5] * 7, [3] * 7, 0.0)
    assert buckets.identity
    assert buckets.shapes == ((7, 5, 3),)
    assert buckets.source_lengths == (None,)
    assert not make_buckets([5, 6], [3, 3], 0.0).identity
    assert not make_buckets([5, 6], [3, 3], 0.5).identity


def test_more_waste_means_fewer_blocks():
    rng = np.random.default_rng(0)
    source = rng.integers(5, 60, 500)
    target = np.clip(source + rng.integers(-8, 9, 500), 2, None)
    blocks = [len(make_buckets(source, target, waste).shapes) for waste in (0.0, 0.1, 0.2, 0.4, 1.0)]
    assert blocks == sorted(blocks, reverse=True)
    assert blocks[0] == len(set(zip(source.tolist(), target.tolist(), strict=True)))
    assert blocks[-1] == 1
    assert blocks[2] < 30


def test_gathering_into_blocks_and_back_is_the_identity():
    """Gather into blocks and back is the identity on values, which is all that attention asks of it."""
    buckets = make_buckets([3, 9, 4, 9], [2, 2, 8, 3], 0.2)
    x = torch.randn(25, 4)
    assert torch.equal(x[buckets.source_index][buckets.source_inverse], x)
