"""The project's own Transformer with a tape: every rank reduces in the same order, whatever it holds."""

import torch

from mnmt_scale.kernels.ops.task_tape import TaskTape
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.transformer import Transformer
from tests.support.batches import batch_of, random_lengths

V = 60


def test_every_rank_reduces_in_the_same_order():
    """Also one without sentences, whose attention takes another path."""
    orders = []
    for lengths in (random_lengths(9, tasks=3, longest=9), random_lengths(2, tasks=1), []):
        sizes = dict(d_model=16, d_ffn=24, heads=4, encoder_layers=2, decoder_layers=2, dropout=0.1)
        names, model = [], Transformer(ModelConfig(**sizes), V)

        def reduce(name, stacked, rows, names=names):
            names.append((name, stacked.shape))
            return stacked

        batch = batch_of(lengths, tasks=3, vocabulary=V)
        tape = TaskTape(3, reduce=reduce, shared_ids=lambda ids: torch.arange(V))
        model(batch, torch.ones(3), tape).total.backward()
        assert {name for name, _ in names} == model.measured_parameters()
        orders.append(names)
    assert orders[0] == orders[1] == orders[2]
