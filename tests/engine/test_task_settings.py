"""What of the measurement of task gradients needs no ranks: the cut, coverage, normalisation."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mnmt_scale.data.packing import only
from mnmt_scale.dist import World
from mnmt_scale.engine.coverage import uncovered
from mnmt_scale.engine.gradient_cut import GradientCut
from mnmt_scale.engine.task_grads import means
from tests.support.gram_models import model_of
from tests.support.gram_truth import shared_out

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("elements", "ranks", "borders"),
    [(10, 1, [0, 10]), (10, 3, [0, 4, 8, 10]), (2, 3, [0, 1, 2, 2]), (9, 3, [0, 3, 6, 9]), (5, 4, [0, 2, 4, 5, 5])],
)
def test_the_cut(elements, ranks, borders):
    cuts = [GradientCut(World(rank, ranks, rank, CPU)) for rank in range(ranks)]
    assert cuts[0].borders(elements) == borders
    assert [cut.span(elements) for cut in cuts] == list(pairwise(borders))


def test_one_rank_sends_nothing_and_copies_nothing():
    cut = GradientCut(World(0, 1, 0, CPU))
    stacked = torch.rand(3, 7)
    assert cut.sums(stacked) is stacked
    gradients = [torch.rand(2, 3), None]
    first, second = cut.all_sums([6, 4], list(gradients))
    assert torch.equal(first, gradients[0].flatten())
    assert torch.equal(second, torch.zeros(4))


@pytest.mark.parametrize(
    ("kind", "blamed"),
    [
        ("", None),
        ("Untied", None),
        ("Scaled", "parameter output_scale is not in a measured layer"),
        ("Reread", "parameter decoder.layer_norm.bias is used 2 times, but measured 1 times"),
        ("Repeated", "parameter encoder.layers.0.self_attn.k_proj.weight is used 2 times, but measured 2 times"),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True, "norm": "post"}, {"norm_affine": False}], ids=str)
def test_what_one_pass_can_measure(kind, blamed, changes):
    if kind == "Reread" and changes:
        changes = {}  # it needs the last norm's bias
    model = model_of(kind, **changes)
    assert uncovered(model, CPU) == blamed
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_a_tape():
    assert uncovered(torch.nn.Linear(2, 2), CPU) == "the model takes no tape"


def test_means_of_a_task_without_tokens():
    batch = shared_out(0, 1, 1, "missing")[0][0]
    assert means(batch) == (1 / batch.step_tokens[0], 0.0, 1 / batch.step_tokens[2])
    assert means(only(batch, 1)) == (0.0,)
