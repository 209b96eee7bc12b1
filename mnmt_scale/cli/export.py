"""``mnmt export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import Json, emit


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or a bundle or workflow directory.")],
    to: Annotated[Literal["hf", "ctranslate2", "safetensors"], typer.Option("--to", help="Format.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to make.")],
    weights: Annotated[
        str | None,
        typer.Option(metavar="WHICH", help="best, last, average, ema or step-N; default: evaluation.weights of the run."),
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="KIND", help="CTranslate2 only: int8, int16, float16, bfloat16, ... Default: none.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export, once the new one is checked.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run as a Hugging Face, CTranslate2 or safetensors directory.

    The directory appears only after it gave the same output as the trained model. Of a bundle of cluster models, or the
    workflow directory that made it, every model becomes a directory DIR/cluster-k, beside DIR/groups.json.

    Example: mnmt export runs/first --to hf --out exported/first
    """
    from ..export.export import export as write

    result = write(run, to, out, weights=weights, quantization=quantization, force=force)
    lines = [
        f"{Path(result['path']) / model}: {to}, {one['weights']} weights, parity: {_said(one['parity'])}"
        for model, one in result.get("models", {"": result}).items()
    ]
    emit(result, as_json, "\n".join(lines))


def _said(parity: dict[str, float]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in parity.items())
