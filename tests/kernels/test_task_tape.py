"""The tape: hooks for several processes (reductions in a fixed order, Gram of the sums over ranks), parameters used twice."""

import pytest
import torch

from mnmt_scale.kernels.ops.segmented_output import segmented_linear_cross_entropy
from mnmt_scale.kernels.ops.segmented_wgrad import segmented_embedding, segmented_linear
from mnmt_scale.kernels.ops.task_tape import TaskTape
from mnmt_scale.kernels.segments import Segments

from .segmented_model import Batch, D, V, gram_of, make_parameters, segmented_pass, truth


class Calls:
    """A ``reduce`` that keeps everything and notes what it was asked."""

    def __init__(self) -> None:
        self.made = []

    def reduce(self, name, stacked, rows):
        self.made.append((name, None if rows is None else tuple(rows.tolist()), stacked.clone()))
        return stacked


def run(batch, parameters, **hooks):
    tape = TaskTape(batch.num_tasks, [1.0] * batch.num_tasks, **hooks)
    return tape, segmented_pass(parameters, batch, tape)


def test_every_parameter_is_reduced_once_in_the_same_order_on_every_rank():
    """A rank without tokens, one where a task has none, and one with all of them make the same calls."""
    parameters, orders = make_parameters(), []
    for sizes in (([5, 3], [6, 2]), ([5, 0], [6, 0]), ([0, 0], [0, 0])):
        calls, batch = Calls(), Batch(*sizes)
        run(batch, parameters, reduce=calls.reduce, shared_ids=lambda ids: torch.arange(V))
        orders.append([(name, rows is not None, tuple(stacked.shape)) for name, rows, stacked in calls.made])
        for name, _, stacked in calls.made:
            for k in range(2):
                assert stacked[k].any() == bool(sizes[1][k]), (name, k)
    assert orders[0] == orders[1] == orders[2]
    whole = [name for name, rows, _ in orders[0] if not rows]
    assert sorted(whole) == sorted(parameters)
    assert [(name, shape) for name, rows, shape in orders[0] if rows] == [("shared.weight", (2, V * D))] * 2


@pytest.mark.parametrize("weighted", [False, True])
def test_gram_of_the_sums_over_two_ranks(weighted):
    """Each rank's tokens of a task differ; the pieces that a rank keeps are cut off at some odd place."""
    parameters = make_parameters()
    batches = [Batch([5, 0, 2], [1, 4, 0], seed=1), Batch([1, 9, 0], [9, 2, 0], seed=2)]
    union = torch.unique(torch.cat([b.ids for b in batches]))
    diagonal = {name: torch.rand(p.shape) for name, p in parameters.items()}
    local = []
    for batch in batches:
        calls = Calls()
        run(batch, parameters, reduce=calls.reduce, shared_ids=lambda ids: union)
        local.append(calls.made)
    shares = []
    for rank, batch in enumerate(batches):
        made, number = [None], iter(range(100))

        def cut(n, rank=rank):
            return slice(0, n // 3) if rank == 0 else slice(n // 3, n)

        def reduce(name, stacked, rows, made=made, cut=cut, number=number, rank=rank):
            i = next(number)
            assert torch.equal(stacked, local[rank][i][2])
            total = local[0][i][2] + local[1][i][2]
            return total[:, cut(stacked.shape[1])].contiguous()

        def weights(name, rows, cut=cut):
            w = diagonal[name] if rows is None else diagonal[name][rows]
            return w.flatten()[cut(w.numel())]

        hooks = {"reduce": reduce, "shared_ids": lambda ids: union, "diagonal": weights if weighted else None}
        tape, gradients = run(batch, parameters, **hooks)
        own = truth(parameters, batch)
        for name, g in gradients.items():  # left to the engine to reduce
            torch.testing.assert_close(g, own[name].sum(dim=0))
        shares.append((tape.gram, own))
    total = {name: shares[0][1][name] + shares[1][1][name] for name in parameters}
    expected = gram_of(total, diagonal=diagonal if weighted else None)
    torch.testing.assert_close(shares[0][0] + shares[1][0], expected, rtol=1e-11, atol=1e-13)


def test_a_rank_may_keep_nothing():
    parameters, batch = make_parameters(), Batch([5, 3], [6, 2])
    tape, _ = run(batch, parameters, reduce=lambda name, stacked, rows: stacked[:, :0], shared_ids=lambda ids: ids)
    assert torch.equal(tape.gram, torch.zeros(2, 2, dtype=torch.float64))


def test_bad_hooks():
    x, m, s = torch.randn(5, 4), torch.randn(3, 4).requires_grad_(), Segments.of((0, 2, 5))

    def refused(message, **hooks):
        with pytest.raises(ValueError, match=message):
            segmented_linear(x, m, None, s, TaskTape(2, **hooks), "g", "layer").sum().backward()

    same = lambda ids: ids  # noqa: E731
    refused("reduce and shared_ids go together", reduce=lambda name, stacked, rows: stacked)
    refused("diagonal is a mapping, but with reduce", reduce=print, shared_ids=same, diagonal={"a": m})
    refused(r"reduce\('layer.weight'\) .* \[1, 12\], .* 2", reduce=lambda n, g, r: g[:1], shared_ids=same)
    refused(r"diagonal has no entry for layer.weight, but for a, b", diagonal={"a": m, "b": m})
    refused(r"diagonal of layer.weight has 3 elements, but 12", diagonal={"layer.weight": torch.ones(3)})
    refused(r"diagonal of layer.weight is on meta, .* cpu", diagonal=lambda name, rows: torch.ones(12, device="meta"))


def twice():
    x, ids, s = torch.randn(4, 3), torch.tensor([0, 1, 1, 2]), Segments.of((0, 1, 4))
    m, b = torch.randn(3, 3).requires_grad_(), torch.randn(3).requires_grad_()
    targets, ones = torch.tensor([0, 1, 2, 0]), torch.ones(4)

    def embed(tape, name):
        return segmented_embedding(ids, m, s, tape, name)

    def output(h, tape, tied=None):
        return segmented_linear_cross_entropy(h, m, targets, ones, s, tape, "out", embedding_ids=tied)[0]

    def linear(h, tape, name, weight=m, bias=b):
        return segmented_linear(h, weight, bias, s, tape, name)

    def retained(tape):
        y = linear(x, tape, "a").sum()
        y.backward(retain_graph=True)
        return y

    return {
        r"a\.weight.*b\.weight": lambda t: linear(linear(x, t, "a"), t, "b").sum(),
        r"a\.bias.*b\.bias": lambda t: linear(linear(x, t, "a"), t, "b", weight=m.detach().clone()).sum(),
        r"a\.weight.*a\.weight": retained,
        r"(source|target)\.weight.*(source|target)\.weight": lambda t: (embed(t, "source") + embed(t, "target")).sum(),
        r"shared\.weight.*out\.weight": lambda t: output(embed(t, "shared"), t),
        r"out\.weight.*out\.weight": lambda t: output(x, t) + output(x, t),
        r"ids hold 1, but rows .*embedding_ids.*\[0, 2\]": lambda t: output(embed(t, "shared"), t, torch.tensor([0, 2])),
    }  # fmt: skip


@pytest.mark.parametrize("message", list(twice()))
def test_a_parameter_used_twice_is_refused(message):
    with pytest.raises(ValueError, match=message):
        twice()[message](TaskTape(2)).backward()
