"""``mnmt bench train --method affinity``: the figures follow from seconds and measurements, the bounds are judged. No speed."""

import math

import numpy as np
import pytest
import torch

from mnmt_scale.bench import affinity_cost
from mnmt_scale.bench.affinity_cost import (
    ALL,
    JOINT,
    ONE,
    PAIR_ALL,
    PAIR_ONE,
    Contender,
    bench_affinity,
    relative_error,
    report,
)
from mnmt_scale.bench.train_data import prepared
from mnmt_scale.cli.main import main
from tests.support.corpora import write_tree

PAIRS = {"de-en": 120, "en-fr": 60, "en-ru": 60}
MODEL = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "d_ffn": 32, "heads": 2}
SMALL = {"vocabulary_size": 400, "budget": 256, "device": "cpu"}
CPU = torch.device("cpu")
N = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("bench") / "tree", PAIRS)


@pytest.fixture(scope="module")
def found(corpus, tmp_path_factory):
    """Settings of the trainings, and their contenders after two stretches."""
    data = prepared(corpus, tmp_path_factory.mktemp("store"), 400)
    config = affinity_cost._config(data, ["de-en", "fr-en", "ru-en"], MODEL, "fp32", 256, CPU)
    contenders = {name: Contender.of(name, config, 200, "cpu") for name in affinity_cost.SETTINGS}
    for c in contenders.values():
        c.stretch(2 * N)
        c.stretch(2 * N)
    yield contenders
    for c in contenders.values():
        c.learner.close()


def test_standard_errors_at_equal_time_by_hand():
    # a quarter of the measurements in the same time, half the deviation: the same error
    assert relative_error(0.5, 1.0, 1.0, 4.0) == pytest.approx(1.0)
    # as long a step, N = 25 cells of a row instead of one: a fifth
    assert relative_error(2.0, 25.0, 2.0, 1.0) == pytest.approx(0.2)


def test_a_stretch_trains_every_direction_alone_once(found):
    counts = {name: c.method.windows.total("count") for name, c in found.items() if name != JOINT}
    assert np.array_equal(counts[ALL], np.full((N, N), 2.0))
    assert np.array_equal(counts[PAIR_ALL], counts[ALL])
    for name in (ONE, PAIR_ONE):
        assert counts[name].sum(axis=1).tolist() == [2.0] * N, "one affected direction at each of the 2 N single steps"
        assert found[name].measurements() == pytest.approx(2 / N)
    assert found[ALL].measurements() == 2.0
    assert all(len(c.seconds) == len(c.tokens) == 2 and min(c.seconds) > 0 for c in found.values())


def test_all_directions_and_one_train_the_same_model(found):
    """What is measured leaves the training as it is, so the contenders' variances are of the same quantity."""
    states = [found[name].learner.engine.module.state_dict() for name in (ALL, ONE, PAIR_ALL, PAIR_ONE)]
    assert all(bool((states[0][k] == other[k]).all()) for other in states[1:] for k in states[0])
    assert found[ALL].tokens == found[ONE].tokens


def test_a_pair_is_one_sentence(found):
    sizes = {name: [] for name in (ALL, PAIR_ALL)}
    for name, kept in sizes.items():
        c = found[name]
        observe = c.method.observe
        c.method.observe = lambda o, kept=kept, observe=observe: (kept.append(o.change.tokens), observe(o))
        try:
            c.stretch(2)
        finally:
            c.method.observe = observe
    assert all(few < many for few, many in zip(sizes[PAIR_ALL][0], sizes[ALL][0], strict=True))


def test_deviation_is_within_cells(found):
    c = found[ALL]
    (window,) = c.method.windows.all
    kept = window.count.copy(), window.squares.copy()
    try:
        window.count[:] = [[1, 3, 0], [2, 1, 1], [1, 1, 1]]
        window.squares[:] = [[0, 8, 0], [4, 0, 0], [0, 0, 0]]
        assert c.deviation() == pytest.approx(math.sqrt(12 / 3))
        window.count[:] = 1
        assert math.isnan(c.deviation())
    finally:
        window.count[:], window.squares[:] = kept


def test_rows_of_a_small_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(affinity_cost, "SIZES", MODEL)
    rows = list(bench_affinity(data=corpus, held=64, tasks=(8, 16), rounds=2, work=tmp_path, **SMALL))
    found = {(r["candidate"], r["metric"]): r for r in rows}
    assert len(found) == len(rows)
    assert {r["case"] for r in rows} == {"tree, N = 3"}
    assert all(r["value"] is not None and math.isfinite(r["value"]) for r in rows)
    rate = {name: found[name, "measurements of a cell"]["value"] for name in (ALL, ONE)}
    error = found[ALL, "standard error at equal time, over one at random"]
    assert error["value"] == pytest.approx(math.sqrt(rate[ONE] / rate[ALL]))
    assert error["settings"]["limit"] == pytest.approx(1 / math.sqrt(3))
    assert (error["settings"]["bound"], error["settings"]["met"]) == (0.2, "no")
    assert "missed" in report(rows)


def test_seconds_end_the_stretches_and_what_fails_is_a_row(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(affinity_cost, "SIZES", MODEL)
    stretches, stretch = [], Contender.stretch

    def slow(self, steps):
        stretches.append(self.name)
        if len(stretches) > 5 * 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        stretch(self, 1)
        self.seconds[-1] = 1.0

    monkeypatch.setattr(Contender, "stretch", slow)
    monkeypatch.setattr(affinity_cost, "_rows", lambda by_name, case, N, settings: [settings["rounds"]])
    rows = list(bench_affinity(data=corpus, tasks=(2, 3), rounds=9, seconds=17.0, work=tmp_path, **SMALL))
    assert rows[0] == 3, "one that is not counted, three of five seconds"
    failed = rows[1]
    assert (failed["case"], failed["value"]) == ("tree, N = 3", None)
    assert failed["settings"]["error"] == "OutOfMemoryError: CUDA out of memory"


def test_affinity_is_measured_alone(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "train", "--method", "affinity", "--method", "cats"])
    assert stopped.value.code == 2
    assert "MNMT-E104" in capsys.readouterr().err
