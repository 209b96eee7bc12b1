"""gramian: torchjd's weights from a Gram matrix, for batches of changing tasks, resumable and the same on all ranks."""

from __future__ import annotations

import json
import random

import pytest
import torch

from mnmt_scale.errors import MnmtError
from mnmt_scale.methods.gramian.config import GramianConfig
from mnmt_scale.methods.gramian.method import Gramian
from mnmt_scale.methods.gramian.table import REFUSED, WEIGHTINGS
from mnmt_scale.methods.gramian.weighting import NoSolution, Weighting, square_root
from mnmt_scale.methods.joint import Joint
from mnmt_scale.settings import validate
from tests.support.grams import batch_of, facts, gram_of, observed

A = pytest.importorskip("torchjd.aggregation", reason="the extra 'gramian' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:(?s).*not DPP")  # cvxpy, of the problem that torchjd gives it

SEED = 3
CONSTANT = [0.1, 0.4, 0.2, 0.3]
PREFERENCES = [0.4, 0.1, 0.3, 0.2]

# torchjd's own aggregators over the whole Jacobian, made once: what they remember is theirs
AGGREGATORS = {
    "UPGrad": (A.UPGrad, {}),
    "DualProj": (A.DualProj, {}),
    "MGDA": (A.MGDA, {}),
    "PCGrad": (A.PCGrad, {}),
    "GradVac": (A.GradVac, {}),
    "CAGrad": (lambda: A.CAGrad(0.5), {}),
    "NashMTL": (lambda: A.NashMTL(4), {}),
    "AlignedMTL": (A.AlignedMTL, {}),
    "IMTLG": (A.IMTLG, {}),
    "FairGrad": (lambda: A.FairGrad(2.0), {}),
    "ConFIG": (A.ConFIG, {}),
    "Krum": (lambda: A.Krum(0), {}),
    "CRMOGM": (lambda: A.GramianWeightedAggregator(A.CRMOGMWeighting(A.MGDAWeighting())), {}),
    "Mean": (A.Mean, {}),
    "Sum": (A.Sum, {}),
    "Random": (A.Random, {}),
    "Constant": (lambda: A.Constant(torch.tensor(CONSTANT, dtype=torch.float64)), {"weights": CONSTANT}),
}
WITH_ARGUMENTS = [
    ("UPGrad", lambda: A.UPGrad(torch.tensor(PREFERENCES, dtype=torch.float64)), {"pref_vector": PREFERENCES}),
    ("ConFIG", lambda: A.ConFIG(torch.tensor(PREFERENCES, dtype=torch.float64)), {"pref_vector": PREFERENCES}),
    ("AlignedMTL", lambda: A.AlignedMTL(scale_mode="rmse"), {"scale_mode": "rmse"}),
    ("CAGrad", lambda: A.CAGrad(0.2), {"c": 0.2}),
    ("NashMTL", lambda: A.NashMTL(4, max_norm=0.0), {"max_norm": 0}),
    ("MGDA", lambda: A.MGDA(max_iters=2), {"max_iters": 2}),
    ("Krum", lambda: A.Krum(1, 2), {"n_byzantine": 1, "n_selected": 2}),
    (
        "CRMOGM",
        lambda: A.GramianWeightedAggregator(A.CRMOGMWeighting(A.CAGradWeighting(0.2), 0.5)),
        {"weighting": "ca-grad", "weighting_arguments": {"c": 0.2}, "alpha": 0.5},
    ),
]
STATEFUL = [name for name, entry in WEIGHTINGS.items() if entry.state != "none"]
DRAWING = ["PCGrad", "GradVac", "Random"]


def jacobian(step: int, tasks: int = 4, width: int = 40) -> torch.Tensor:
    """[tasks, width] with conflicts: the rows share a direction of either sign and differ in size."""
    g = torch.Generator().manual_seed(100 + step)
    rows = torch.randn(tasks, width, generator=g, dtype=torch.float64)
    rows += 2.0 * torch.randn(tasks, 1, generator=g, dtype=torch.float64) * torch.randn(width, generator=g, dtype=torch.float64)
    return rows * torch.logspace(0, -0.6, tasks, dtype=torch.float64).unsqueeze(1)


