"""The formulas of ``mnmt estimate`` against the model itself and against numbers worked out by hand."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from mnmt_scale.bench.devices import DEVICES, assumed_mfu, device_of
from mnmt_scale.bench.estimate import (
    Assumptions,
    activation_bytes,
    communication_bytes,
    estimate,
    flops_per_target_token,
    memory,
    parameter_count,
)
from mnmt_scale.data.packing import pack_batch
from mnmt_scale.engine.config import EngineConfig
from mnmt_scale.errors import MnmtError
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.flops import training_flops
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.tasks import TaskSet
from mnmt_scale.train.config import RunConfig

TAGS = SimpleNamespace(eos=2, vocabulary_size=97, tag_id=lambda language: 4)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("norm_affine", [True, False])
@pytest.mark.parametrize("sizes", [(2, 2, 32, 64, 4), (1, 3, 48, 40, 2)])
def test_parameter_count_is_that_of_the_model(norm, norm_affine, sizes):
    names = ("encoder_layers", "decoder_layers", "d_model", "d_ffn", "heads")
    config = ModelConfig(norm=norm, norm_affine=norm_affine, **dict(zip(names, sizes, strict=True)))
    model = Transformer(config, 97)
    assert parameter_count(config, 97) == sum(p.numel() for p in model.parameters())


def test_parameter_count_of_the_published_m2m100_418m():
    assert parameter_count(ModelConfig(preset="m2m418"), 128_112) == 483_905_536


def saved_bytes(config: ModelConfig, lengths: list[tuple[int, int]]) -> int:
    """What autograd keeps for the layers of one forward pass, each storage once, weights left out."""
    tasks = TaskSet([("fr", "en")])
    generator = torch.Generator().manual_seed(0)
    sides = [[torch.randint(5, 97, (pair[i] - 2,), generator=generator).tolist() for pair in lengths] for i in (0, 1)]
    batch = pack_batch(*sides, [0] * len(lengths), list(tasks), TAGS)
    model = Transformer(config, 97).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden(batch)
    assert hidden.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("norm", "activation", "dropout"), [("pre", "relu", 0.1), ("post", "relu", 0.1), ("pre", "gelu", 0.1), ("pre", "relu", 0.0)]
)
def test_activation_bytes_are_what_autograd_keeps(norm, activation, dropout):
    config = ModelConfig(
        encoder_layers=3, decoder_layers=2, d_model=64, d_ffn=256, heads=4, norm=norm, activation=activation, dropout=dropout
    )
    lengths = [(n, n + 1) for n in range(8, 40)] * 2
    S, T = sum(a for a, _ in lengths), sum(b for _, b in lengths)
    temporary = 2 * T * (config.d_ffn + 2 * config.d_model) * 4
    mean = round(sum(b * b for _, b in lengths) / T)  # of the length, over tokens
    formula = activation_bytes(config, S, T, 4, gpu=False, sentence_tokens=mean) - temporary
    assert formula == pytest.approx(saved_bytes(config, lengths), rel=0.08)


def test_recomputing_keeps_less_and_computes_more():
    plain, again = (ModelConfig(preset="base", activation_checkpointing=on) for on in (False, True))
    assert activation_bytes(again, 4096, 4096, 2, gpu=True) < 0.4 * activation_bytes(plain, 4096, 4096, 2, gpu=True)
    ratio = flops_per_target_token(again, 100, 1.0, 30) / flops_per_target_token(plain, 100, 1.0, 30)
    assert ratio == pytest.approx(4 / 3, rel=0.01)


def test_flops_are_six_per_weight_and_token_but_for_attention():
    config, V = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=8, d_ffn=16, heads=2), 10
    matrices = 4 * 64 + 2 * 128 + 8 * 64 + 2 * 128 + V * 8  # encoder, decoder, output: each used once per token
    attention = 3 * (4 * 5 * 8 + 2 * 5 * 8 + 4 * 5 * 8)  # sentences of 5: encoder, decoder (causal), cross
    assert flops_per_target_token(config, V, 1.0, 5) == 6 * matrices + attention


def test_flops_agree_with_those_of_a_batch():
    config, V, n = ModelConfig(preset="bilingual"), 97, 30
    batch = pack_batch(*[[[5] * (n - 2)] * 4] * 2, [0] * 4, list(TaskSet([("fr", "en")])), TAGS)
    per_token = training_flops(config, V, batch) / batch.target_in.shape[0]
    assert flops_per_target_token(config, V, 1.0, n) == pytest.approx(per_token, rel=0.01)


@pytest.mark.parametrize("gpus", [1, 4])
def test_sharded_state_by_hand(gpus):
    config, V = ModelConfig(preset="tiny"), 1000
    P = parameter_count(config, V)
    share = -(-P // gpus)
    parts = dict(gpus=gpus, vocabulary_size=V, source_tokens=100, target_tokens=100, accumulation=1, gpu=True)
    one, two, three = (memory(config, EngineConfig(), stage=s, dtype="bf16", **parts) for s in (1, 2, 3))
    assert (one.weights, one.gradients, one.optimizer) == (2 * P, 4 * P, 12 * share)
    assert (two.weights, two.gradients, two.optimizer) == (2 * P, 4 * share, 12 * share)
    assert (three.weights, three.gradients, three.optimizer) == (2 * P + 2 * share, 4 * share, 12 * share)
    assert one.activations == two.activations == three.activations
    assert (one.communication == 0) == (gpus == 1)
    assert one.total == sum(getattr(one, f) for f in one.__dataclass_fields__ if f != "host")


def test_offload_moves_the_optimizer_to_the_host():
    engine = EngineConfig(deepspeed={"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    parts = dict(gpus=2, vocabulary_size=500, source_tokens=10, target_tokens=10, accumulation=1, gpu=True)
    moved = memory(ModelConfig(preset="tiny"), engine, stage=2, dtype="bf16", **parts)
    kept = memory(ModelConfig(preset="tiny"), EngineConfig(), stage=2, dtype="bf16", **parts)
    assert (moved.optimizer, moved.host) == (0, kept.optimizer)
    assert moved.total < kept.total


def test_communication_by_hand():
    sent = {s: communication_bytes(1000, 2, stage=s, gpus=4, accumulation=3) for s in (1, 2, 3)}
    assert sent == {1: 750 * (4 * 2 + 2), 2: 750 * (4 * 3 + 2), 3: 750 * (4 * 3 + 2 * 3)}
    assert communication_bytes(1000, 2, stage=3, gpus=1, accumulation=3) == 0


def test_time_and_cost_follow_from_the_assumptions():
    config = RunConfig.model_validate({"model": {"preset": "tiny"}, "train": {"max_steps": 1000}})
    assumed = Assumptions(mfu=0.5, rate=1e12, link=1e9, price=3.0, memory=1 << 40)
    result = estimate(config, device_of("h100"), 2, assumed)
    flops = config.batch.batch_tokens * flops_per_target_token(config.model, 32000, 1.0, 30)
    assert result["compute_seconds"] == pytest.approx(flops / (2 * 1e12 * 0.5))
    assert result["step_seconds"] == pytest.approx(result["compute_seconds"] + result["communication_bytes"] / 1e9)
    assert result["cost"] == pytest.approx(1000 * result["step_seconds"] / 3600 * 2 * 3.0)
    assert all(row["fits"] for row in result["memory"])


def test_more_memory_by_less_sharding():
    config = RunConfig.model_validate({"model": {"preset": "m2m418"}, "batch": {"batch_tokens": 4096}})
    for kind, gpus in itertools.product(DEVICES, (1, 8)):
        one, two, _ = estimate(config, DEVICES[kind], gpus, Assumptions())["memory"]
        assert one["total"] >= two["total"]


def test_dtype_follows_the_device():
    config = RunConfig()
    assert estimate(config, device_of("h200"), 1, Assumptions())["dtype"] == "bf16"
    assert estimate(config, device_of("v100"), 1, Assumptions())["dtype"] == "fp32"
    assert estimate(config, device_of("cpu"), 1, Assumptions())["dtype"] == "fp32"
    forced = RunConfig.model_validate({"engine": {"dtype": "bf16"}})
    with pytest.raises(MnmtError, match=r"E104.*does not compute in bf16"):
        estimate(forced, device_of("v100"), 1, Assumptions())


@pytest.mark.parametrize(("kind", "named"), [("h2000", "h200"), ("a100", "a100-40"), ("v1000", "v100"), ("mi300x", "known")])
def test_unknown_device_names_the_nearest(kind, named):
    with pytest.raises(MnmtError, match=named) as caught:
        device_of(kind)
    assert caught.value.code == "E102"


def test_mfu_lies_between_its_anchors():
    shares = [assumed_mfu(DEVICES["a100-80"], d) for d in (256, 512, 768, 1024, 2048)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.11, 0.30)
