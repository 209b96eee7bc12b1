"""What a training will need, by formula: parameters, memory of a rank by ZeRO stage, time, cost. Nothing is run.

P parameters, T target and S source tokens of a micro-batch on one rank, D width, F inner width, V vocabulary, H heads,
N ranks, b bytes of a weight (2 for bf16, 4 for fp32).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..engine.config import EngineConfig
from ..engine.ds_config import deepspeed_config
from ..errors import MnmtError
from ..kernels.ops.linear_cross_entropy import chunk_rows
from ..model.config import ModelConfig
from ..train.config import RunConfig
from .devices import Device, assumed_link, assumed_mfu

GPU_OVERHEAD_BYTES, GPU_FRAGMENTATION = 1 << 30, 0.10
"""CUDA context with its libraries, and what the allocator loses."""
CPU_OVERHEAD_BYTES, CPU_FRAGMENTATION = 800 << 20, 0.05
"""Python, torch and DeepSpeed themselves."""


@dataclass(frozen=True)
class Assumptions:
    """Everything that the estimate does not know. None: the value of ``bench.devices``.

    Attributes:
        mfu: share of ``rate`` that a step reaches; communication comes on top.
        rate: matrix-product FLOP/s of one device in the dtype of the weights.
        link: bytes/s of a rank in collectives.
        memory: bytes of one device.
        source_ratio: source tokens per target token (the longer side counts for the batch budget).
        sentence_tokens: mean sentence length; attention's operations and memory depend on it.
        price: of one device for one hour, in any currency.
    """

    mfu: float | None = None
    rate: float | None = None
    link: float | None = None
    memory: int | None = None
    source_ratio: float = 1.0
    sentence_tokens: int = 30
    price: float | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. ``host`` lies in main memory (offload); everything else on the device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    communication: int
    overhead: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        parts = asdict(self)
        return sum(parts.values()) - parts["host"]


def parameter_count(model: ModelConfig, vocabulary_size: int) -> int:
    """Parameters of ``Transformer(model, vocabulary_size)``; the tied table counts once."""
    D, F = model.d_model, model.d_ffn
    norm = 2 * D if model.norm_affine else 0
    attention = 4 * (D * D + D)
    feed_forward = 2 * D * F + F + D
    encoder = attention + feed_forward + 2 * norm
    decoder = 2 * attention + feed_forward + 3 * norm
    last_norms = 2 * norm if model.norm == "pre" else 0
    return vocabulary_size * D + model.encoder_layers * encoder + model.decoder_layers * decoder + last_norms


def flops_per_target_token(model: ModelConfig, vocabulary_size: int, source_ratio: float, sentence_tokens: int) -> float:
    """FLOPs of forward and backward pass (backward twice the forward) per target token; a multiply-add is two."""
    D, F, r, n = model.d_model, model.d_ffn, source_ratio, sentence_tokens
    encoder = r * (8 * D * D + 4 * D * F + 4 * r * n * D)
    decoder = 8 * D * D + 2 * n * D + 4 * D * D + 4 * D * F  # self-attention (causal: half), cross query and output
    decoder += r * 4 * D * D + 4 * r * n * D  # cross keys and values, products
    layers = model.encoder_layers * encoder + model.decoder_layers * decoder
    passes = 4 if model.activation_checkpointing else 3
    return passes * layers + 3 * 2 * vocabulary_size * D


def activation_bytes(
    model: ModelConfig, source_tokens: float, target_tokens: float, b: int, *, gpu: bool, sentence_tokens: int = 30
) -> int:
    """What autograd keeps of one micro-batch's layers for the backward pass, and its largest temporaries.

    Per token, a layer keeps the inputs of its norms and matrix products, query, key, value and the attention's output,
    the activation function's result, and one dropout mask a block (1 byte on GPU, a whole number on CPU). Bucketed
    attention keeps its output twice on GPU, padded and packed, and the attention probabilities on CPU.
    """
    D, F = model.d_model, model.d_ffn
    S, T = source_tokens, target_tokens
    mask = (1 if gpu else b) * D if model.dropout else 0
    packed = gpu and b == 2 and model.attention != "bucketed"
    attended = D * b + (4 * model.heads if packed else D * b if gpu else sentence_tokens * model.heads * b)
    inner = (F if model.activation == "relu" else 2 * F) * b + (
        (1 if gpu else b) * F + F * b if model.activation_dropout else 0
    )
    norm = 2 * D * b + 8
    feed_forward = norm + inner + mask
    encoder = S * (norm + 3 * D * b + attended + mask + feed_forward)
    decoder = T * (norm + 3 * D * b + attended + mask) + T * (norm + D * b + attended + mask) + S * 2 * D * b
    decoder += T * feed_forward
    ends = (S + T) * (mask + (norm if model.norm == "pre" else D * b))
    temporary = 2 * max(S, T) * (F + 2 * D) * b
    if model.activation_checkpointing:
        kept = (model.encoder_layers * S + model.decoder_layers * T) * D * b + max(encoder, decoder)
    else:
        kept = model.encoder_layers * encoder + model.decoder_layers * decoder
    return int(kept + ends + temporary)


def memory(
    model: ModelConfig, engine: EngineConfig, *, stage: int, dtype: str, gpus: int, vocabulary_size: int,
    source_tokens: float, target_tokens: float, accumulation: int, gpu: bool, sentence_tokens: int = 30,
) -> Memory:  # fmt: skip
    """Bytes on each rank at a ZeRO stage, following what ``engine.ds_config`` makes DeepSpeed allocate."""
    P, b = parameter_count(model, vocabulary_size), 2 if dtype == "bf16" else 4
    engine = engine.model_copy(update={"zero_stage": stage})
    zero = deepspeed_config(engine, dtype, num_parameters=P, accumulation=accumulation, world_size=gpus)["zero_optimization"]
    share = -(-P // gpus)
    weights = b * P if stage < 3 else b * share + b * min(P, int(zero.get("stage3_max_live_parameters", 1e9)))
    # stage 1 keeps whole gradients until the step; with bf16 weights DeepSpeed adds up in whole fp32 gradients
    gradients = 4 * P if stage == 1 else 4 * share
    moments = {"adam": 8, "adamw": 8, "sgd": 4 if engine.optimizer.momentum else 0}[engine.optimizer.name]
    optimizer = (4 + moments) * share  # the fp32 copy of the weights too, also where they are fp32
    host = 0
    if zero.get("offload_optimizer", {}).get("device") == "cpu":
        optimizer, host = 0, optimizer
    if engine.ema_decay:
        optimizer += 4 * share
    D, V, rows = model.d_model, vocabulary_size, min(chunk_rows(vocabulary_size), max(int(target_tokens), 1))
    loss = rows * V * (4 + (4 if gpu else b) + b) + V * D * (4 + b) + int(target_tokens) * D * b
    bucket = min(int(zero["reduce_bucket_size"]), P)
    communication = bucket * (4 + (b if b != 4 else 0)) if gpus > 1 else 0
    activations = activation_bytes(model, source_tokens, target_tokens, b, gpu=gpu, sentence_tokens=sentence_tokens)
    fixed, lost = (GPU_OVERHEAD_BYTES, GPU_FRAGMENTATION) if gpu else (CPU_OVERHEAD_BYTES, CPU_FRAGMENTATION)
    used = weights + gradients + optimizer + activations + loss + communication
    return Memory(weights, gradients, optimizer, activations, loss, communication, fixed + int(lost * used), host)


def communication_bytes(parameters: int, b: int, *, stage: int, gpus: int, accumulation: int) -> float:
    """Bytes that a rank sends in one step, with ring collectives: fp32 gradients, weights of ``b`` bytes."""
    if gpus == 1:
        return 0.0
    ring = parameters * (gpus - 1) / gpus
    reduces = accumulation if stage > 1 else 1
    gathers = accumulation if stage == 3 else 1
    return ring * (4 * reduces * (2 if stage == 1 else 1) + b * gathers)


def estimate(config: RunConfig, device: Device, gpus: int, assumed: Assumptions) -> dict[str, Any]:
    """Everything that ``mnmt estimate`` prints, as plain values.

    Raises:
        MnmtError: E102 for a number of devices below one, E104 when the dtype is not native to the device.
    """
    if gpus < 1:
        raise MnmtError("E102", f"{gpus} devices", where="--gpus", remedy="give 1 or more")
    model, V = config.model, config.data.tokenizer.vocabulary_size
    dtype = _dtype(config.engine, device)
    b = 2 if dtype == "bf16" else 4
    T = config.batch.batch_tokens / (gpus * config.batch.accumulation)
    P = parameter_count(model, V)
    shared: dict[str, Any] = {
        "dtype": dtype,
        "gpus": gpus,
        "vocabulary_size": V,
        "source_tokens": T * min(assumed.source_ratio, 1.0),
        "target_tokens": T,
        "accumulation": config.batch.accumulation,
        "gpu": device.is_gpu,
        "sentence_tokens": assumed.sentence_tokens,
    }
    available = assumed.memory or device.memory_bytes
    stages = []
    for stage in (1, 2, 3):
        need = memory(model, config.engine, stage=stage, **shared)
        fits = None if available is None else need.total <= available
        stages.append({"stage": stage, "total": need.total, **asdict(need), "fits": fits})
    rate = assumed.rate or (device.bf16_rate if b == 2 else device.fp32_rate)
    mfu = assumed.mfu or assumed_mfu(device, model.d_model)
    link = assumed.link or assumed_link(device, gpus)
    flops = flops_per_target_token(model, V, assumed.source_ratio, assumed.sentence_tokens)
    step_tokens = config.batch.batch_tokens * min(1.0, 1.0 / assumed.source_ratio)
    compute = step_tokens * flops / (gpus * rate * mfu)
    sent = communication_bytes(P, b, stage=config.engine.zero_stage, gpus=gpus, accumulation=config.batch.accumulation)
    step = compute + sent / link
    hours = config.train.max_steps * step / 3600
    return {
        "device": device.name, "gpus": gpus, "dtype": dtype, "vocabulary_size": V, "parameters": P,
        "zero_stage": config.engine.zero_stage, "memory_available": available, "memory": stages,
        "flops_per_target_token": flops, "step_tokens": step_tokens,
        "compute_seconds": compute, "communication_bytes": sent, "communication_seconds": sent / link, "step_seconds": step,
        "tokens_per_second": step_tokens / step, "steps": config.train.max_steps,
        "hours": hours, "device_hours": hours * gpus,
        "cost": None if assumed.price is None else hours * gpus * assumed.price,
        "assumed": {**asdict(assumed), "rate": rate, "mfu": mfu, "link": link, "memory": available},
    }  # fmt: skip


def _dtype(engine: EngineConfig, device: Device) -> str:
    if engine.dtype == "auto":
        return "bf16" if device.is_gpu and device.bf16_rate else "fp32"
    if engine.dtype == "bf16" and device.bf16_rate is None:
        raise MnmtError("E104", f"{device.name} does not compute in bf16", where="engine.dtype", remedy="set it to fp32")
    return engine.dtype