def made(name: str, arguments=None, num_tasks: int = 4, per_batch: int = 4, seed: int = SEED) -> Weighting:
    return Weighting(name, arguments or {}, num_tasks=num_tasks, tasks_per_batch=per_batch, seed=seed)


def method_of(num_tasks: int = 4, tasks_per_batch: int | None = None, **settings) -> Gramian:
    return Gramian(validate(GramianConfig, settings, "test"), facts(num_tasks, tasks_per_batch, SEED))


def test_all_of_torchjd_is_either_there_or_refused():
    offered = {n.removesuffix("Weighting") for n in A.__all__} - {
        "",
        "Aggregator",
        "GramianWeightedAggregator",
        "WeightedAggregator",
    }
    assert offered == set(WEIGHTINGS) | set(REFUSED)
    assert not set(WEIGHTINGS) & set(REFUSED)
    assert set(AGGREGATORS) == set(WEIGHTINGS)


@pytest.mark.parametrize(
    ("name", "aggregator", "arguments"),
    [(name, make, arguments) for name, (make, arguments) in AGGREGATORS.items()] + WITH_ARGUMENTS,
)
def test_the_direction_is_that_of_torchjd_on_the_jacobian(name, aggregator, arguments):
    """Twelve steps, since some remember; torchjd sees the Jacobian, we its Gram matrix alone."""
    theirs, ours = aggregator(), made(name, arguments)
    weights = []
    for step in range(12):
        rows = jacobian(step)
        weights.append(ours(rows @ rows.T, range(4), step))
        torch.manual_seed(random.Random(f"gramian {SEED} {step}").getrandbits(63))  # the order that PCGrad and others draw
        truth = theirs(rows)
        distance = float((torch.tensor(weights[-1], dtype=torch.float64) @ rows - truth).norm() / truth.norm())
        assert distance < (2e-5 if name == "NashMTL" else 1e-9), (step, distance)  # Nash-MTL's iteration stops at about 1e-6
    if name not in ("Mean", "Sum", "Constant"):
        assert max(weights) != min(weights), "the Gram matrices must have mattered"


def test_nash_mtl_made_afresh_at_every_step_is_one_that_lived_on():
    theirs, ours = A.NashMTL(4), made("NashMTL")
    for step in range(8):
        rows = jacobian(step)
        gram = rows @ rows.T
        assert ours(gram, range(4), step) == theirs.weighting(square_root(gram)).tolist()


