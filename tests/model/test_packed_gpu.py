"""Packed variable-length attention on the GPU against padded blocks on the CPU."""

import pytest
import torch

from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.transformer import Transformer
from tests.support.batches import batch_of, random_lengths

pytestmark = pytest.mark.gpu
V = 500


@pytest.mark.parametrize("bucketed", [True, False])
def test_losses_and_gradients_are_near_those_of_the_cpu(bucketed):
    config = ModelConfig(preset="tiny", dropout=0.0)
    torch.manual_seed(0)
    model = Transformer(config, V, label_smoothing=0.1)
    batch = batch_of(random_lengths(40, tasks=3, longest=60), tasks=3, vocabulary=V, bucketed=bucketed)
    scales = (1.0, 0.5, 2.0)
    losses = model(batch, scales)
    losses.total.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model = model.to("cuda", torch.bfloat16)
    fast = model(batch.to("cuda"), scales)
    fast.total.backward()
    torch.testing.assert_close(fast.sums.cpu(), losses.sums, rtol=0.01, atol=0.5)
    for name, p in model.named_parameters():
        if not name.endswith("k_proj.bias"):  # truly zero
            assert (p.grad.float().cpu() - expected[name]).norm() <= 0.05 * expected[name].norm(), name


def test_empty_micro_batch_reaches_every_parameter():
    model = Transformer(ModelConfig(preset="tiny"), V).to("cuda", torch.bfloat16)
    losses = model(batch_of([], tasks=2, vocabulary=V, bucketed=False).to("cuda"), (1.0, 1.0))
    losses.total.backward()
    assert losses.total.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
