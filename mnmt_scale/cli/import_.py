"""``mnmt import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Json, emit


def import_(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Directory of an M2M100 or dense NLLB model.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Run directory to make.")],
    direction: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE-TARGET", help="A direction of the run; may be repeated. Default: all of its languages."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run, once the new one is checked.")] = False,
    as_json: Json = False,
) -> None:
    """Read an M2M100 or NLLB directory of Hugging Face as a run: to translate with, or to start from (train.init_from).

    Weights are read from safetensors only; pickles and code in the directory are never loaded.

    Example: mnmt import models/m2m100_418M --out runs/m2m418 --direction fr-en --direction en-fr
    """
    from ..export.importer import import_run

    result = import_run(source, out, directions=direction or None, force=force)
    if result["languages"] is None:
        about = "no SentencePiece model found: weights alone, for train.init_from"
    else:
        about = f"{len(result['languages'])} languages, {result['directions']} directions"
    error = result["parity"]["logits_max_error"]
    emit(result, as_json, f"{result['path']}: {result['parameters']:,} parameters, {about}, logits within {error:.1e}")
