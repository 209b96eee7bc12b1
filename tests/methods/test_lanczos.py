"""Both ends and the trace of known symmetric matrices, whole and cut into pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mnmt_scale.methods.cats.lanczos import Spectrum, hutchinson, lanczos, local_inner


def symmetric(eigenvalues, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """A dense matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64))
    return (q @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ q.t()).to(dtype)


def start(n: int, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SPREAD = np.concatenate([[-9.0, -3.0], np.linspace(-1.0, 2.0, 196), [5.0, 8.0]])


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_both_ends_and_the_signed_one_of_largest_magnitude(dtype, exact):
    matrix = symmetric(SPREAD, dtype=dtype)
    found = lanczos(lambda v: matrix @ v, start(200, dtype=dtype), steps=60, dimension=200, tolerance=1e-5)
    assert found.converged
    assert found.largest == pytest.approx(8.0, rel=exact)
    assert found.smallest == pytest.approx(-9.0, rel=exact)
    assert found.top == found.smallest


def test_top_is_positive_where_that_is_larger():
    matrix = symmetric(-SPREAD)
    found = lanczos(lambda v: matrix @ v, start(200), steps=60, dimension=200)
    assert found.top == found.largest == pytest.approx(9.0, rel=1e-4)


def test_it_stops_when_both_ends_are_known_and_not_before():
    matrix = symmetric(SPREAD)
    made = []

    def product(v):
        made.append(1)
        return matrix @ v

    early = lanczos(product, start(200), steps=200, dimension=200, tolerance=1e-2)
    assert early.steps == len(made)
    assert early.converged
    assert 5 < early.steps < 40
    full = lanczos(product, start(200), steps=25, dimension=200, tolerance=0.0)
    assert (full.steps, full.converged) == (25, False)


def test_the_small_end_is_found_beside_a_huge_top():
    """The bulk's residuals are tiny against 1000: that must not pass for convergence of the small end."""
    values = np.concatenate([[-3.0], np.linspace(-1.0, 1.0, 198), [1000.0]])
    matrix = symmetric(values)
    found = lanczos(lambda v: matrix @ v, start(200), steps=100, dimension=200, tolerance=1e-2)
    assert found.converged
    assert found.smallest == pytest.approx(-3.0, rel=1e-2)


def test_residuals_are_those_of_the_ritz_vectors_and_bound_the_error():
    """The residual theorem: some eigenvalue lies within |H x - theta x|."""
    matrix = symmetric(SPREAD)
    for steps in (4, 8, 16):
        found = lanczos(lambda v: matrix @ v, start(200), steps=steps, dimension=200, tolerance=0.0)
        q = krylov(matrix, start(200), steps)
        values, vectors = np.linalg.eigh((q.t() @ matrix @ q).numpy())
        for theta, residual, i in ((found.largest, found.largest_residual, -1), (found.smallest, found.smallest_residual, 0)):
            x = q @ torch.from_numpy(vectors[:, i].copy())
            assert theta == pytest.approx(values[i], rel=1e-9)
            assert residual == pytest.approx(float((matrix @ x - values[i] * x).norm()), rel=1e-6, abs=1e-9)
            assert np.abs(SPREAD - theta).min() <= residual + 1e-9


def krylov(matrix, v, steps):
    """An orthonormal basis of v, Hv, .. by QR after every product: Lanczos by other means."""
    basis = (v / v.norm())[:, None]
    for _ in range(steps - 1):
        basis = torch.linalg.qr(torch.cat((basis, (matrix @ basis[:, -1])[:, None]), dim=1))[0]
    return basis


def test_no_copies_of_converged_eigenvalues_after_many_steps():
    """Without reorthogonalisation fp32 Lanczos finds the outlying eigenvalues again and again, and its basis has no rank."""
    values = np.concatenate([np.linspace(0.0, 1.0, 95), [10.0, 20.0, 30.0, 40.0, 1000.0]])
    matrix = symmetric(values, dtype=torch.float32)
    seen = []
    lanczos(
        lambda v: (seen.append(v.clone()), matrix @ v)[1], start(100, dtype=torch.float32), steps=80, dimension=100, tolerance=0
    )
    basis = torch.stack(seen).double()
    assert basis.shape[0] > 30
    assert (basis @ basis.t() - torch.eye(basis.shape[0], dtype=torch.float64)).abs().max() < 1e-5


def test_a_space_that_is_exhausted_gives_the_exact_ends():
    matrix = symmetric([2.0, 2.0, 2.0, -1.0, 4.0])
    found = lanczos(lambda v: matrix @ v, start(5), steps=50, dimension=5, tolerance=0.0)
    assert found.converged
    assert found.steps == 3  # three different eigenvalues
    assert (found.largest, found.smallest) == (pytest.approx(4.0), pytest.approx(-1.0))
    nothing = lanczos(torch.zeros_like, start(5), steps=50, dimension=5)
    assert (nothing.largest, nothing.smallest, nothing.residual, nothing.converged) == (0.0, 0.0, 0.0, True)


def test_a_product_that_is_not_finite_gives_nan_and_ends():
    made = []
    found = lanczos(lambda v: (made.append(1), v * math.nan)[1], start(5), steps=50, dimension=5)
    assert len(made) == 1
    assert math.isnan(found.largest)
    assert not found.converged


def test_pieces_of_a_vector_give_what_the_whole_gives():
    """Two parts that exchange only inner products and the product's input, as ranks do."""
    matrix = symmetric(SPREAD)
    whole = lanczos(lambda v: matrix @ v, start(200), steps=12, dimension=200, tolerance=0.0)
    swapped = matrix[torch.arange(199, -1, -1)][:, torch.arange(199, -1, -1)]  # pieces in another order
    other = lanczos(
        lambda v: swapped @ v,
        start(200).flip(0),
        steps=12,
        dimension=200,
        tolerance=0.0,
        inner=lambda rows, v: local_inner([r[:70] for r in rows], v[:70]) + local_inner([r[70:] for r in rows], v[70:]),
    )
    assert whole.largest == pytest.approx(other.largest, rel=1e-12)
    assert whole.largest_residual == pytest.approx(other.largest_residual, rel=1e-9)


def test_inner_products_of_fp32_vectors_are_fp64():
    """1e8 * 1 + 1 - 1e8: fp32 accumulation loses the 1; longer than one chunk."""
    v = torch.zeros(600_000)
    v[0], v[300_000], v[599_999] = 1e8, 1.0, -1e8
    assert local_inner([torch.ones(600_000)], v).tolist() == [1.0]
    assert local_inner([v], torch.ones(600_000)).dtype is torch.float64


def signs(n: int, sample: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + sample)
    return torch.randint(0, 2, (n,), generator=generator, dtype=torch.float64) * 2 - 1


def test_trace_is_within_its_standard_error_and_exact_for_a_diagonal():
    matrix = symmetric(SPREAD)
    found = hutchinson(lambda v: matrix @ v, lambda i: signs(200, i), 400)
    # the variance of z'Hz over signs is 2 * (squares off the diagonal)
    deviation = math.sqrt(2 * float(matrix.square().sum() - matrix.diagonal().square().sum()) / 400)
    assert found.error == pytest.approx(deviation, rel=0.15)
    assert abs(found.value - SPREAD.sum()) < 4 * found.error
    diagonal = torch.linspace(-1, 3, 50, dtype=torch.float64)
    exact = hutchinson(lambda v: diagonal * v, lambda i: signs(50, i), 3)
    assert exact.value == pytest.approx(50.0)
    assert exact.error == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(hutchinson(lambda v: diagonal * v, lambda i: signs(50, i), 1).error)


def test_residual_is_relative_to_the_top():
    found = Spectrum(2.0, -4.0, 0.1, 0.2, 3, False)
    assert (found.top, found.residual) == (-4.0, pytest.approx(0.05))
