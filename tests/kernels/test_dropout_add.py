"""Dropout from 16-bit random numbers: rate, scale, gradient, repeatability."""

import pytest
import torch

from mnmt_scale.kernels.ops.dropout_add import dropout_add


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_expectation(p):
    torch.manual_seed(0)
    y = dropout_add(None, torch.ones(400, 1001), p)
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / y.numel()) ** 0.5 + 2**-16)
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=2e-4, atol=0)
    rows = (y == 0).double().mean(dim=0)
    assert (rows - p).abs().max() < 6 * (p * (1 - p) / 400) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_residual_and_gradient(dtype):
    residual = torch.randn(33, 7, dtype=dtype, requires_grad=True)
    x = torch.randn(33, 7, dtype=dtype, requires_grad=True)
    d = torch.randn(33, 7, dtype=dtype)
    torch.manual_seed(3)
    y = dropout_add(residual, x, 0.3)
    torch.manual_seed(3)
    factor = dropout_add(None, torch.ones_like(x), 0.3).detach()
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(y, residual + x * factor, rtol=tolerance, atol=tolerance)
    d_residual, d_x = torch.autograd.grad(y, (residual, x), d)
    assert torch.equal(d_residual, d)
    torch.testing.assert_close(d_x, d * factor, rtol=tolerance, atol=tolerance)


def test_same_seed_same_mask_and_next_call_another():
    x = torch.ones(64, 64)
    torch.manual_seed(5)
    first, second = dropout_add(None, x, 0.5), dropout_add(None, x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(first, dropout_add(None, x, 0.5))
    assert not torch.equal(first, second)


def test_off_in_evaluation_and_at_zero():
    x, residual = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(dropout_add(residual, x, 0.5, training=False), residual + x)
    assert dropout_add(None, x, 0.0) is x


def test_no_entries():
    assert dropout_add(None, torch.zeros(0, 4), 0.5).shape == (0, 4)
