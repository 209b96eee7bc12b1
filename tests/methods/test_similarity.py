"""Cosine, magnitude similarity and means over classes against hand-made gradients."""

from __future__ import annotations

import math

import pytest
import torch

from mnmt_scale.methods.cats.similarity import class_means, class_pair, cosine, magnitude, norms, with_sum

GRADIENTS = torch.tensor([[3.0, 0.0], [0.0, 4.0], [-6.0, 0.0]], dtype=torch.float64)


def test_hand_sized_numbers():
    gram = GRADIENTS @ GRADIENTS.t()
    assert norms(gram).tolist() == [3.0, 4.0, 6.0]
    assert cosine(gram).tolist() == [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]
    gamma = magnitude(gram)
    assert gamma.diagonal().tolist() == [1.0, 1.0, 1.0]
    assert gamma[0, 1].item() == pytest.approx(24 / 25)
    assert gamma[0, 2].item() == pytest.approx(36 / 45)
    assert torch.equal(gamma, gamma.t())


def test_they_are_those_of_the_vectors_and_within_bounds():
    g = torch.randn(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.logspace(-3, 3, 6)[:, None]
    gram = torch.stack([g @ g.t(), g[:, :20] @ g[:, :20].t()])
    for k, vectors in enumerate((g, g[:, :20])):
        expected = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
        torch.testing.assert_close(cosine(gram)[k], expected)
    assert bool((magnitude(gram) <= 1).all())
    assert magnitude(gram)[0, 0, 5] < 1e-4


def test_a_gradient_of_zero_has_no_direction():
    gram = torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.isnan(cosine(gram)).tolist() == [[False, True, True], [True, True, True], [True, True, True]]
    assert magnitude(gram)[0, 1] == 0
    assert math.isnan(magnitude(gram)[1, 2])
    assert class_means(cosine(gram), ["high", "low", "low"]) == {}


def test_the_sum_over_groups_is_not_the_mean_of_cosines():
    a = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], dtype=torch.float64)
    groups = with_sum({"E.SA": a, "D.SA": b})
    assert list(groups) == ["E.SA", "D.SA", "all"]
    assert cosine(groups["all"])[0, 1].item() == pytest.approx(-99 / 101)


def test_means_by_class_pair():
    matrix = torch.tensor(
        [[1.0, 0.1, 0.2, 0.3], [0.1, 1.0, 0.4, 0.5], [0.2, 0.4, 1.0, 0.6], [0.3, 0.5, 0.6, 1.0]], dtype=torch.float64
    )
    means = class_means(matrix, ["low", "high", "low", "high"])
    assert means == {
        "all": pytest.approx(2.1 / 6),  # the diagonal is no pair
        "high-low": pytest.approx((0.1 + 0.3 + 0.4 + 0.6) / 4),
        "low-low": pytest.approx(0.2),
        "high-high": pytest.approx(0.5),
    }
    assert set(class_means(matrix, ["low"] * 4)) == {"all", "low-low"}
    assert class_means(matrix[:1, :1], ["low"]) == {}


def test_a_pair_of_classes_is_named_from_high_to_low():
    assert class_pair("low", "high") == class_pair("high", "low") == "high-low"
    assert class_pair("low", "medium") == "medium-low"
    assert class_pair("medium", "high") == "high-medium"
