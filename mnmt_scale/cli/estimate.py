"""``mnmt estimate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, Set, emit


def estimate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings, a TOML file of configs/.")],
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", help="Devices (ranks) in all.")] = 1,
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="KIND", help="v100, v100-32, a10g, l4, a100-40, a100-80, h100, h200 or cpu.")
    ] = "a100-80",
    price: Annotated[float | None, typer.Option(min=0.0, help="Price of one device for one hour; gives the cost.")] = None,
    mfu: Annotated[
        float | None, typer.Option(min=0.001, max=1.0, help="Share of the peak rate that a step reaches; default by width.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.0001, help="Matrix-product rate of a device in TFLOP/s.")] = None,
    link: Annotated[float | None, typer.Option(min=0.001, help="Bandwidth of a rank in collectives, GB/s.")] = None,
    memory: Annotated[float | None, typer.Option(min=0.1, help="Memory of a device in GiB.")] = None,
    source_ratio: Annotated[float, typer.Option(min=0.1, max=10.0, help="Source tokens per target token.")] = 1.0,
    sentence_tokens: Annotated[int, typer.Option(min=1, help="Mean sentence length in tokens.")] = 30,
    set_: Set = [],  # noqa: B006 (typer reads it)
    as_json: Json = False,
) -> None:
    """Memory of a rank by ZeRO stage, tokens per second, hours and cost of a training, before it starts.

    An estimate from formulas and the assumptions that it prints; nothing is run and no data is read.

    Example: mnmt estimate configs/lafand.toml --gpus 8 --gpu h100 --price 2.50
    """
    from .. import settings
    from ..bench.devices import device_of
    from ..bench.estimate import Assumptions
    from ..bench.estimate import estimate as compute
    from ..train.config import RunConfig

    assumed = Assumptions(
        mfu=mfu,
        rate=None if rate is None else rate * 1e12,
        link=None if link is None else link * 1e9,
        memory=None if memory is None else int(memory * 2**30),
        source_ratio=source_ratio,
        sentence_tokens=sentence_tokens,
        price=price,
    )
    result = compute(settings.load(RunConfig, config, set_), device_of(gpu), gpus, assumed)
    emit(result, as_json, render(result))


_PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "communication", "overhead", "host")


def render(result: dict[str, Any]) -> str:
    """The estimate for people: memory table, speed, and every assumption."""
    assumed = result["assumed"]
    available = result["memory_available"]
    lines = [
        "An estimate by formula, not a measurement.",
        f"{result['gpus']} x {result['device']}, {result['dtype']}: {result['parameters']:,} parameters "
        f"(vocabulary {result['vocabulary_size']:,}), {result['flops_per_target_token'] / 1e9:.3f} GFLOP per target token",
        "",
        "memory of a rank, GiB"
        + (f" (available: {available / 2**30:.0f})" if available else " (available: not known, give --memory)"),
        "  ".join(["ZeRO", f"{'total':>8}", *(f"{part:>{max(8, len(part))}}" for part in _PARTS), "fits"]),
    ]
    for row in result["memory"]:
        mark = "*" if row["stage"] == result["zero_stage"] else " "
        cells = [f"{row[part] / 2**30:{max(8, len(part))}.2f}" for part in _PARTS]
        fits = {None: "?", True: "yes", False: "NO"}[row["fits"]]
        lines.append("  ".join([f"{row['stage']:>3}{mark}", f"{row['total'] / 2**30:8.2f}", *cells, fits]))
    lines += ["* as set", ""] + _speed(result)
    lines += [
        "",
        "assumed (each can be given):",
        f"  --rate {assumed['rate'] / 1e12:g} TFLOP/s in {result['dtype']}, of which a step reaches --mfu {assumed['mfu']:.2f}",
        f"  --link {assumed['link'] / 1e9:g} GB/s for a rank's collectives, not overlapped with computing",
        f"  --source-ratio {assumed['source_ratio']:g}, --sentence-tokens {assumed['sentence_tokens']}, "
        "every step filled to batch.batch_tokens",
        "  not counted: validation, checkpoints, waiting for data, failures; the run ends at train.max_steps",
    ]
    return "\n".join(lines)


def _speed(result: dict[str, Any]) -> list[str]:
    lines = [
        f"step: {result['step_seconds']:.3f} s for {result['step_tokens']:,.0f} target tokens "
        f"(computing {result['compute_seconds']:.3f} s, communication {result['communication_seconds']:.3f} s "
        f"for {result['communication_bytes'] / 1e9:.2f} GB a rank)",
        f"speed: {result['tokens_per_second']:,.0f} target tokens per second",
        f"run: {result['steps']:,} steps, {result['hours']:,.1f} hours, {result['device_hours']:,.1f} device hours"
        + ("" if result["cost"] is None else f", cost {result['cost']:,.2f}"),
    ]
    if result["cost"] is None:
        lines.append("cost: give --price, of one device for one hour")
    return lines
