"""The Transformer with a tape: Gram, groups and combination against one backward pass a task."""

from __future__ import annotations

import pytest
import torch

from mnmt_scale.kernels.ops.task_tape import TaskTape
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.groups import GROUPS, OTHER, parameter_group
from mnmt_scale.model.transformer import Transformer
from tests.support.batches import batch_of, random_lengths

V = 60
SCALES = torch.tensor([0.1, 0.2, 0.3])
ALPHA = [0.5, 0.0, 2.0]


def make_model(**changes):
    torch.manual_seed(0)
    sizes = dict(d_model=16, d_ffn=24, heads=4, encoder_layers=2, decoder_layers=2, dropout=0.0, attention_dropout=0.0)
    model = Transformer(ModelConfig(**{**sizes, **changes}), V, label_smoothing=0.1).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
    return model


def gradients_of(model, batch):
    """name -> [K, ...] gradients of the scaled task sums, by one backward pass a task."""
    parameters = dict(model.named_parameters())
    rows = [torch.autograd.grad(model(batch, SCALES * torch.eye(3)[k]).total, list(parameters.values())) for k in range(3)]
    return {name: torch.stack(g) for name, g in zip(parameters, zip(*rows, strict=True), strict=True)}


def gram_of(gradients, names):
    flat = torch.cat([gradients[name].flatten(1) for name in names], dim=1)
    return flat @ flat.t()


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm": "post"}, {"norm_affine": False}, {"activation_checkpointing": True}, {"attention": "packed"}],
    ids=["pre-norm", "post-norm", "no affine", "checkpointing", "packed"],
)
def test_gram_by_group_and_combination(changes):
    batch = batch_of(random_lengths(9, tasks=2, longest=9), tasks=3, vocabulary=V)  # task 2 has no sentence
    model = make_model(**changes)
    truth = gradients_of(model, batch)
    tape = TaskTape(3, ALPHA)
    losses, plain = model(batch, SCALES, tape), model(batch, SCALES)
    assert losses.total.item() == pytest.approx(plain.total.item(), rel=1e-12)
    for ours, theirs in ((losses.sums, plain.sums), (losses.nlls, plain.nlls), (losses.tokens, plain.tokens)):
        torch.testing.assert_close(ours, theirs)
    losses.total.backward()
    groups = {group: [n for n in truth if parameter_group(n) == group] for group in GROUPS}
    groups = {group: names for group, names in groups.items() if names}
    assert set(tape.groups) == set(groups)
    assert ("E.LN" in groups) == ("D.LN" in groups) == model.config.norm_affine
    for group, names in groups.items():
        expected = gram_of(truth, names)
        assert (tape.groups[group] - expected).abs().max() <= 1e-10 * expected.abs().max(), group
    expected = gram_of(truth, truth)
    assert (tape.gram - expected).abs().max() <= 1e-10 * expected.abs().max()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, 0.5 * truth[name][0] + 2 * truth[name][2], rtol=1e-6, atol=1e-9)


def test_the_shared_table_needs_its_cross_term():
    """What is asserted above cannot pass without it: both uses of the table see the same rows."""
    batch = batch_of(random_lengths(9, tasks=3, longest=9), tasks=3, vocabulary=V)
    model = make_model()
    truth = gram_of(gradients_of(model, batch), ["shared.weight"])
    tape = TaskTape(3)
    tape.tie = lambda *args: None  # the embedding then does not know what the output layer did
    tape.claim = lambda *args: None
    model(batch, SCALES, tape).total.backward()
    assert (tape.groups["embeddings"] - truth).abs().max() > 1e-3 * truth.abs().max()


def test_dropout_is_drawn_as_in_an_ordinary_pass():
    batch = batch_of(random_lengths(9, tasks=3, longest=9), tasks=3, vocabulary=V)
    model = make_model(dropout=0.3, activation_dropout=0.2)
    results = []
    for tape in (None, TaskTape(3)):
        torch.manual_seed(5)
        total = model(batch, SCALES, tape).total if tape else model(batch, SCALES).total
        results.append(torch.autograd.grad(total, list(model.parameters())))
    for plain, measured in zip(*results, strict=True):
        torch.testing.assert_close(measured, plain, rtol=1e-9, atol=1e-12)


def test_names_of_the_weights():
    model = make_model()
    names = {n for n, _ in model.named_parameters()}
    assert model.measured_parameters() == names == set(model.state_dict())
    examples = {
        "shared.weight": "embeddings",
        "encoder.layers.1.self_attn.k_proj.bias": "E.SA",
        "encoder.layers.0.self_attn_layer_norm.weight": "E.LN",
        "encoder.layers.0.fc2.weight": "E.FC",
        "encoder.layers.0.final_layer_norm.bias": "E.LN",
        "encoder.layer_norm.weight": "E.LN",
        "decoder.layers.0.self_attn.out_proj.weight": "D.SA",
        "decoder.layers.0.encoder_attn.q_proj.weight": "D.EA",
        "decoder.layers.0.encoder_attn_layer_norm.weight": "D.LN",
        "decoder.layers.0.fc1.bias": "D.FC",
        "decoder.layer_norm.bias": "D.LN",
        "decoder.temperature": OTHER,
        "extra.weight": OTHER,
    }
    assert {name: parameter_group(name) for name in examples} == examples
    assert examples.keys() - names == {"decoder.temperature", "extra.weight"}
    assert {parameter_group(n) for n in names} == set(GROUPS)
    assert make_model(norm_affine=False).measured_parameters() == {n for n in names if "layer_norm" not in n}
