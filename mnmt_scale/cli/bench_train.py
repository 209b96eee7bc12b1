"""``mnmt bench train``: speed beside rivals, or what the methods cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .bench_output import OUT, Out, check_names, gather, tell
from .common import Json

Preset = Annotated[
    list[str] | None,
    typer.Option(help="Model preset; default 3+3 layers, 256/1024, 4 heads; may be given several times without --method."),
]
Text = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="An OPUS-100 tree; default: constructed languages.")]
Store = Annotated[Path | None, typer.Option(metavar="DIR", help="A prepared token store instead of --data.")]
JoeyNmt = Annotated[Path | None, typer.Option(metavar="PYTHON", help="Interpreter of an environment that has JoeyNMT 2.3.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of every candidate on CPU; default: all cores.")]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        help="Measure this method against joint training instead (cats, gramian, ...); may be given several times. "
        "affinity has a table of its own."
    ),
]
Tasks = Annotated[
    list[int] | None,
    typer.Option(min=1, help="With --method: tasks of a step, default 4 and 8 (affinity: of the training, 11); repeatable."),
]
HeldTokens = Annotated[int, typer.Option(min=1, help="With --method affinity: held sentences of a direction.")]
Directions = Annotated[
    int | None,
    typer.Option(min=1, help="With --method: train on the so many directions with the most text; default: all."),
]
Seconds = Annotated[
    float | None, typer.Option(min=1, help="With --method: about what the rounds of one K in one dtype may take.")
]
VocabularySize = Annotated[
    int | None,
    typer.Option(min=100, help="V of the models; default 4000, with --store its own, and no smaller."),
]
BatchTokens = Annotated[int, typer.Option(min=64, help="Tokens of a step.")]
Rounds = Annotated[
    int | None, typer.Option(min=1, help="Timed passes; candidates take turns. Default 5, with --method 10 (affinity 5).")
]
Dtypes = Annotated[list[str], typer.Option(help="fp32, bf16; may be given twice.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU where there is one.")]
CompileRivals = Annotated[
    bool, typer.Option("--compile", help="Hugging Face's model under torch.compile too (minutes for large presets).")
]
CompileSeconds = Annotated[
    float, typer.Option(min=1, help="With --compile: what all compiling may take; what is left then is a row that says so.")
]


def train(
    preset: Preset = None,
    text: Text = None,
    store: Store = None,
    joeynmt: JoeyNmt = None,
    threads: Threads = None,
    method: Methods = None,
    tasks: Tasks = None,
    held_tokens: HeldTokens = 512,
    directions: Directions = None,
    seconds: Seconds = None,
    vocabulary_size: VocabularySize = None,
    batch_tokens: BatchTokens = 4096,
    rounds: Rounds = None,
    dtype: Dtypes = ["fp32", "bf16"],  # noqa: B006
    device: Device = None,
    compile_rivals: CompileRivals = False,
    compile_seconds: CompileSeconds = 120.0,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Target tokens per second of training, beside Hugging Face's M2M100 and JoeyNMT, with memory and MFU.

    With --method: the time and memory of a step that measures the gradients of single tasks, and of whole trainings with
    the method, over those of joint training on the same tokens. With --method affinity: what measuring how directions change
    each other costs, and how precise it is against measuring one direction at random.

    Example: mnmt bench train --data path/to/opus-100 --joeynmt ~/joey/bin/python

    Example: mnmt bench train --preset base --preset big --vocabulary-size 64000 --batch-tokens 32768 --dtype bf16 --compile

    Example: mnmt bench train --method cats --method gramian

    Example: mnmt bench train --method affinity --preset tiny --batch-tokens 1024
    """
    from .. import dist
    from ..bench.train import bench_train

    _check_names(dtype, preset or [])
    _check_together(method, joeynmt=joeynmt, presets=preset or [], sources=[text, store])
    common: dict[str, Any] = dict(data=text, store=store, threads=threads, budget=batch_tokens, dtypes=dtype, say=tell)
    common |= {"device": device}
    if method:
        common |= {"preset": preset[0] if preset else None, "vocabulary_size": vocabulary_size, "seconds": seconds}
    if method and "affinity" in method:
        _affinity(method, out, as_json, tasks=tasks or [11], held=held_tokens, rounds=max(2, rounds or 5), **common)
    elif method:
        _methods(method, out, as_json, tasks=tasks or [4, 8], directions=directions, rounds=rounds or 10, **common)
    else:
        measured = bench_train(
            presets=preset or [None],
            vocabulary_size=vocabulary_size,
            joeynmt=str(joeynmt) if joeynmt else None,
            rounds=rounds or 5,
            compile_seconds=compile_seconds if compile_rivals else 0.0,
            **common,
        )
        gather(measured, out, as_json)
    dist.leave()


def _check_names(dtypes: list[str], presets: list[str]) -> None:
    from ..bench.train import DTYPES
    from ..model.config import PRESETS

    check_names("dtype", dtypes, DTYPES)
    check_names("preset", presets, PRESETS)


def _check_together(method: list[str] | None, *, joeynmt: Path | None, presets: list[str], sources: list[Path | None]) -> None:
    """E104 for options that exclude each other."""
    from ..errors import MnmtError

    together = {
        "--joeynmt and --method": method and joeynmt,
        "--data and --store": all(sources),
        "several --preset and --method": method and len(presets) > 1,
    }
    for options, given in together.items():
        if given:
            raise MnmtError("E104", f"{options} exclude each other", where="mnmt bench train", remedy="leave one out")


def _methods(names: list[str], out: Path, as_json: bool, **options: Any) -> None:
    from ..bench.method_cost import bench_methods, report

    gather(bench_methods(names, **options), out, as_json, report)


def _affinity(names: list[str], out: Path, as_json: bool, **options: Any) -> None:
    from ..bench.affinity_cost import bench_affinity, report
    from ..errors import MnmtError

    if names != ["affinity"]:
        raise MnmtError(
            "E104", "affinity has a table of its own", where="--method", remedy="call it once alone, once with the others"
        )
    gather(bench_affinity(**options), out, as_json, report)
