"""A training stream over a small store in memory, and what tests ask of its batches."""

from __future__ import annotations

import numpy as np
import torch

from mnmt_scale.data.config import BatchConfig, SamplingConfig
from mnmt_scale.data.reader import SOURCE_LENGTH, TARGET_LENGTH
from mnmt_scale.data.stream import BatchStream
from mnmt_scale.tasks import TaskSet, directions_of
from tests.support.memory_store import make_store

STORE = make_store({"af-en": 300, "en-fr": 2500, "en-zu": 9, "de-en": 1200}, seed=4)
TASKS = TaskSet(directions_of(STORE.pairs("train"), "many-to-many"))
LIMIT = 18
"""Longest side, tag and end included: some sentences of ``STORE`` are longer."""


def make_stream(store=STORE, tasks=TASKS, *, rank=0, size=1, seed=5, max_tokens=LIMIT, bucketed=True, **options):
    batch = {k: options.pop(k) for k in ("batch_tokens", "accumulation", "prefetch") if k in options}
    batch = BatchConfig(**{"batch_tokens": 400, "prefetch": False, **batch})
    more = {"single_every": options.pop("single_every", 0), "bucketed": bucketed}
    sampling = SamplingConfig(**options)
    return BatchStream(store, tasks, sampling, batch, max_tokens=max_tokens, seed=seed, rank=rank, size=size, **more)


def sentences(batch):
    """(task, row, source ids, labels) of each sentence."""
    s, t = batch.source_offsets.tolist(), batch.target_offsets.tolist()
    return [
        (
            batch.tasks[int(batch.sentence_task[i])],
            int(batch.rows[i]),
            tuple(batch.source_ids[s[i] : s[i + 1]].tolist()),
            tuple(batch.target_out[t[i] : t[i + 1]].tolist()),
        )
        for i in range(batch.num_sentences)
    ]


def same(a, b):
    tensors = ("source_ids", "target_in", "target_out", "source_offsets", "target_offsets", "sentence_task", "rows")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors) and (a.step, a.micro, a.tasks) == (
        b.step,
        b.micro,
        b.tasks,
    )


def spent(stream, steps):
    """Tokens of the longer side, tag and end included, per task, and sentences per task."""
    total, count = np.zeros(len(TASKS)), np.zeros(len(TASKS))
    for _ in range(steps):
        plan = stream.plan()
        costs = np.maximum(plan.table[SOURCE_LENGTH], plan.table[TARGET_LENGTH]) + 2
        for k, task in enumerate(plan.tasks):
            part = slice(plan.bounds[k], plan.bounds[k + 1])
            total[task.index] += costs[part].sum()
            count[task.index] += plan.bounds[k + 1] - plan.bounds[k]
    return total, count
