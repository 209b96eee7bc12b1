"""Affinity probing: what is added up, when it is asked for, what goes into the file and the checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import LossChange, Observation, StepReport, TaskGram
from mnmt_scale.methods.affinity.config import AffinityConfig
from mnmt_scale.methods.affinity.method import Affinity
from mnmt_scale.methods.affinity.probe import Windows, pooled
from mnmt_scale.methods.catalog import make_method
from mnmt_scale.methods.joint import Joint
from mnmt_scale.methods.spec import Facts, MethodConfig
from mnmt_scale.probes import TENSORS, read_probe, write_probe
from tests.support.batches import batch_of

NAMES = ("en-de", "en-fr", "en-ru")
FACTS = Facts(NAMES, (0.5, 0.3, 0.2), 3, seed=1, max_steps=40)


def made(**settings):
    return Affinity(AffinityConfig(**settings), FACTS)


def report(step):
    return StepReport(step, (0, 1, 2), (1.0,) * 3, (1.0,) * 3, (9,) * 3, learning_rate=0.5, grad_norm=1.0)


def change(trained, before, after, tokens=(10, 20, 40), affected=(0, 1, 2)):
    return LossChange(trained, affected, before, after, tokens)


def seen(method, step, *args, **more):
    method.observe(Observation(report(step), change=change(*args, **more)))


def tables(method, step=40):
    about, tensors = method.measured(step, last=True)
    return about, {name: t.numpy() for name, t in tensors.items()}


def test_welford_is_mean_and_unbiased_variance():
    rng = np.random.default_rng(1)
    rows = 1e6 + rng.normal(size=(30, 2))  # sums of squares would lose the variance
    windows = Windows(3, 10)
    for row in rows:
        windows.at(1).add(2, (0, 1), row)
    tensors = {name: t.numpy()[0] for name, t in windows.tensors().items()}
    assert tensors["count"][2].tolist() == [30, 30, 0]
    assert tensors["mean"][2, :2] == pytest.approx(rows.mean(axis=0), rel=1e-15)
    assert tensors["variance"][2, :2] == pytest.approx(rows.var(axis=0, ddof=1), rel=1e-8)
    assert np.isnan(tensors["variance"][:2]).all()
    assert np.isnan(tensors["variance"][2, 2])
    assert (tensors["mean"][:2] == 0).all()


def test_the_row_is_the_trained_task_and_a_gain_is_positive():
    """Training 1 lowers the loss of 0 from 30 to 25 nats over 10 tokens, and raises that of 2."""
    method = made()
    seen(method, 2, 1, (30.0, 40.0, 80.0), (25.0, 40.0, 84.0))
    about, found = tables(method)
    assert found["mean"][0].tolist() == [[0, 0, 0], [0.5, 0.0, -0.1], [0, 0, 0]]
    assert found["count"][0].tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert (about["rows"], about["columns"]) == ("trained", "affected")


@pytest.mark.parametrize(
    ("settings", "expected", "words"),
    [
        ({}, [0.5, -0.1], "nats per target token"),
        ({"normalise": "sum"}, [5.0, -4.0], "nats summed over 512 tokens"),
        ({"change": "ratio"}, [1 - 25 / 30, 1 - 84 / 80], "1 - loss of i after"),
        ({"change": "ratio", "normalise": "sum"}, [1 - 25 / 30, 1 - 84 / 80], "1 - loss of i after"),
    ],
)
def test_what_a_cell_is(settings, expected, words):
    method = made(**settings)
    seen(method, 2, 1, (30.0, 80.0), (25.0, 84.0), tokens=(10, 40), affected=(0, 2))
    about, found = tables(method)
    assert found["mean"][0, 1, [0, 2]] == pytest.approx(expected, rel=1e-14)
    assert words in about["quantity"]


def test_a_task_of_which_nothing_was_held_is_not_counted():
    for settings in ({}, {"change": "ratio"}):
        method = made(**settings)
        seen(method, 2, 0, (0.0, 40.0, 80.0), (0.0, 36.0, 80.0), tokens=(0, 20, 40))
        assert tables(method)[1]["count"][0, 0].tolist() == [0, 1, 1]


def test_losses_that_are_not_finite_are_named():
    bad = change(0, (1.0, float("nan"), 1.0), (1.0, 1.0, float("inf")))
    assert bad.bad == (1, 2)
    assert change(0, (1.0,) * 3, (2.0,) * 3).bad == ()


def test_estimates_are_learning_rate_times_inner_products():
    gram = torch.tensor([[4.0, 1.0, 9.0], [1.0, 2.0, 9.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    measured = TaskGram((0, 2, 1), {"a": gram, "b": gram}, (8.0, 2.0, 0.0), (5, 5, 0), "segmented")
    method = made(estimate_every=1)
    for _ in range(2):
        method.observe(Observation(report(1), gram=measured))
    _, found = tables(method)
    assert found["estimate"][0].tolist() == [[4, 0, 1], [0, 0, 0], [1, 0, 2]]
    assert found["estimate_count"][0].tolist() == [[2, 0, 2], [0, 0, 0], [2, 0, 2]]
    ratio = made(estimate_every=1, change="ratio")
    ratio.observe(Observation(report(1), gram=measured))
    assert tables(ratio)[1]["estimate"][0].tolist() == [[0.5, 0, 0.5], [0, 0, 0], [0.125, 0, 1]], "over the affected loss"


def test_what_is_asked_for_when():
    method = made(every_steps=3, estimate_every=2, split="dev", held_tokens=64)
    asked = [method.wants(step) for step in range(12)]
    singles = [step for step, request in enumerate(asked) if request and request.lookahead]
    assert singles == [2, 5, 8, 11]
    assert {asked[s].gram for s in singles} == {""}
    assert asked[2].lookahead.affected == (0, 1, 2)
    assert (asked[2].lookahead.split, asked[2].lookahead.tokens) == ("dev", 64)
    # mixed steps are 0 1 3 4 6 7 9 10; every second of them
    assert [step for step, request in enumerate(asked) if request and request.gram == "beside"] == [1, 4, 7, 10]
    assert not any(made(every_steps=3).wants(step) for step in (0, 1, 3))


@pytest.mark.parametrize("wanted", [1, 2])
def test_random_affected_tasks_are_uniform_and_a_function_of_the_step(wanted):
    names = tuple(f"en-{a}{b}" for a in "abc" for b in "xy")
    method = Affinity(AffinityConfig(affected=wanted), Facts(names, (1 / 6,) * 6, 6, seed=4, max_steps=10))
    drawn = [method.wants(step).lookahead.affected for step in range(1, 6001, 2)]
    assert drawn == [method.wants(step).lookahead.affected for step in range(1, 6001, 2)]
    assert all(len(set(a)) == wanted and list(a) == sorted(a) for a in drawn)
    counts = np.bincount([i for a in drawn for i in a], minlength=6)
    assert np.abs(counts - 500 * wanted).max() < 4 * np.sqrt(500 * wanted), counts


def test_windows_follow_each_other_whatever_the_length_was():
    windows = Windows(2, 10)
    assert windows.at(3) is windows.at(10)
    windows.at(11)
    windows.length = 7  # a training that goes on with other settings
    windows.at(20)
    windows.at(21)
    windows.at(22)
    assert windows.spans(22) == [[1, 10], [11, 20], [21, 21], [22, 22]]
    assert [step for step in range(20, 29) if windows.ended(step)] == [28]
    late = Windows(2, 10)
    late.at(34)
    assert late.spans(34) == [[31, 34]]


def test_files_are_due_when_a_window_ends_and_at_the_end():
    method = made()  # a tenth of 40
    assert method.measured(4, last=True) is None, "nothing measured, nothing written"
    seen(method, 2, 0, (1.0,) * 3, (0.5,) * 3)
    assert method.measured(3, last=False) is None
    assert method.measured(4, last=False)[0]["windows"] == [[1, 4]]
    assert method.measured(3, last=True)[0]["windows"] == [[1, 3]]
    assert made(window_steps=25).windows.length == 25


def test_the_file_is_a_probe_file(tmp_path):
    method = made()
    for step in (2, 4, 6):
        seen(method, step, step % 3, (30.0, 40.0, 80.0), (25.0, 41.0, 84.0))
    about, tensors = method.measured(6, last=True)
    common = {
        "step": 6,
        "tasks": list(NAMES),
        "classes": dict.fromkeys(NAMES, "low"),
        "run": "x",
        "directions": "x",
        "tokens": 9,
    }
    write_probe(tmp_path / "x.safetensors", {**about, **common}, tensors)
    file = read_probe(tmp_path / "x.safetensors", "affinity")
    assert set(file.tensors) == set(TENSORS["affinity"])
    assert file.about["windows"] == [[1, 4], [5, 6]]
    assert file.tensors["mean"].shape == (2, 3, 3)


def test_state_comes_back_bit_for_bit_through_json():
    rng = np.random.default_rng(2)
    method, steps = made(estimate_every=1), range(2, 12)
    for step in steps:
        before = tuple(rng.uniform(1, 50, 3).tolist())
        seen(method, step, step % 3, before, tuple(rng.uniform(1, 50, 3).tolist()))
    again = made(estimate_every=1)
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    for one in (method, again):
        seen(one, 12, 1, (3.0,) * 3, (1 / 3,) * 3)
    left, right = (one.measured(12, last=True) for one in (method, again))
    assert left[0] == right[0]
    for name in left[1]:
        assert torch.equal(left[1][name].nan_to_num(-1.0), right[1][name].nan_to_num(-1.0)), name
    assert method.log() == again.log()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"split": "dev"}, "split = train, this run has dev"),
        ({"change": "ratio"}, "change = absolute, this run has ratio"),
        ({"normalise": "sum"}, "normalise = token, this run has sum"),
        ({"held_tokens": 99}, "held_tokens = 512, this run has 99"),
    ],
)
def test_cells_of_another_meaning_are_not_added_to(other, words):
    with pytest.raises(MnmtError, match=rf"E405.*{words}"):
        made(**other).load_state_dict(made().state_dict())
    made(every_steps=5, affected=1, estimate_every=3).load_state_dict(made().state_dict())


def test_pooling_windows_is_one_sample():
    rng = np.random.default_rng(3)
    values = rng.normal(size=12)
    windows = Windows(2, 4)
    for step, value in enumerate(values, 1):
        windows.at(step).add(0, (1,), (value,))
    windows.at(13).add(1, (1,), (2.0,))
    count, mean, error = (t.numpy() for t in pooled(windows.tensors()))
    assert count.tolist() == [[0, 12], [0, 1]]
    assert mean[0, 1] == pytest.approx(values.mean(), rel=1e-13)
    assert error[0, 1] == pytest.approx(values.std(ddof=1) / np.sqrt(12), rel=1e-12)
    assert np.isnan(error[1, 1])
    assert mean[0, 0] == 0
    assert windows.mean() == pytest.approx(mean, rel=1e-13)


def test_the_loss_is_that_of_joint_and_the_log_says_how_far_it_is():
    method = make_method(MethodConfig(name="affinity"), FACTS)
    batch = batch_of([(5, 5, 0), (5, 9, 1), (5, 7, 2)], tasks=3)
    assert method.scales(batch) == Joint().scales(batch)
    assert method.log() == {}
    for step, j in ((2, 0), (4, 1), (6, 2)):
        seen(method, step, j, (30.0, 40.0, 80.0), (25.0, 40.0, 84.0))
    assert method.log() == {
        "measured_steps": 3,
        "smallest_count": 1,
        "mean_on_itself": pytest.approx((0.5 + 0.0 - 0.1) / 3),
        "mean_on_others": pytest.approx((0.0 - 0.1 + 0.5 - 0.1 + 0.5 + 0.0) / 6),
    }
