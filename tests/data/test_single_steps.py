"""Steps of one task alone between mixed ones: when, of which task, how large, and that nothing else moves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mnmt_scale.data.reader import SOURCE_LENGTH, TARGET_LENGTH
from mnmt_scale.data.sampler import is_single, single_task
from tests.support.streams import LIMIT, TASKS, make_stream, same

N = len(TASKS)


def cost(plan):
    return int((np.maximum(plan.table[SOURCE_LENGTH], plan.table[TARGET_LENGTH]) + 2).sum())


@pytest.mark.parametrize("every", [2, 3, 7])
def test_every_so_many_th_step_is_of_one_task_and_a_block_holds_each_once(every):
    stream = make_stream(single_every=every, seed=9)
    plans = [stream.plan() for _ in range(3 * N * every)]
    single = [plan for plan in plans if len(plan.tasks) == 1]
    assert [plan.step for plan in single] == list(range(every - 1, 3 * N * every, every))
    blocks = [[plan.tasks[0].index for plan in single[b * N : (b + 1) * N]] for b in range(3)]
    assert all(sorted(block) == list(range(N)) for block in blocks)
    assert len({tuple(block) for block in blocks}) == 3, "another order in every block"
    assert all(sum(plan.step_tokens) for plan in plans)


def test_the_schedule_is_a_function_of_seed_and_step():
    steps = [s for s in range(60) if is_single(s, 4)]
    order = [single_task(s, 4, range(5), 1) for s in steps]
    assert order == [single_task(s, 4, range(5), 1) for s in steps]
    assert order != [single_task(s, 4, range(5), 2) for s in steps]
    assert not any(is_single(s, 0) for s in range(10))


def test_a_single_step_is_as_large_as_a_mixed_one():
    stream = make_stream(single_every=2, batch_tokens=400)
    plans = [stream.plan() for _ in range(40 * N)]
    for kind in (plans[0::2], plans[1::2]):
        assert np.mean([cost(plan) for plan in kind]) == pytest.approx(400, rel=0.01)
    assert max(cost(plan) for plan in plans[1::2]) < 400 + LIMIT


def test_mixed_steps_are_composed_as_without_single_ones():
    """Systematic sampling over blocks of steps would be off its shares if single steps took its places."""
    options = dict(tasks_per_batch=3, batch_tokens=300)
    plain, probing = make_stream(**options), make_stream(single_every=3, **options)
    mixed = [plan for plan in (probing.plan() for _ in range(90)) if len(plan.tasks) > 1]
    assert [plan.tasks for plan in mixed] == [plain.plan().tasks for _ in range(60)]


def test_single_and_mixed_steps_read_on_from_the_same_cursor():
    """No sentence twice in an epoch, none left out: the rows of a task over all steps are its epoch's."""
    stream = make_stream(single_every=2)
    rows = {task.index: [] for task in TASKS}
    for _ in range(200):
        plan = stream.plan()
        for k, task in enumerate(plan.tasks):
            rows[task.index] += plan.table[0, plan.bounds[k] : plan.bounds[k + 1]].tolist()
    largest = TASKS.by_name("en-fr").index
    assert len(rows[largest]) > 500
    assert len(set(rows[largest])) == len(rows[largest]) < 2500
    assert stream.drawn[largest] >= len(rows[largest]), "sentences passed over for their length count as drawn"


def test_tasks_without_a_share_have_no_single_steps():
    stream = make_stream(kind="fixed", weights={"fr-en": 0.9, "de-en": 0.1}, single_every=2)
    seen = {task.name for _ in range(12) for task in stream.plan().tasks}
    assert seen == {"fr-en", "de-en"}


def test_resuming_between_steps_goes_on_with_the_same_ones():
    whole = make_stream(single_every=2, prefetch=True)
    steps = [whole.next() for _ in range(2 * N + 6)]
    for stop in (3, 4, 2 * N + 1):
        first = make_stream(single_every=2)
        for _ in range(stop):
            first.next()
        state = json.loads(json.dumps(first.state_dict()))
        again = make_stream(single_every=2)
        again.load_state_dict(state)
        assert again.drawn == first.drawn
        for step in steps[stop : stop + 4]:
            assert all(same(a, b) for a, b in zip(step, again.next(), strict=True))
    whole.close()


def test_rows_of_a_step_are_those_of_all_ranks_together():
    ranks = [make_stream(single_every=2, rank=rank, size=2, accumulation=2, prefetch=rank == 1) for rank in range(2)]
    assert len(ranks[0].rows) == 0
    for _ in range(5):
        parts = [batch.rows.tolist() for stream in ranks for batch in stream.next()]
        for stream in ranks:
            assert sorted(stream.rows.tolist()) == sorted(row for part in parts for row in part)
    assert ranks[0].drawn == ranks[1].drawn
    for stream in ranks:
        stream.close()