def test_upgrad_by_hand():
    """g1 = (1, 0), g2 = (-1, 1): each half gradient is projected on what hurts neither; then the two are added."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    weights = made("UPGrad", {"reg_eps": 1e-9}, 2, 2)(rows @ rows.T, (0, 1), 0)
    assert weights == pytest.approx([1 / 2 + 1 / 2, 1 / 4 + 1 / 2], abs=1e-6)


def test_pcgrad_and_mgda_by_hand():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    assert made("PCGrad", None, 2, 2)(rows @ rows.T, (0, 1), 0) == pytest.approx([2.0, 1.5])
    gram = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    assert made("MGDA", None, 2, 2)(gram, (0, 1), 0) == pytest.approx([0.2, 0.8], abs=1e-3)


@pytest.mark.parametrize("name", [n for n in WEIGHTINGS if n not in (*DRAWING, "Constant")])
def test_permuting_tasks_permutes_weights(name):
    order = [2, 0, 3, 1]
    straight, turned = made(name), made(name)
    for step in range(3):
        rows = jacobian(step)
        first = straight(rows @ rows.T, range(4), step)
        shuffled = rows[order]
        second = turned(shuffled @ shuffled.T, order, step)
        assert second == pytest.approx([first[k] for k in order], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", DRAWING)
def test_what_is_drawn_depends_on_seed_and_step_alone(name):
    rows = jacobian(5)
    gram = rows @ rows.T
    drawn = [made(name)(gram, range(4), step) for step in range(20)]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert [made(name)(gram, range(4), step) for step in range(20)] == drawn
    assert torch.equal(torch.get_rng_state(), before), "training draws its dropout from this generator"
    assert len({tuple(w) for w in drawn}) > 1
    assert [made(name, seed=SEED + 1)(gram, range(4), step) for step in range(20)] != drawn


@pytest.mark.parametrize("name", STATEFUL)
def test_a_resumed_run_goes_on_bitwise(name):
    def run(method: Gramian, steps: range) -> list[tuple[float, ...]]:
        return [method.weigh(gram_of(jacobian(step)), batch_of(range(4), [10] * 4, step)) for step in steps]

    whole, half, resumed, forgetful = (method_of(weighting=name) for _ in range(4))
    truth = run(whole, range(8))[4:]
    run(half, range(4))
    resumed.load_state_dict(json.loads(json.dumps(half.state_dict(), allow_nan=False)))
    assert run(resumed, range(4, 8)) == truth
    assert resumed.state_dict() == whole.state_dict()
    assert run(forgetful, range(4, 8)) != truth, "the state must have mattered"


@pytest.mark.parametrize("name", STATEFUL)
def test_state_belongs_to_tasks_and_not_to_places_in_the_batch(name):
    visited, straight = made(name, None, 5, 2), made(name, None, 5, 2)
    for step in range(4):
        rows = jacobian(step, tasks=2)
        visited(rows @ rows.T, (0, 3), step)
        straight(rows @ rows.T, (0, 3), step)
        other = jacobian(50 + step, tasks=2)
        visited(other @ other.T, (1, 4), step)
    rows = jacobian(9, tasks=2)
    assert visited(rows @ rows.T, (0, 3), 9) == straight(rows @ rows.T, (0, 3), 9)


def test_vectors_follow_the_tasks_of_a_batch():
    rows = jacobian(0, tasks=2)
    assert made("Constant", {"weights": CONSTANT}, 4, 2)(rows @ rows.T, (1, 3), 0) == [0.4, 0.3]


@pytest.mark.parametrize("name", ["UPGrad", "DualProj", "MGDA", "PCGrad", "GradVac", "AlignedMTL", "IMTLG", "Mean", "Sum"])
def test_one_task_is_joint(name):
    batch = batch_of([0], [13])
    scales = method_of(1, weighting=name).weigh(gram_of(jacobian(0, tasks=1)), batch)
    assert scales == pytest.approx(Joint().scales(batch), rel=1e-12)


@pytest.mark.parametrize("name", ["MGDA", "UPGrad", "PCGrad", "NashMTL", "Krum"])
def test_a_task_without_tokens_does_not_exist(name):
    """Its gradient is zero, and MGDA, asked with it, would put all the weight there."""
    rows = jacobian(0, tasks=4)
    rows[1] = 0.0
    batch = batch_of((0, 1, 2, 4), (10, 0, 20, 30))
    scales = method_of(5, 4, weighting=name).weigh(gram_of(rows, batch.tasks, batch.step_tokens), batch)
    there = rows[[0, 2, 3]]
    alone = made(name, None, 5, 3)(there @ there.T, (0, 2, 4), 0)
    assert scales == pytest.approx((alone[0] / 10, 0.0, alone[1] / 20, alone[2] / 30), rel=1e-6)
    assert max(scales) > 0.0


def test_a_step_without_tokens_is_left_alone():
    batch = batch_of((0, 1), (0, 0))
    assert method_of(2).weigh(gram_of(torch.zeros(2, 5), batch.tasks, (0, 0)), batch) == (0.0, 0.0)


def test_current_asks_for_the_gram_first_and_means_otherwise():
    method = method_of()
    assert {method.wants(step).gram for step in range(5)} == {"first"}
    batch = batch_of(range(4), (10, 0, 20, 30))
    assert method.scales(batch) == pytest.approx((1 / 30, 0.0, 1 / 60, 1 / 90)), "a Gram that is not finite is never shown"
    rows = jacobian(0)
    scales = method.weigh(gram_of(rows), batch_of(range(4), (10, 5, 20, 30)))
    weights = made("UPGrad")(rows @ rows.T, range(4), 0)
    assert scales == pytest.approx([w / n for w, n in zip(weights, (10, 5, 20, 30), strict=True)], rel=1e-12)
    assert method.log() == {"weights": dict(enumerate(weights)), "label": "UPGrad", "failed": 0, "idle": 0}


def test_lagged_uses_the_last_gram_that_was_seen():
    method = method_of(5, 2, weighting="MGDA", weights="lagged", every=3)
    assert [bool(method.wants(step)) for step in range(7)] == [True, False, False, True, False, False, True]
    assert method.wants(3).gram == "beside"
    assert method.scales(batch_of((0, 3), (10, 20))) == pytest.approx((0.05, 0.025)), "all alike before the first Gram"
    rows = jacobian(0, tasks=2)
    method.observe(observed(gram_of(rows, (0, 3)), step=0))
    first = made("MGDA", None, 5, 2)(rows @ rows.T, (0, 3), 0)
    assert method.scales(batch_of((0, 3), (10, 20), 1)) == pytest.approx((first[0] / 10, first[1] / 20))
    mean = sum(first) / 2
    assert method.scales(batch_of((1, 3), (10, 20), 2)) == pytest.approx((mean / 10, first[1] / 20)), "not seen yet: the mean"
    method.observe(observed(gram_of(jacobian(3, tasks=2), (1, 4)), step=3))
    assert method.log()["weights"].keys() == {0, 1, 3, 4}
    assert method.log()["weights"][3] == first[1], "kept while other tasks are seen"
    assert method.log()["label"] == "MGDA (lagged)"
    resumed = method_of(5, 2, weighting="MGDA", weights="lagged", every=3)
    resumed.load_state_dict(json.loads(json.dumps(method.state_dict(), allow_nan=False)))
    batch = batch_of((0, 1), (10, 20), 4)
    assert resumed.scales(batch) == method.scales(batch)


def test_lagged_draws_by_the_step_whose_gram_it_saw():
    rows = jacobian(0)
    method = method_of(weighting="PCGrad", weights="lagged")
    for step in range(8):
        method.observe(observed(gram_of(rows), step))
        assert list(method.log()["weights"].values()) == made("PCGrad")(rows @ rows.T, range(4), step)


@pytest.mark.parametrize("weights", ["current", "lagged"])
def test_a_step_without_solution_is_counted_and_many_stop(monkeypatch, weights):
    method = method_of(weighting="GradVac", weights=weights, max_failures=2)
    batch = batch_of(range(4), [10] * 4)

    def step(number: int):
        if weights == "current":
            return method.weigh(gram_of(jacobian(number)), batch)
        method.observe(observed(gram_of(jacobian(number)), number))
        return method.scales(batch)

    good = step(0)
    kept = dict(method.weighting.kept)
    monkeypatch.setattr(A.GradVacWeighting, "forward", lambda self, gram: gram.diagonal() * torch.nan)
    expected = (0.025,) * 4 if weights == "current" else good
    assert step(1) == pytest.approx(expected)
    assert step(2) == pytest.approx(expected)
    assert method.log()["failed"] == 2
    assert method.weighting.kept == kept, "what is remembered stays as it was"
    with pytest.raises(MnmtError, match=r"E506.*3 steps in a row.*not finite"):
        step(3)
    monkeypatch.undo()
    step(4)
    assert method.state_dict()["failed_in_row"] == 0


def test_solver_errors_become_no_solution(monkeypatch):
    weighting = made("CAGrad")
    monkeypatch.setattr(A.CAGradWeighting, "forward", lambda self, gram: None @ gram)
    with pytest.raises(NoSolution, match="CAGrad"):
        weighting(torch.eye(4, dtype=torch.float64), range(4), 0)


@pytest.mark.parametrize("weighting", ["NashMTL", "Krum"])
def test_a_single_task_needs_no_weighing(weighting):
    Gramian(GramianConfig(weighting=weighting), facts(1))  # a training of one direction
    method = Gramian(GramianConfig(weighting=weighting), facts(4))
    for _ in range(20):
        scales = method.weigh(gram_of(torch.tensor([[2.0]]), tasks=(2,)), batch_of((2,), (10,)))
        assert scales == (0.1,)
    assert method.failed == 0
