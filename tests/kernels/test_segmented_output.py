"""A whole model with a tied output layer, one backward pass: Gram and combination against one backward pass a task."""

import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mnmt_scale.flow import IGNORE
from mnmt_scale.kernels.ops import segmented_output, segmented_wgrad
from mnmt_scale.kernels.ops.linear_cross_entropy import linear_cross_entropy
from mnmt_scale.kernels.ops.segmented_output import segmented_linear_cross_entropy
from mnmt_scale.kernels.ops.task_tape import TaskTape
from mnmt_scale.kernels.segments import Segments

from .segmented_model import Batch, Segmented, V, gram_of, hidden_states, make_parameters, segmented_loss, segmented_pass, truth

BATCHES = {
    "four tasks": ([5, 3, 7, 3], [6, 2, 4, 9]),
    "one task": ([5], [6]),
    "a task without tokens": ([5, 0, 4], [2, 0, 7]),
    "a task with source tokens only": ([5, 2, 4], [2, 0, 7]),
    "sizes 1, 7, 63": ([1, 7, 63], [63, 1, 7]),
    "no tokens": ([0, 0], [0, 0]),
}


def check(gram, gradients, expected, alpha, tolerance):
    """Gram relative to its largest entry, each gradient relative to the tasks' largest."""
    want = gram_of(expected)
    assert (gram - want).abs().max() <= tolerance * want.abs().max()
    assert set(gradients) == set(expected)
    for name, g in gradients.items():
        weighted = torch.einsum("k,k...->...", torch.tensor(alpha, dtype=torch.float64), expected[name].double())
        assert (g.double() - weighted).norm() <= tolerance * sum(abs(a) for a in alpha) * expected[name].double().norm()


@pytest.mark.parametrize("sizes", BATCHES)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_gram_and_combination(sizes, eps):
    parameters, batch = make_parameters(), Batch(*BATCHES[sizes])
    alpha = [0.7, 0.0, -1.3, 2.0][: batch.num_tasks]
    tape = TaskTape(batch.num_tasks, alpha)
    gradients = segmented_pass(parameters, batch, tape, eps)
    check(tape.gram, gradients, truth(parameters, batch, eps), tape.alpha, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 6e-3)])
def test_narrow_types(dtype, tolerance):
    """Against fp64 from the same rounded weights. In bf16 and fp16 every activation is rounded too (2^-9, 2^-12), some
    ten times on the way to the deepest gradient, which the plain layers do alike."""
    parameters, batch = make_parameters(dtype), Batch([5, 3, 7], [6, 20, 4])
    alpha = [0.7, 0.0, -1.3]
    tape = TaskTape(3, alpha)
    gradients = segmented_pass(parameters, batch, tape)
    wide = {name: p.detach().double().requires_grad_() for name, p in parameters.items()}
    check(tape.gram, gradients, truth(wide, batch), tape.alpha, tolerance)
    assert tape.gram.dtype == torch.float64
    assert {g.dtype for g in gradients.values()} == {dtype}


def test_two_passes_are_bitwise_equal():
    parameters, batch = make_parameters(torch.float32), Batch([50, 30], [60, 20])
    tapes = [TaskTape(2, [0.3, 0.7]) for _ in range(2)]
    first, second = (segmented_pass(parameters, batch, tape) for tape in tapes)
    assert torch.equal(tapes[0].gram, tapes[1].gram)
    assert all(torch.equal(first[name], second[name]) for name in parameters)


def test_all_alphas_zero():
    parameters, batch = make_parameters(), Batch([5, 3], [6, 2])
    tape = TaskTape(2, [0.0, 0.0])
    gradients = segmented_pass(parameters, batch, tape)
    check(tape.gram, gradients, truth(parameters, batch), [0.0, 0.0], 1e-12)
    assert tape.gram.trace() > 0


