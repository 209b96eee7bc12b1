"""``mnmt translate``: a filter."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def translate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or a bundle or workflow directory.")],
    to: Annotated[str, typer.Option("--to", metavar="LANGUAGE", help="Target language.")],
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="LANGUAGE", help="Source language; may be left out where the model has only one."),
    ] = None,
    beam: Annotated[int | None, typer.Option(min=1, help="Beam instead of the run's setting; 1 is greedy.")] = None,
    weights: Annotated[str | None, typer.Option(help="best, last, average, ema or step-N.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
) -> None:
    """Translate standard input to standard output: one line for each line, in order; empty lines stay empty.

    A bundle of cluster models, or the workflow directory that made it, gives each direction to the model that serves it.

    Example: mnmt translate runs/first --from sw --to en < sw.txt > en.txt
    """
    import torch

    from ..bundle import is_bundle, open_bundle
    from ..errors import MnmtError, nearest
    from ..evaluation.decode import Translator
    from ..evaluation.evaluate import replace_setting
    from ..evaluation.stream import choose_source, translate_stream
    from ..runs import open_run

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if dtype not in dtypes:
        raise MnmtError("E102", f"--dtype {dtype}: fp32 or bf16", remedy=nearest(dtype, dtypes))
    if is_bundle(run):
        bundle = open_bundle(run)
        from_, _ = choose_source(bundle, from_, to)
        run = bundle.run_for(from_, to)
    opened = open_run(run, weights, device or default_device(), dtypes[dtype])
    source, trained = choose_source(opened, from_, to)
    if not trained:
        print(f"warning: {source}-{to} was not trained (zero-shot)", file=sys.stderr)
    config = opened.evaluation if beam is None else replace_setting(opened.evaluation, beam=beam)
    translator = Translator(opened.model, opened.tokenizer, config)
    counts = translate_stream(translator, source, to, sys.stdin.buffer, sys.stdout.buffer)
    if counts.cut_lines:
        longest = translator.decoder.max_positions
        print(f"warning: {counts.cut_lines} of {counts.lines} lines cut to {longest} tokens", file=sys.stderr)


def default_device() -> str:
    """``cuda`` where there is one, unless the environment says ``MNMT_DEVICE=cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() and os.environ.get("MNMT_DEVICE") != "cpu" else "cpu"
