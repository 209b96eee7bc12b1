"""Training with helpers that fade: Eq. 14 and 15 against probabilities made by hand, epochs, variants, state."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from mnmt_scale.data.config import SamplingConfig
from mnmt_scale.data.sampler import task_shares
from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import Observation, Request, StepReport
from mnmt_scale.methods.affinity.config import FtacConfig
from mnmt_scale.methods.affinity.ftac import Ftac
from mnmt_scale.methods.affinity.sampling import epoch_of, faded_shares
from mnmt_scale.methods.catalog import make_method
from mnmt_scale.methods.joint import Joint
from mnmt_scale.methods.spec import Facts, MethodConfig
from mnmt_scale.settings import validate
from mnmt_scale.tasks import TaskSet
from tests.support.batches import batch_of
from tests.support.streams import LIMIT, STORE, make_stream

SIZES = {"de-en": 32, "en-fr": 243, "en-ru": 1}
TASKS = TaskSet([("en", "de"), ("en", "fr"), ("en", "ru")])
FACTS = Facts(("en-de", "en-fr", "en-ru"), (1 / 3, 1 / 2, 1 / 6), 3, 1, sizes=(32, 243, 1))


def eq_14(temperature):
    return task_shares(SamplingConfig(temperature=temperature), TASKS, SIZES)


def test_temperature_by_hand():
    """The fifth roots of 32, 243 and 1 are 2, 3 and 1."""
    assert eq_14(5.0) == pytest.approx([1 / 3, 1 / 2, 1 / 6], rel=1e-12)
    assert eq_14(1.0) == pytest.approx([32 / 276, 243 / 276, 1 / 276], rel=1e-12)


@pytest.mark.parametrize(
    ("served", "epoch", "decay", "by_hand"),
    [
        # c = {de}: helpers times 1/3: 1/3, 1/6, 1/18 = (6, 3, 1) / 18
        ([0], 0, 0.0, [0.6, 0.3, 0.1]),
        ([0], 0, 0.5, [0.6, 0.3, 0.1]),
        ([0], 5, 0.0, [0.6, 0.3, 0.1]),
        # E = 5, lambda = 0.5: helpers times 1/3 / 3.5 = 2/21: 1/3, 1/21, 1/63 = (21, 3, 1) / 63
        ([0], 5, 0.5, [0.84, 0.12, 0.04]),
        # c = {de, fr}: the helper times 2/3: 1/3, 1/2, 1/9 = (6, 9, 2) / 18; at E = 5 2/3 / 3.5 = 4/21: (42, 63, 4) / 126
        ([0, 1], 0, 0.5, [6 / 17, 9 / 17, 2 / 17]),
        ([0, 1], 5, 0.5, [42 / 109, 63 / 109, 4 / 109]),
        # HTAC: c = g
        ([0, 1, 2], 0, 0.5, [1 / 3, 1 / 2, 1 / 6]),
        ([0, 1, 2], 5, 0.5, [1 / 3, 1 / 2, 1 / 6]),
        ([0, 1, 2], 5, 0.0, [1 / 3, 1 / 2, 1 / 6]),
    ],
)
def test_equation_15_by_hand(served, epoch, decay, by_hand):
    p = faded_shares(eq_14(5.0), served, epoch, decay)
    assert p == pytest.approx(by_hand, rel=1e-12)
    assert p.sum() == pytest.approx(1.0, abs=1e-15)


def test_equation_15_against_exact_arithmetic():
    rng = np.random.default_rng(3)
    for _ in range(100):
        counts, epoch = rng.integers(1, 1000, 6), int(rng.integers(0, 40))
        served, decay = rng.permutation(6)[: rng.integers(1, 7)].tolist(), Fraction(int(rng.integers(0, 9)), 4)
        factor = Fraction(len(served), 6) / (1 + decay * epoch)
        weights = [Fraction(int(n)) * (1 if i in served else factor) for i, n in enumerate(counts)]
        truth = [float(w / sum(weights)) for w in weights]
        p = faded_shares(counts / counts.sum(), served, epoch, float(decay))
        assert p == pytest.approx(truth, rel=1e-12)


def test_helpers_fade_to_the_hard_clustering_and_keep_their_proportions():
    base = eq_14(5.0)
    rows = np.array([faded_shares(base, [0], epoch, 0.5) for epoch in range(50)])
    assert (np.diff(rows[:, 0]) > 0).all()
    assert rows[:, 1] / rows[:, 2] == pytest.approx(3.0)
    assert faded_shares(base, [0], 10**12, 0.5) == pytest.approx([1.0, 0.0, 0.0], abs=1e-11)
    assert faded_shares([0.5, 0.5, 0.0], [0], 0, 0.5).tolist() == [0.75, 0.25, 0.0], "what is never sampled stays out"


def test_epochs_count_from_zero():
    assert [epoch_of(drawn, 276) for drawn in (0, 275, 276, 551, 552)] == [0, 0, 1, 1, 2]


def ftac(facts=FACTS, **settings):
    return Ftac(FtacConfig(**{"tasks": ["en-de"], **settings}), facts)


def seen(*drawn):
    return Observation(StepReport(1, (0, 1, 2), (1.0,) * 3, (1.0,) * 3, (9,) * 3, 1e-3, 1.0), drawn=drawn)


def test_shares_hold_before_the_first_step_and_change_once_an_epoch():
    method = ftac()
    assert method.epoch_sentences == 276, "one epoch is all of g_k once"
    assert method.shares() == pytest.approx([0.6, 0.3, 0.1])
    assert method.shares() is None
    method.observe(seen(200, 75, 0))
    assert method.shares() is None
    method.observe(seen(200, 76, 0))
    assert method.shares() == pytest.approx(faded_shares(FACTS.shares, [0], 1, 0.5))
    assert method.shares() is None
    method.observe(seen(276 * 5, 0, 0))
    assert method.shares() == pytest.approx([0.84, 0.12, 0.04]), "epochs may be passed over"
    assert ftac(epoch_sentences=7).epoch_sentences == 7
    assert method.wants(0) == method.wants(17) == Request()


def test_variants():
    fixed, warm, hard = ftac(decay=0.0), ftac(auxiliary="temperature"), ftac(tasks=list(FACTS.names))
    assert fixed.shares() == pytest.approx([0.6, 0.3, 0.1])
    assert warm.shares() is hard.shares() is None, "the shares of the settings are in force"
    for method in (fixed, warm, hard):
        method.observe(seen(3000, 0, 0))
        assert method.epoch == 10
        assert method.shares() is None
    assert fixed.log()["weights"] == pytest.approx({0: 0.6, 1: 0.3, 2: 0.1})
    for method in (warm, hard):
        assert method.log()["weights"] == pytest.approx(dict(enumerate(FACTS.shares)))


def test_log_has_what_was_drawn_in_this_epoch():
    method = ftac()
    assert method.log() == {"weights": pytest.approx({0: 0.6, 1: 0.3, 2: 0.1}), "epoch": 0}
    method.observe(seen(60, 30, 10))
    assert method.log()["drawn"] == pytest.approx({"en-de": 0.6, "en-fr": 0.3, "en-ru": 0.1})
    method.observe(seen(200, 70, 20))
    assert method.log()["epoch"] == 1
    assert "drawn" not in method.log()
    method.observe(seen(203, 70, 21))
    assert method.log()["drawn"] == {"en-de": 0.75, "en-fr": 0.0, "en-ru": 0.25}


def test_resumed_equals_uninterrupted():
    method, other = ftac(), ftac()
    method.observe(seen(250, 20, 10))
    method.observe(seen(260, 30, 10))
    before = [method.shares(), method.shares()]
    other.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert other.log() == method.log()
    assert other.state_dict() == method.state_dict()
    assert other.shares() == before[0], "the stream gets again what it has"
    assert other.shares() is before[1] is None
    for one in (method, other):
        one.observe(seen(560, 30, 10))
    assert other.shares() == method.shares() == pytest.approx(faded_shares(FACTS.shares, [0], 2, 0.5))


def test_state_of_another_cluster_is_refused():
    with pytest.raises(MnmtError, match=r"E405.*for en-fr, this run is for en-de"):
        ftac().load_state_dict(ftac(tasks=["en-fr"]).state_dict())


def test_the_loss_is_the_token_mean():
    batch = batch_of([(4, 5, 0), (6, 7, 0), (3, 9, 2)], tasks=3)
    assert ftac().scales(batch) == Joint().scales(batch)


def test_the_stream_draws_what_equation_15_says():
    """Over the epochs of a real stream, counted from its cursors: the sentences drawn and the epochs' beginnings."""
    stream = make_stream(unit="sentences", batch_tokens=2000, max_tokens=LIMIT + 40)
    names = tuple(f"{t.source}-{t.target}" for t in stream._tasks)
    facts = Facts(names, tuple(stream.shares.tolist()), len(names), 1, tuple(STORE.sizes()[t.pair] for t in stream._tasks))
    method = ftac(facts, tasks=["en-fr", "fr-en"])
    total, served = sum(facts.sizes), [names.index("en-fr"), names.index("fr-en")]
    start, seen_epochs = np.zeros(len(names)), 0
    stream.set_shares(method.shares())
    while seen_epochs < 4:
        stream.plan()
        method.observe(Observation(seen().report, drawn=stream.drawn))
        shares = method.shares()
        if shares is not None:
            drawn = np.array(stream.drawn)
            truth = faded_shares(facts.shares, served, seen_epochs, 0.5)
            assert (drawn - start) / (drawn - start).sum() == pytest.approx(truth, abs=1.5e-3)
            assert math.isclose(drawn.sum(), (seen_epochs + 1) * total, abs_tol=300)
            start, seen_epochs = drawn, seen_epochs + 1
            assert method.epoch == seen_epochs
            stream.set_shares(shares)


