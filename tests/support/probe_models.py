"""Small models, sentences and plain truths for the tests of second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mnmt_scale.flow import TaskBatch
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.transformer import Transformer

from .batches import batch_of, random_lengths

HUNDREDS = dict(encoder_layers=1, decoder_layers=1, d_model=4, d_ffn=4, heads=1, max_positions=32, dropout=0.2)
"""With 16 words 440 parameters."""


def model_of(sizes: dict, vocabulary: int, *, seed: int = 3, dtype: torch.dtype = torch.float64) -> Transformer:
    """In evaluation mode, with dropout and label smoothing in the settings and no weight at its special initial value."""
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**sizes), vocabulary, label_smoothing=0.1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.dim() == 1 else 0.1))
            if name == "shared.weight":
                p.mul_(0.5)
    return model.to(dtype).eval()


def sentences_of(vocabulary: int, count: int = 6, *, longest: int = 8, seed: int = 0) -> TaskBatch:
    """One task; unequal lengths, so that blocks have padding."""
    return batch_of(random_lengths(count, longest=longest, seed=seed), vocabulary=vocabulary, seed=seed)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def mean_gradient(model: nn.Module, batches: Sequence[TaskBatch]) -> Tensor:
    """[P] gradient of the mean token NLL at the present weights, by the model as it trains (fast kernels)."""
    tokens = sum(batch.step_tokens[0] for batch in batches)
    for p in model.parameters():
        p.grad = None
    for batch in batches:
        model(batch, (1.0 / tokens,)).total.backward()
    return flat([p.grad for p in model.parameters()])


def differences(model: nn.Module, gradient: Callable[[], Tensor], direction: Tensor, step: float) -> Tensor:
    """Central difference of ``gradient()`` along ``direction``; the weights are put back."""
    parameters = list(model.parameters())
    kept = [p.detach().clone() for p in parameters]
    parts = direction.split([p.numel() for p in parameters])
    out = []
    with torch.no_grad():
        for sign in (1.0, -1.0):
            for p, old, part in zip(parameters, kept, parts, strict=True):
                p.copy_(old + sign * step * part.view_as(p))
            with torch.enable_grad():
                out.append(gradient())
        for p, old in zip(parameters, kept, strict=True):
            p.copy_(old)
    return (out[0] - out[1]) / (2 * step)
