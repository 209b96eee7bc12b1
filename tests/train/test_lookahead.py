"""What an update does to held sentences: against plain autograd in fp64, and what the measuring itself must not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mnmt_scale import dist
from mnmt_scale.flow import Lookahead
from mnmt_scale.train.lookahead import hold, look_again
from tests.support.lookahead_cases import SGD, TASKS, flat_gradient, held_losses, learner_of, plain_model, step

EVERY = tuple(range(len(TASKS)))


def numbers(losses):
    return [float(loss.detach()) for loss in losses]


@pytest.fixture
def make_learner():
    made = []

    def make(**overrides):
        made.append(learner_of(dist.join(), **overrides))
        return made[-1]

    yield make
    for learner in made:
        learner.close()


def test_small_sgd_steps_match_the_product_of_gradients(make_learner):
    """Per token the log-probability of i gains lr * g_i' g_j to first order: both gradients by autograd in fp64, of the
    held sentences and of the step's batch, at the weights before the update."""
    learner = make_learner(engine__optimizer=SGD)
    seen = 0
    for _ in range(8):
        batches = learner.stream.next()
        (scale,) = {1.0 / sum(batches[0].step_tokens)}
        scales = (scale,) * len(batches[0].tasks)
        if len(batches[0].tasks) > 1:
            learner.update(batches, scales)
            continue
        held = hold(learner, Lookahead(EVERY, "train", 60), batches)
        model = plain_model(learner)
        g_j = flat_gradient(model(batches[0], scales).total, model)
        losses = held_losses(model, held)
        assert held.before.tolist() == pytest.approx(numbers(losses), rel=1e-6)
        learner.update(batches, scales)
        change = look_again(learner, held)
        for i, (loss, tokens) in enumerate(zip(losses, held.tokens, strict=True)):
            if not tokens:
                continue
            expected = SGD["learning_rate"] * float(flat_gradient(loss / tokens, model) @ g_j)
            found = (change.before[i] - change.after[i]) / tokens
            assert found == pytest.approx(expected, rel=0.01, abs=3e-8)
            seen += abs(expected) > 1e-6
    assert seen >= 12, "too little to compare"


def test_an_update_that_moves_nothing_changes_no_loss(make_learner):
    learner = make_learner()
    optimizer = learner.config.engine.optimizer.model_copy(update={"learning_rate": 0.0})
    learner.engine.config = learner.engine.config.model_copy(update={"optimizer": optimizer})
    for _ in range(2):
        held, change = step(learner)
    assert held is not None
    assert change.before == change.after
    assert min(t for i, t in enumerate(change.tokens) if TASKS[i].name != "ru-en") > 0


def test_losses_are_those_of_the_training_weights_without_dropout(make_learner):
    """Neither of their moving average, which validation takes, nor with label smoothing; and training goes on in its mode."""
    learner = make_learner(engine__ema_decay=0.5, model__dropout=0.3, train__label_smoothing=0.2)
    for _ in range(3):
        step(learner)
    held = hold(learner, Lookahead(EVERY, "train", 60), learner.stream.next())
    assert held.before.tolist() == pytest.approx(numbers(held_losses(plain_model(learner), held)), rel=1e-6)
    assert learner.engine.module.training
    learner.engine.module.eval()
    look_again(learner, held)
    assert not learner.engine.module.training
    learner.engine.module.train()


def rows_by_task(held):
    rows = {task: [] for task in held.affected}
    for batch in held.batches:
        for slot, row in zip(batch.sentence_task.tolist(), batch.rows.tolist(), strict=True):
            rows[batch.tasks[slot]].append(row)
    return rows


def test_no_sentence_of_the_step_is_held_for_its_own_pair(make_learner):
    """60 sentences, of which a step holds about 20 and the held ones would be 30: they would meet. So would those of the
    other direction, which has the same text."""
    learner = make_learner()
    met = set()
    for _ in range(4 * len(TASKS)):
        batches = learner.stream.next()
        learner.step += 1
        if len(batches[0].tasks) > 1:
            continue
        learner.step -= 1
        held = hold(learner, Lookahead(EVERY, "train", 300), batches)
        learner.step += 1
        rows, trained = rows_by_task(held), TASKS[batches[0].tasks[0]]
        for task in TASKS:
            assert len(set(rows[task.index])) == len(rows[task.index])
            if task.pair == trained.pair:
                assert not set(rows[task.index]) & set(learner.stream.rows.tolist())
                met.add((trained.name, task.name))
            elif task.pair != "en-ru":
                assert len(rows[task.index]) > 20
        if trained.name == "ru-en":
            assert held.tokens[trained.index] == 0, "all of its five sentences are in the step"
            assert held.before[trained.index] == 0
    assert met == {(a.name, b.name) for a in TASKS for b in TASKS if a.pair == b.pair}


def test_dev_sentences_are_held_where_that_is_asked_for(make_learner):
    learner = make_learner()
    learner.stream.next()
    held = hold(learner, Lookahead((0, 3), "dev", 10_000), learner.stream.next())
    assert held.affected == (0, 3)
    assert {task: sorted(rows) for task, rows in rows_by_task(held).items()} == {0: list(range(9)), 3: list(range(9))}
    learner.engine.module.eval()
    model = plain_model(learner)
    assert held.before.tolist() == pytest.approx(numbers(held_losses(model, held)), rel=1e-6)
    learner.engine.module.train()


def test_held_sentences_are_drawn_anew_and_packed_into_few_passes(make_learner):
    learner = make_learner(batch__batch_tokens=200)
    drawn = []
    for _ in range(6):
        held, _ = step(learner, tokens=120)
        if held is not None:
            drawn.append(tuple(rows_by_task(held)[2]))
            spent = sum(len(b.source_ids) for b in held.batches)
            assert len(held.batches) in (2, 3), "about 400 tokens in passes of 200"
            assert spent > 250
    assert len(set(drawn)) == 3


def test_sums_keep_what_fp32_over_tasks_would_lose(make_learner):
    """The rounding of a sum of 5,000 nats in fp32 is 2e-4; summed by sentence and then in fp64 the losses of fp32 weights
    lie within 1e-4 of the fp64 model's, nearly all of it the forward pass's own."""
    learner = make_learner()
    learner.stream.next()
    held = hold(learner, Lookahead(EVERY, "train", 1000), learner.stream.next())
    exact = numbers(held_losses(plain_model(learner), held))
    assert float(held.before.max()) > 1000
    assert np.abs(held.before.numpy() - exact).max() < 1e-4
    assert held.before.dtype == torch.float64