def test_dropout_before_a_layer():
    parameters, batch, alpha = make_parameters(), Batch([50, 30], [6, 2]), [0.3, 0.7]
    tape = TaskTape(2, alpha)
    torch.manual_seed(5)
    gradients = segmented_pass(parameters, batch, tape, dropout=0.4)
    torch.manual_seed(5)
    check(tape.gram, gradients, truth(parameters, batch, dropout=0.4), tape.alpha, 1e-12)


@pytest.mark.parametrize("around", ["layers", "layers and output"])
def test_activation_checkpointing_counts_once(around):
    parameters, batch, alpha = make_parameters(), Batch([50, 30], [6, 2]), [0.3, 0.7]
    tape = TaskTape(2, alpha)
    layers = Segmented(parameters, tape)

    def output(h):
        return segmented_loss(h, parameters["shared.weight"], batch, tape)

    torch.manual_seed(5)
    if around == "layers":
        total = output(checkpoint(hidden_states, layers, batch, 0.4, use_reentrant=False))
    else:
        total = checkpoint(lambda: output(hidden_states(layers, batch, 0.4)), use_reentrant=False)
    gradients = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    torch.manual_seed(5)
    check(tape.gram, gradients, truth(parameters, batch, dropout=0.4), tape.alpha, 1e-12)


def test_groups_sum_to_the_total():
    parameters, batch = make_parameters(), Batch([5, 3, 0], [6, 2, 4])
    groups = {"encoder": "E", "norm": "E", "memory": "E", "decoder": "D", "last": "D", "output": "table", "shared": "table"}
    tape = TaskTape(3)
    segmented_pass(parameters, batch, tape, groups=groups)
    expected = truth(parameters, batch)
    for group in ("E", "D", "table"):
        names = [n for n in parameters if groups[n.split(".")[0]] == group]
        torch.testing.assert_close(tape.groups[group], gram_of(expected, names), rtol=1e-11, atol=1e-13)
    assert set(tape.groups) == {"E", "D", "table"}
    torch.testing.assert_close(tape.gram, sum(tape.groups.values()))


