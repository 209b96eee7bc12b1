"""The DeepSpeed JSON of a training, and which of DeepSpeed's optimizer classes it must lead to.

Everything whose default DeepSpeed has changed between versions is written out, so that an upgrade changes no number:
``gradient_clipping`` (1.0 since 0.19.3), ``data_types.grad_accum_dtype`` (the model's dtype), ``communication_data_type``
(bf16 under bf16), the bf16 overflow check. Gradients are accumulated over micro-batches and summed over ranks in fp32 at
every stage.
"""

from __future__ import annotations

from typing import Any

from ..errors import MnmtError, nearest
from .config import EngineConfig

OPTIMIZER_CLASS = {
    # (ZeRO stage, dtype of the weights, dtype of gradient accumulation): DeepSpeed's class
    (1, "fp32", "fp32"): "DeepSpeedZeroOptimizer",
    (2, "fp32", "fp32"): "DeepSpeedZeroOptimizer",
    (3, "fp32", "fp32"): "DeepSpeedZeroOptimizer_Stage3",
    (1, "bf16", "fp32"): "BF16_Optimizer",
    (2, "bf16", "fp32"): "DeepSpeedZeroOptimizer",
    (3, "bf16", "fp32"): "DeepSpeedZeroOptimizer_Stage3",
}
"""What DeepSpeed 0.19.8 builds, asserted at start (E503).

bf16 at ZeRO-1 is a deliberate choice: its ``DeepSpeedZeroOptimizer`` would add the micro-batches up in bf16, of which 8
bits remain; ``BF16_Optimizer`` adds in fp32 at the price of one whole fp32 gradient (4 bytes a parameter) on each rank.
Where that is too much, ZeRO-2 accumulates in fp32 too and keeps only its share.
"""

OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "managed_gradient_accumulation",
    "gradient_clipping",
    "prescale_gradients",
    "gradient_predivide_factor",
    "bf16",
    "fp16",
    "amp",
    "torch_autocast",
    "data_types",
    "optimizer",
    "scheduler",
    "elasticity",
    "checkpoint",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization.stage",
    "zero_optimization.compute_grad_norm",
    "zero_optimization.elastic_checkpoint",
    "zero_optimization.zenflow",
    "zero_optimization.zero_hpz_partition_size",
    "zero_optimization.zero_quantized_weights",
)
"""Keys that the other settings decide, or that would make this engine's arithmetic or checkpoints wrong."""

_OWNER = {
    "train_batch_size": "batch.batch_tokens",
    "train_micro_batch_size_per_gpu": "batch.batch_tokens",
    "gradient_accumulation_steps": "batch.accumulation",
    "gradient_clipping": "engine.clip_norm",
    "bf16": "engine.dtype",
    "fp16": "engine.dtype",
    "data_types": "engine.dtype",
    "optimizer": "engine.optimizer",
    "scheduler": "engine.schedule",
    "zero_optimization.stage": "engine.zero_stage",
}


def deepspeed_config(
    config: EngineConfig, dtype: str, *, num_parameters: int, accumulation: int, world_size: int
) -> dict[str, Any]:
    """The dictionary handed to ``deepspeed.initialize``.

    Args:
        dtype: ``fp32`` or ``bf16``, already resolved.
        num_parameters: of the model; bounds the communication buffers, which DeepSpeed would allocate for 5e8 elements.
        accumulation: micro-batches of a step on each rank.

    Raises:
        MnmtError: E104 when ``engine.deepspeed`` has a key that is decided elsewhere, or NVMe offload.
    """
    _check_passed_through(config.deepspeed)
    bucket = max(num_parameters, 1)
    base: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * world_size,
        "managed_gradient_accumulation": True,
        "gradient_clipping": config.clip_norm,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": dtype == "bf16", **({"check_grad_overflow": True} if dtype == "bf16" else {})},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a step, for a figure nobody reads
        "zero_optimization": {
            "stage": config.zero_stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": config.zero_stage == 3,
            "reduce_bucket_size": min(bucket, 50_000_000),
            "allgather_bucket_size": min(bucket, 500_000_000),
            "stage3_prefetch_bucket_size": min(bucket, 50_000_000),
        },
    }
    return _merged(base, config.deepspeed)


def check_optimizer(optimizer: object, stage: int, dtype: str, *, offload: bool = False) -> None:
    """E503 unless DeepSpeed built the class of the table; with its state offloaded bf16 at ZeRO-1 takes ZeRO-2's."""
    expected = OPTIMIZER_CLASS[2 if offload and stage == 1 else stage, dtype, "fp32"]
    got = type(optimizer).__name__
    if got != expected:
        raise MnmtError(
            "E503",
            f"DeepSpeed made a {got} where {expected} is meant",
            where=f"ZeRO-{stage}, {dtype}",
            remedy="use the DeepSpeed version of the lock file, or drop what engine.deepspeed adds",
        )


def _check_passed_through(table: dict[str, Any]) -> None:
    for name in _flat_names(table):
        owned = next((o for o in OWNED if name == o or name.startswith(o + ".")), None)
        if owned is not None:
            owner = _OWNER.get(owned)
            remedy = f"set {owner} instead" if owner else "it cannot be changed here"
            raise MnmtError("E104", f"'{name}' is decided by other settings", where="engine.deepspeed", remedy=remedy)
    zero = table.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise MnmtError("E102", f"zero_optimization = {zero!r} is not a table", where="engine.deepspeed")
    for part in ("offload_optimizer", "offload_param"):
        device = zero.get(part, {}).get("device", "none") if isinstance(zero.get(part, {}), dict) else "none"
        if device not in ("none", "cpu"):
            near = nearest(str(device), ["none", "cpu"]) or "'none' or 'cpu' is possible"
            raise MnmtError("E104", f"{part}.device = {device!r} cannot be checkpointed", where="engine.deepspeed", remedy=near)


def _flat_names(table: dict[str, Any], prefix: str = "") -> list[str]:
    out = []
    for key, value in table.items():
        out += [prefix + key]
        if isinstance(value, dict):
            out += _flat_names(value, f"{prefix}{key}.")
    return out


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(under)
    for key, value in over.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out
