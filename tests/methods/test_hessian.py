"""Hessian-vector products against the full Hessian, numpy's eigenvalues and finite differences of gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mnmt_scale.methods.cats.hessian import Pieces, ReplicatedHessian, twice_differentiable
from mnmt_scale.methods.cats.lanczos import hutchinson, lanczos
from tests.support.batches import batch_of
from tests.support.probe_models import HUNDREDS, differences, flat, mean_gradient, model_of, sentences_of

VOCABULARY = 16
LENGTHS = [(5, 6, 0), (4, 6, 0), (6, 4, 0)]


def row_by_row(model, batch) -> torch.Tensor:
    """[P, P] Hessian of the mean token NLL, one backward pass for each entry of the gradient."""
    parameters = list(model.parameters())
    with twice_differentiable():
        mean = model(batch, (1.0 / batch.step_tokens[0],)).total
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean, parameters, create_graph=True)])
        rows = [flat(torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True)) for g in gradient]
    return torch.stack(rows)


@pytest.fixture(scope="module")
def few():
    """A model of a few hundred parameters in fp64, its sentences in one padded block, and its whole Hessian."""
    model, batch = model_of(HUNDREDS, VOCABULARY), batch_of(LENGTHS, vocabulary=VOCABULARY, max_waste=1.0)
    assert any(lengths is not None for lengths in batch.buckets.source_lengths), "no padding is tested"
    return model, batch, row_by_row(model, batch)


def product_of(model, *batches, rank=0, size=1):
    hessian = ReplicatedHessian(model, rank, size)
    return hessian, hessian.of(batches, sum(b.step_tokens[0] for b in batches))


def test_the_whole_hessian_is_that_of_the_gradient_that_training_uses(few):
    """Central differences of first-order gradients, which come from the fast kernels: dropout and smoothing are off in both."""
    model, batch, matrix = few
    assert model.config.dropout > 0
    assert model.label_smoothing > 0
    assert 400 < matrix.shape[0] < 500
    assert (matrix - matrix.t()).abs().max() < 1e-14
    for seed in range(3):
        v = torch.randn(matrix.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = differences(model, lambda: mean_gradient(model, [batch]), v, 1e-6)
        assert (found - matrix @ v).norm() < 1e-8 * (matrix @ v).norm()


def test_products_are_columns_of_it(few):
    model, batch, matrix = few
    hessian, product = product_of(model, batch)
    n = matrix.shape[0]
    assert (hessian.pieces.length, hessian.pieces.total) == (n, n)
    for i in (0, 70, n - 1):
        e = torch.zeros(n, dtype=torch.float64)
        e[i] = 1.0
        torch.testing.assert_close(product(e), matrix[i], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-8), (torch.float32, 2e-5)])
def test_lanczos_gives_numpys_eigenvalues(few, dtype, exact):
    model, batch, matrix = few
    values = np.linalg.eigvalsh(matrix.numpy())
    hessian, product = product_of(model_of(HUNDREDS, VOCABULARY, dtype=dtype), batch)
    found = lanczos(product, hessian.pieces.normal(1, dtype), steps=60, dimension=len(values), tolerance=1e-5)
    assert found.converged
    assert found.largest == pytest.approx(values[-1], rel=exact)
    assert found.smallest == pytest.approx(values[0], rel=exact)
    assert found.top == pytest.approx(max(values, key=abs), rel=exact)
    assert values[0] < -0.1 * values[-1], "a Hessian without negative curvature tests only one end"


def test_trace_is_the_sum_of_eigenvalues(few):
    model, batch, matrix = few
    hessian, product = product_of(model, batch)
    found = hutchinson(product, lambda i: hessian.pieces.signs(10 + i, torch.float64), 60)
    deviation = math.sqrt(2 * float(matrix.square().sum() - matrix.diagonal().square().sum()) / 60)
    assert found.error == pytest.approx(deviation, rel=0.4)
    assert abs(found.value - float(matrix.trace())) < 4 * deviation


def test_several_batches_are_one(few):
    model = few[0]
    whole, parts = batch_of(LENGTHS, vocabulary=VOCABULARY, bucketed=False), []
    sentences = [sentences_of(VOCABULARY, count, seed=seed) for seed, count in enumerate((3, 2))]
    hessian, product = product_of(model, *sentences)
    v = hessian.pieces.normal(2, torch.float64)
    for batch in sentences:
        parts.append(product_of(model, batch)[1](v) * batch.step_tokens[0])
    tokens = sum(b.step_tokens[0] for b in sentences)
    together = sum(parts) / tokens
    assert (product(v) - together).norm() < 2e-7 * together.norm(), "1 / tokens is rounded to fp32, nothing else is"
    assert whole.buckets is None  # one attention over all tokens with a mask: the same Hessian as in blocks
    bucketed = batch_of(LENGTHS, vocabulary=VOCABULARY)
    torch.testing.assert_close(product_of(model, whole)[1](v), product_of(model, bucketed)[1](v), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    "changes", [{"norm": "post"}, {"norm_affine": False}, {"activation": "gelu"}, {"activation_checkpointing": True}]
)
def test_variants_of_the_model_have_symmetric_products_that_differences_confirm(changes):
    model, batch = model_of({**HUNDREDS, **changes}, VOCABULARY), sentences_of(VOCABULARY)
    hessian, product = product_of(model, batch)
    u, v = (hessian.pieces.normal(seed, torch.float64) for seed in (1, 2))
    hu, hv = product(u), product(v)
    assert float(u @ hv) == pytest.approx(float(v @ hu), rel=1e-10)
    found = differences(model, lambda: mean_gradient(model, [batch]), v, 1e-6)
    assert (found - hv).norm() < 1e-7 * hv.norm()


@pytest.fixture(scope="module")
def tiny():
    """The ``tiny`` preset (2 + 2 layers, 128/512) with a small vocabulary."""
    batch = sentences_of(60, 4, longest=8)
    return {dtype: model_of(dict(preset="tiny"), 60, dtype=dtype) for dtype in (torch.float32, torch.float64)}, batch


def test_lanczos_on_tiny_is_that_of_differences_of_gradients(tiny):
    """In fp64, where a step can be so small that hardly a ReLU switches on the way; the fp32 products agree with it."""
    models, batch = tiny
    model = models[torch.float64]
    hessian, product = product_of(model, batch)
    size = float(flat(list(model.parameters())).norm())

    def by_differences(v):
        return differences(model, lambda: mean_gradient(model, [batch]), v / v.norm(), 1e-9 * size) * v.norm()

    start = hessian.pieces.normal(1, torch.float64)
    how = dict(steps=9, dimension=hessian.pieces.total, tolerance=0.0)
    exact, other = lanczos(product, start, **how), lanczos(by_differences, start, **how)
    assert exact.largest == pytest.approx(other.largest, rel=1e-5)
    assert exact.smallest == pytest.approx(other.smallest, rel=1e-5)
    single = product_of(models[torch.float32], batch)[1]
    narrow = lanczos(single, start.float(), **how)
    assert narrow.largest == pytest.approx(exact.largest, rel=1e-4)
    assert narrow.smallest == pytest.approx(exact.smallest, rel=1e-4)


def test_converged_eigenvalue_of_tiny_is_the_curvature_along_its_vector(tiny):
    """The loss itself, to second order along the top Ritz vector: L(w + s x) + L(w - s x) - 2 L(w) = theta s^2."""
    models, batch = tiny
    model = models[torch.float64]
    hessian, product = product_of(model, batch)
    vectors, products = [], []

    def kept_product(v):
        vectors.append(v.clone())
        products.append(product(v))
        return products[-1].clone()  # Lanczos writes into what it gets

    start = hessian.pieces.normal(1, torch.float64)
    found = lanczos(kept_product, start, steps=40, dimension=hessian.pieces.total, tolerance=1e-2)
    assert found.converged
    q = torch.stack(vectors)
    projected = torch.stack(products) @ q.t()
    values, s = torch.linalg.eigh((projected + projected.t()) / 2)
    x = s[:, -1] @ q
    assert float(values[-1]) == pytest.approx(found.largest, rel=1e-8)
    rest = product(x) - found.largest * x
    assert float(rest.norm()) == pytest.approx(found.largest_residual, rel=1e-3)
    parameters, step = list(model.parameters()), 1e-5
    kept = [p.detach().clone() for p in parameters]
    losses = []
    with torch.no_grad():
        for factor in (0.0, step, -step):
            for p, old, part in zip(parameters, kept, x.split([p.numel() for p in parameters]), strict=True):
                p.copy_(old + factor * part.view_as(p))
            losses.append(float(model(batch, (1.0 / batch.step_tokens[0],)).total))
        for p, old in zip(parameters, kept, strict=True):
            p.copy_(old)
    assert (losses[1] + losses[2] - 2 * losses[0]) / step**2 == pytest.approx(found.largest, rel=1e-3)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_pieces_of_all_ranks_are_the_whole_vector(size):
    shapes = {"a": torch.Size([3, 5]), "b": torch.Size([2]), "c": torch.Size([7])}
    cpu = torch.device("cpu")
    ranks, one = [Pieces(shapes, r, size, cpu) for r in range(size)], Pieces(shapes, 0, 1, cpu)
    assert {p.total for p in ranks} == {24}
    for draw in (lambda p: p.normal(3), lambda p: p.signs(3)):
        cut, whole = [dict(p.views(draw(p))) for p in ranks], dict(one.views(draw(one)))
        for name in shapes:
            assert torch.equal(torch.cat([c[name] for c in cut]), whole[name]), "as if there were one rank"
            share = -(-shapes[name].numel() // size)
            assert all(len(c[name]) <= share for c in cut)


def test_draws_differ_by_seed_and_parameter_and_are_what_they_claim():
    pieces = Pieces({"a": torch.Size([5000]), "b": torch.Size([5000])}, 0, 1, torch.device("cpu"))
    signs, normal = pieces.signs(1), pieces.normal(1)
    assert set(signs.tolist()) == {1.0, -1.0}
    assert abs(float(signs.mean())) < 0.05
    assert abs(float(normal.mean())) < 0.05
    assert float(normal.std()) == pytest.approx(1.0, abs=0.05)
    for drawn, other in ((signs, pieces.signs(2)), (normal, pieces.normal(2))):
        a, b = drawn.split(5000)
        assert not torch.equal(a, b)
        assert not torch.equal(drawn, other)
