"""GradNorm: weights that bring gradient norms to their targets, by hand and as a descent on L_grad."""

from __future__ import annotations

import json

import pytest
import torch

from mnmt_scale.errors import MnmtError
from mnmt_scale.methods.gradnorm.config import GradNormConfig
from mnmt_scale.methods.gradnorm.method import GradNorm
from mnmt_scale.methods.gradnorm.weights import objective, renormalised, targets, updated
from mnmt_scale.methods.joint import Joint
from mnmt_scale.settings import validate
from tests.support.grams import batch_of, facts, gram_of, observed


def method_of(num_tasks: int = 3, tasks_per_batch: int | None = None, **settings) -> GradNorm:
    return GradNorm(validate(GradNormConfig, settings, "test"), facts(num_tasks, tasks_per_batch))


def rows_with(norms) -> torch.Tensor:
    """[K, 6] rows of these norms, along axes of their own and a shared one, so that the Gram is not diagonal."""
    rows = torch.zeros(len(norms), 6, dtype=torch.float64)
    for k, norm in enumerate(norms):
        rows[k, k], rows[k, 5] = 0.6 * norm, 0.8 * norm
    return rows


def test_the_update_by_hand():
    """Norms 1 and 3, mean 2, equal training rates: both should be 2, so the first weight rises, the second falls."""
    weights, loss = updated([1.0, 1.0], [1.0, 3.0], [0.7, 0.7], asymmetry=1.5, learning_rate=0.1, minimum=0.01)
    assert loss == pytest.approx(1.0 + 1.0)
    assert weights == pytest.approx([1.1 * 2 / 1.8, 0.7 * 2 / 1.8])


def test_targets_by_hand():
    """Weighted norms 2 and 6, mean 4; loss ratios 0.9 and 0.3, mean 0.6, so r = 1.5 and 0.5."""
    assert targets([2.0, 1.0], [1.0, 6.0], [0.9, 0.3], asymmetry=1.0) == pytest.approx([6.0, 2.0])
    assert targets([2.0, 1.0], [1.0, 6.0], [0.9, 0.3], asymmetry=2.0) == pytest.approx([9.0, 1.0])
    assert targets([2.0, 1.0], [1.0, 6.0], [0.9, 0.3], asymmetry=0.0) == pytest.approx([4.0, 4.0])
    assert objective([2.0, 1.0], [1.0, 6.0], [6.0, 2.0]) == pytest.approx(4.0 + 4.0)


def test_the_step_is_the_gradient_of_l_grad_with_the_targets_held():
    """As the paper has it done with automatic differentiation: G_k = |grad w_k L_k|, targets detached."""
    w = torch.tensor([1.3, 0.5, 1.2], dtype=torch.float64, requires_grad=True)
    n = torch.tensor([0.4, 2.0, 0.9], dtype=torch.float64)
    ratio = torch.tensor([0.8, 0.5, 0.9], dtype=torch.float64)
    g = w * n
    target = (g.mean() * (ratio / ratio.mean()) ** 1.5).detach()
    (g - target).abs().sum().backward()
    moved = w.detach() - 0.02 * w.grad
    moved *= w.detach().sum() / moved.sum()
    ours, loss = updated(w.tolist(), n.tolist(), ratio.tolist(), asymmetry=1.5, learning_rate=0.02, minimum=0.01)
    assert ours == pytest.approx(moved.tolist(), rel=1e-12)
    assert loss == pytest.approx((g - target).abs().sum().item())


def test_weights_settle_where_weighted_norms_meet_their_targets():
    norms, ratios, weights = [0.5, 1.0, 4.0], [0.9, 0.6, 0.6], [1.0, 1.0, 1.0]
    for step in range(4000):
        rate = 0.05 / (1 + 0.05 * step)  # a constant rate would go on hopping over the kink
        weights, loss = updated(weights, norms, ratios, asymmetry=1.0, learning_rate=rate, minimum=1e-3)
    # w_k n_k = c r_k with sum w = 3: w_k in the ratio r_k / n_k
    raw = [r / n for r, n in zip(ratios, norms, strict=True)]
    assert weights == pytest.approx([3 * x / sum(raw) for x in raw], rel=2e-2)
    assert loss < 0.02