def test_settings():
    config = validate(MethodConfig, {"name": "ftac", "ftac": {"tasks": ["en-de"], "decay": 0.25}}, "test")
    assert make_method(config, FACTS).shares() == pytest.approx([0.6, 0.3, 0.1])
    for wrong in ({"decay": -1.0}, {"decay": math.inf}, {"tasks": []}, {"cluster": -1}, {"auxiliary": "fixed"}):
        with pytest.raises(MnmtError):
            validate(FtacConfig, wrong, "test")
    with pytest.raises(MnmtError, match=r"E104.*one of them"):
        validate(FtacConfig, {"tasks": ["en-de"], "groups": "groups.json"}, "test")


def test_shares_of_a_resumed_training_without_fading_replace_those_that_faded():
    """The stream's state has the faded shares, which nothing else would take away."""
    fading = ftac()
    assert fading.shares() is not None
    plain = ftac(auxiliary="temperature")
    plain.load_state_dict(json.loads(json.dumps(fading.state_dict())))
    assert plain.shares() == pytest.approx(FACTS.shares)
    assert plain.shares() is None
    once_more = ftac(auxiliary="temperature")
    once_more.load_state_dict(json.loads(json.dumps(plain.state_dict())))
    assert once_more.shares() == pytest.approx(FACTS.shares), "those of the stream are of settings that may have changed"
