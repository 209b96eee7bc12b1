"""The sentences of one task of a batch, as a batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mnmt_scale.data.packing import only, pack_batch
from tests.data.test_packing import TASKS, TOKENIZER

SOURCES = [[10], [11, 12], [13, 14, 15, 16], [17, 18]]
TARGETS = [[20, 21], [22], [23, 24, 25], [26]]


@pytest.mark.parametrize("bucketed", [True, False])
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_equals_a_batch_packed_of_these_sentences_alone(slot, bucketed):
    slots = [0, 0, 2, 2]
    whole = pack_batch(
        SOURCES,
        TARGETS,
        slots,
        TASKS,
        TOKENIZER,
        step=3,
        micro=1,
        rows=[5, 6, 7, 8],
        step_tokens=[50, 60, 70],
        bucketed=bucketed,
    )
    mine = [i for i, k in enumerate(slots) if k == slot]
    alone = pack_batch(
        [SOURCES[i] for i in mine],
        [TARGETS[i] for i in mine],
        [0] * len(mine),
        TASKS[slot : slot + 1],
        TOKENIZER,
        step=3,
        micro=1,
        rows=[5 + i for i in mine],
        step_tokens=[50 + 10 * slot],
        bucketed=bucketed,
    )
    found = only(whole, slot)
    assert found.tasks == (slot,)
    assert found.num_sentences == len(mine)
    assert (found.buckets is None) != bucketed
    for field in dataclasses.fields(found):
        if field.name != "buckets":
            assert_same(getattr(found, field.name), getattr(alone, field.name), field.name)
    if bucketed:
        for field in dataclasses.fields(found.buckets):
            assert_same(getattr(found.buckets, field.name), getattr(alone.buckets, field.name), field.name)


def assert_same(ours, theirs, name):
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name
    elif isinstance(ours, tuple) and any(isinstance(x, torch.Tensor) for x in ours):
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b, name)
    else:
        assert ours == theirs, name