def test_the_sum_is_kept_and_no_weight_falls_below_the_minimum():
    weights = [1.0, 1.0, 1.0]
    for _ in range(200):
        weights, _ = updated(weights, [0.1, 0.1, 50.0], [1.0, 1.0, 1.0], asymmetry=0.0, learning_rate=0.5, minimum=0.2)
        assert sum(weights) == pytest.approx(3.0, rel=1e-12)
        assert min(weights) >= 0.2
    assert renormalised([-3.0, 0.5, 1.0], 3.0, 0.1) == pytest.approx([0.1, 2.9 / 3, 5.8 / 3])
    assert renormalised([-1.0, 0.0], 3.0, 0.1) == [1.5, 1.5]
    # scaling down pushes the second below the minimum too
    assert renormalised([0.1, 0.11, 10.0], 2.0, 0.1) == pytest.approx([0.1, 0.1, 1.8])
    assert renormalised([5.0, 1.0], 0.2, 0.1) == pytest.approx([0.1, 0.1])


def test_permuting_tasks_permutes_weights():
    norms, ratios, order = [0.5, 1.0, 4.0], [0.9, 0.6, 0.7], [2, 0, 1]
    settings = dict(asymmetry=1.5, learning_rate=0.1, minimum=0.01)
    straight, _ = updated([1.2, 0.8, 1.0], norms, ratios, **settings)
    turned, _ = updated([[1.2, 0.8, 1.0][k] for k in order], [norms[k] for k in order], [ratios[k] for k in order], **settings)
    assert turned == pytest.approx([straight[k] for k in order], rel=1e-12)


def test_the_method_takes_norms_from_the_diagonal_and_ratios_from_the_first_losses():
    method = method_of(3, learning_rate=0.1, asymmetry=1.0)
    method.observe(observed(gram_of(rows_with([1.0, 2.0, 4.0]), losses=[9.0, 8.0, 6.0]), 0))
    first, _ = updated([1.0] * 3, [1.0, 2.0, 4.0], [1.0] * 3, asymmetry=1.0, learning_rate=0.1, minimum=0.01)
    assert method.weights == pytest.approx(first)
    method.observe(observed(gram_of(rows_with([1.5, 1.0, 3.0]), losses=[4.5, 6.0, 5.4]), 1))
    second, loss = updated(first, [1.5, 1.0, 3.0], [0.5, 0.75, 0.9], asymmetry=1.0, learning_rate=0.1, minimum=0.01)
    assert method.weights == pytest.approx(second)
    assert method.log() == {"weights": dict(enumerate(method.weights)), "l_grad": pytest.approx(loss)}


def test_norms_of_chosen_groups_alone():
    groups = {"E.FC": slice(0, 2), "D.FC": slice(2, 4), "D.LN": slice(4, 6)}
    rows = torch.tensor([[3.0, 4.0, 0.3, 0.4, 9.0, 9.0], [0.0, 1.0, 0.0, 2.0, 0.0, 1.0]], dtype=torch.float64)
    for chosen, norms in ((["D.FC"], [0.5, 2.0]), (["D.FC", "E.FC"], [25.25**0.5, 5**0.5])):
        method = method_of(2, learning_rate=0.01, groups=chosen)
        method.observe(observed(gram_of(rows, groups=groups), 0))
        expected, _ = updated([1.0, 1.0], norms, [1.0, 1.0], asymmetry=1.5, learning_rate=0.01, minimum=0.01)
        assert method.weights == pytest.approx(expected)
    with pytest.raises(MnmtError, match=r"E102.*'E.LN'.*it has E.FC, D.FC, D.LN"):
        method_of(2, groups=["E.LN"]).observe(observed(gram_of(rows, groups=groups), 0))