@pytest.mark.parametrize("as_function", [False, True])
def test_diagonal(as_function):
    parameters, batch = make_parameters(), Batch([5, 3], [6, 2])
    diagonal = {name: torch.rand(p.shape) + 0.1 for name, p in parameters.items()}
    given = (lambda name, rows: diagonal[name] if rows is None else diagonal[name][rows]) if as_function else diagonal
    tape = TaskTape(2, [1.0, 2.0], diagonal=given)
    gradients = segmented_pass(parameters, batch, tape)
    expected = truth(parameters, batch)
    torch.testing.assert_close(tape.gram, gram_of(expected, diagonal=diagonal), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(gradients["encoder.weight"], expected["encoder.weight"][0] + 2 * expected["encoder.weight"][1])


def test_untied_output():
    parameters, batch = make_parameters(), Batch([5, 3], [6, 2])
    tied = parameters["shared.weight"]
    table = tied.detach().clone().requires_grad_()
    tape = TaskTape(2, [1.0, 0.5])
    total = segmented_loss(hidden_states(Segmented(parameters, tape), batch), table, batch, tape, tied=False)
    d_output, d_embedding = torch.autograd.grad(total, (table, tied))
    expected = truth(parameters, batch)["shared.weight"]
    torch.testing.assert_close(d_output + d_embedding, expected[0] + 0.5 * expected[1])
    without = [row for row in range(V) if row not in batch.ids]
    assert not d_embedding[without].any()
    # without cross terms: <O_i, O_j> and <E_i, E_j> alone, found by a pass a task
    parts = []
    for k in range(2):
        one = TaskTape(2, [float(i == k) for i in range(2)])
        total = segmented_loss(hidden_states(Segmented(parameters, one), batch), table, batch, one, tied=False)
        parts.append(torch.autograd.grad(total, (table, tied)))
    for group, stack in zip(("output", "shared"), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(tape.groups[group], gram_of({"": torch.stack(stack)}), rtol=1e-11, atol=1e-13)


def test_losses_are_those_of_linear_cross_entropy():
    batch = Batch([0, 0, 0], [9, 0, 7])
    hidden, weight = torch.randn(16, 8).requires_grad_(), torch.randn(V, 8).requires_grad_()
    scale = batch.scale.float()
    plain = linear_cross_entropy(hidden, weight, batch.targets, scale, batch.target_segments.offsets, 0.1)
    arguments = (hidden, weight, batch.targets, scale, batch.target_segments, TaskTape(3), "o", 0.1)
    ours = segmented_linear_cross_entropy(*arguments)
    with torch.no_grad():
        bare = segmented_linear_cross_entropy(*arguments)
    for a, b, c in zip(ours, plain, bare, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(c, b.detach())
        assert a.dtype == b.dtype == c.dtype
    torch.testing.assert_close(torch.autograd.grad(ours[0], hidden), torch.autograd.grad(plain[0], hidden))


def test_pieces_of_a_task_and_all_targets_ignored():
    hidden, weight = torch.randn(9, 8).double().requires_grad_(), torch.randn(V, 8).double().requires_grad_()
    targets, scale = torch.arange(9), torch.rand(9)
    targets[3:5] = IGNORE
    tape = TaskTape(2, [2.0, 3.0])
    segments = Segments((0, 3, 5, 9), (0, 1, 0))
    total, sums, _, tokens = segmented_linear_cross_entropy(hidden, weight, targets, scale, segments, tape, "o")
    d_hidden, d_weight = torch.autograd.grad(total, (hidden, weight))
    plain = linear_cross_entropy(hidden, weight, targets, scale, (0, 9))
    e_hidden, e_weight = torch.autograd.grad(plain[0], (hidden, weight))
    assert tokens.tolist() == [7, 0]
    torch.testing.assert_close(sums, torch.stack((plain[1][0], torch.zeros((), dtype=torch.float64))))
    torch.testing.assert_close(d_hidden, e_hidden)
    torch.testing.assert_close(d_weight, 2 * e_weight)
    torch.testing.assert_close(tape.gram, torch.diag(torch.stack((e_weight.square().sum(), e_weight.new_zeros(())))))


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(TaskTape, "claim", lambda *_: None)  # gradcheck goes backward over one graph many times
    batch = Batch([0, 0], [3, 4])
    hidden, weight = torch.randn(7, 4).double().requires_grad_(), torch.randn(V, 4).double().requires_grad_()

    def total(h, w):
        return segmented_linear_cross_entropy(h, w, batch.targets, batch.scale, batch.target_segments, TaskTape(2), "o", 0.1)[0]

    assert torch.autograd.gradcheck(total, (hidden, weight))


def test_a_multiple_of_the_loss():
    """As a loss scale sends it: the Gram in its square, cross terms included."""
    parameters, batch, grams = make_parameters(), Batch([5, 3], [6, 2]), []
    for factor in (1.0, 8.0):
        tape = TaskTape(2)
        total = segmented_loss(hidden_states(Segmented(parameters, tape), batch), parameters["shared.weight"], batch, tape)
        gradients = torch.autograd.grad(factor * total, list(parameters.values()))
        grams.append((tape.gram / factor**2, [g / factor for g in gradients]))
    torch.testing.assert_close(grams[0], grams[1])


def test_a_forward_pass_alone_is_not_counted():
    parameters, batch = make_parameters(), Batch([5, 3], [6, 2])
    tape = TaskTape(2)
    hidden = hidden_states(Segmented(parameters, tape), batch)
    segmented_linear_cross_entropy(
        hidden, parameters["shared.weight"], batch.targets, batch.scale, batch.target_segments, tape, "o"
    )
    assert tape.groups == {}


def test_two_tapes_at_once():
    runs = []
    for seed, sizes, alpha in ((1, ([5, 3], [6, 2]), [1.0, 0.0]), (2, ([4, 4, 2], [1, 9, 3]), [0.5, 2.0, 1.0])):
        parameters, batch, tape = make_parameters(seed=seed), Batch(*sizes, seed=seed), TaskTape(len(alpha), alpha)
        hidden = hidden_states(Segmented(parameters, tape), batch)
        total = segmented_loss(hidden, parameters["shared.weight"], batch, tape)
        runs.append((parameters, batch, tape, total))
    everything = [p for run in runs for p in run[0].values()]
    gradients = torch.autograd.grad(runs[0][3] + runs[1][3], everything)
    for n, (parameters, batch, tape, _) in enumerate(runs):
        own = dict(zip(parameters, gradients[n * len(parameters) :], strict=False))
        check(tape.gram, own, truth(parameters, batch), tape.alpha, 1e-12)


def test_buffers_are_freed_layer_by_layer(monkeypatch):
    made = []

    def watch(module, function, which):
        inner = getattr(module, function)

        def watched(*args, **kwargs):
            assert all(ref() is None for ref in made), "another layer's K gradients are still alive"
            out = inner(*args, **kwargs)
            parts = [t for part in out[which] for t in (part if isinstance(part, list) else [part])]
            made.extend(weakref.ref(t) for t in parts if t is not None and t.dim() > 1)
            return out

        monkeypatch.setattr(module, function, watched)

    watch(segmented_wgrad, "linear_wgrad", slice(0, 2))
    watch(segmented_wgrad, "norm_wgrad", slice(0, 2))
    watch(segmented_wgrad, "embedding_wgrad", slice(1, 2))
    watch(segmented_output, "_task_gradients", slice(2, 3))
    tape = TaskTape(2)
    segmented_pass(make_parameters(), Batch([5, 3], [6, 2]), tape)
    assert len(made) == 12  # 10 buffers of all tasks, and one a task of the output layer
    assert all(ref() is None for ref in made)
    assert tape._tied == {}


def test_bad_input():
    h, w, y, ones = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4).long(), torch.ones(4)
    s, tape = Segments.of((0, 4)), TaskTape(1)

    def refused(message, hidden=h, weight=w, targets=y, scale=ones, segments=s, ids=None):
        with pytest.raises(ValueError, match=message):
            segmented_linear_cross_entropy(hidden, weight, targets, scale, segments, tape, "o", embedding_ids=ids)

    refused(r"segments cover 3 rows.* 4", segments=Segments.of((0, 3)))
    refused(r"task 1.* 1 tasks", segments=Segments((0, 4), (1,)))
    refused(r"weight has shape \[5, 2\], but the width of hidden needs \[\*, 3\]", weight=w[:, :2])
    refused(r"weight is torch.float64, but hidden is torch.float32", weight=w.double())
    refused(r"targets has shape \[3\], but hidden needs \[4\]", targets=y[:3])
    refused(r"targets holds [5-9], but weight has V = 5 rows", targets=y + 5)
    refused(r"targets holds -1, but weight has V = 5 rows", targets=y - 1)
    refused(r"targets is torch.int32", targets=y.int())
    refused(r"scale has shape \[3\], but hidden needs \[4\]", scale=ones[:3])
    refused(r"embedding_ids holds 9, but weight has 5 rows", ids=y + 9)


def test_a_gram_without_its_cross_terms_is_not_given_out():
    """A tied output layer whose embedding was left out of the tape, or whose backward pass has not run."""
    h, w, y = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 2, 3])
    tape = TaskTape(1)
    total, *_ = segmented_linear_cross_entropy(h, w, y, torch.ones(4), Segments.of((0, 4)), tape, "o", embedding_ids=y)
    total.backward()
    with pytest.raises(ValueError, match=r"gram lacks inner products: 1 output layer got embedding_ids, but 0 backward passes"):
        _ = tape.gram


def test_second_derivatives_are_refused():
    h, w, y = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 2, 3])
    s, ones = Segments.of((0, 4)), torch.ones(4)
    total, *_ = segmented_linear_cross_entropy(h, w, y, ones, s, TaskTape(1), "o")
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(total, w, create_graph=True)
    out = segmented_wgrad.segmented_linear(h, w, None, s, TaskTape(1), "l").sum()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(out, w, create_graph=True)