def test_a_batch_with_some_of_the_tasks_keeps_their_sum_and_leaves_the_others():
    method = method_of(5, 2, learning_rate=0.1)
    method.observe(observed(gram_of(rows_with([1.0, 3.0]), tasks=(1, 4)), 0))
    changed = list(method.weights)
    assert changed[1] > 1.0 > changed[4]
    assert (changed[0], changed[2], changed[3]) == (1.0, 1.0, 1.0)
    method.observe(observed(gram_of(rows_with([2.0, 3.0]), tasks=(3, 4)), 1))
    assert method.weights[1] == changed[1]
    assert method.weights[3] + method.weights[4] == pytest.approx(1.0 + changed[4])
    assert sum(method.weights) == pytest.approx(5.0)


def test_a_task_without_tokens_is_left_alone():
    method = method_of(3, learning_rate=0.1)
    rows = rows_with([1.0, 2.0, 4.0])
    rows[1] = 0.0
    method.observe(observed(gram_of(rows, tokens=[5, 0, 5], losses=[9.0, 0.0, 9.0]), 0))
    assert method.weights[1] == 1.0
    assert method.first_losses == [9.0, None, 9.0]
    method.observe(observed(gram_of(rows_with([1.0, 2.0, 4.0]), losses=[8.0, 7.0, 8.0]), 1))
    assert method.first_losses == [9.0, 7.0, 9.0], "its first loss is the first that was seen"
    batch = batch_of((0, 1, 2), (5, 0, 10))
    expected = (method.weights[0] / 2 / 5, 0.0, method.weights[2] / 2 / 10)
    assert method.scales(batch) == pytest.approx(expected)


def test_tasks_count_alike_before_the_first_observation_and_one_task_is_joint():
    assert method_of(3).scales(batch_of((0, 1, 2), (10, 20, 40))) == pytest.approx((1 / 30, 1 / 60, 1 / 120))
    method, batch = method_of(1), batch_of([0], [13])
    for step in range(5):
        method.observe(observed(gram_of(rows_with([0.3 + step])), step))
        assert method.scales(batch) == pytest.approx(Joint().scales(batch))


def test_observes_at_every_step_or_as_asked():
    assert [bool(method_of(every=3).wants(step)) for step in range(7)] == [True, False, False, True, False, False, True]
    assert method_of().wants(1).gram == "beside"


def test_a_resumed_run_goes_on_bitwise():
    whole, half, resumed = method_of(3), method_of(3), method_of(3)
    grams = [gram_of(rows_with([1.0 + step, 2.0, 5.0 - step]), losses=[9.0 - step, 9.0, 8.0]) for step in range(6)]
    for step, gram in enumerate(grams):
        whole.observe(observed(gram, step))
        if step < 3:
            half.observe(observed(gram, step))
    resumed.load_state_dict(json.loads(json.dumps(half.state_dict(), allow_nan=False)))
    for step, gram in enumerate(grams[3:], 3):
        resumed.observe(observed(gram, step))
    assert resumed.state_dict() == whole.state_dict()
    assert half.state_dict() != whole.state_dict()


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        ({"every": 0}, "E102", "every"),
        ({"asymmetry": -1.0}, "E102", "asymmetry"),
        ({"learning_rate": 0.0}, "E102", "learning_rate"),
        ({"minimum": 0.0}, "E102", "minimum"),
        ({"minimum": 1.0}, "E104", "below 1"),
        ({"groups": []}, "E104", "groups is empty"),
        ({"groups": ["D.FC", "D.FFN"]}, "E102", "'D.FFN' at method.gradnorm.groups; one of E.SA, E.FC"),
        ({"groups": "everything"}, "E102", "groups"),
        ({"alpha": 1.5}, "E101", "alpha"),
    ],
)
def test_bad_settings(settings, code, says):
    with pytest.raises(MnmtError) as error:
        validate(GradNormConfig, settings, "test")
    assert error.value.code == code
    assert says in str(error.value)
