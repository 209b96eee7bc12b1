"""``mnmt bench``: each suite prints a markdown table and writes JSON, CSV and markdown."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, emit

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="Measure this machine and this system against named rivals, in one run."
)

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where NAME.json, NAME.csv and NAME.md go.")]
OUT = Path("bench-results")


@app.command()
def data(
    text: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="An OPUS-100 tree; default: constructed languages.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1000, help="Sentence pairs of the large store, made by repetition.")] = 5_000_000,
    work: Annotated[Path | None, typer.Option(help="Where temporary files may lie (200 bytes a pair).")] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Cleaning and encoding in pairs per second per core; the loader's pairs per second and its memory.

    Example: mnmt bench data --data path/to/opus-100 --pairs 1000000
    """
    from ..bench.data import bench_data

    found = bench_data(text, work=work, pairs=pairs, fewer_pairs=max(1000, pairs // 10), log=_tell)
    _write(found["rows"], out, as_json)


@app.command()
def train(
    preset: Annotated[str | None, typer.Option(help="Model preset; default 3+3 layers, 256/1024, 4 heads.")] = None,
    text: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="An OPUS-100 tree; default: constructed languages.")
    ] = None,
    joeynmt: Annotated[
        Path | None, typer.Option(metavar="PYTHON", help="Interpreter of an environment that has JoeyNMT 2.3.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of every candidate; default: all cores.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure this method against joint training instead (cats, gramian, ...); may be given several times. "
            "affinity has a table of its own."
        ),
    ] = None,
    tasks: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="With --method: tasks of a step, default 4 and 8 (affinity: of the training, 11); repeatable."
        ),
    ] = None,
    held_tokens: Annotated[int, typer.Option(min=1, help="With --method affinity: held sentences of a direction.")] = 512,
    batch_tokens: Annotated[int, typer.Option(min=64, help="Tokens of a step.")] = 4096,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Timed passes; candidates take turns. Default 5, with --method 10 (affinity 5).")
    ] = None,
    dtype: Annotated[list[str], typer.Option(help="fp32, bf16; may be given twice.")] = ["fp32", "bf16"],  # noqa: B006
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Target tokens per second of training, beside Hugging Face's M2M100 and JoeyNMT, and percent of the matrix rate.

    With --method: the time and memory of a step that measures the gradients of single tasks, and of whole trainings with
    the method, over those of joint training on the same tokens. With --method affinity: what measuring how directions change
    each other costs, and how precise it is against measuring one direction at random.

    Example: mnmt bench train --data path/to/opus-100 --joeynmt ~/joey/bin/python

    Example: mnmt bench train --method cats --method gramian

    Example: mnmt bench train --method affinity --preset tiny --batch-tokens 1024
    """
    from ..bench.train import bench_train

    _check_train(dtype, method, joeynmt)
    common = dict(preset=preset, data=text, threads=threads, budget=batch_tokens, dtypes=dtype, say=_tell)
    if method and "affinity" in method:
        _affinity(method, out, as_json, tasks=tasks or [11], held=held_tokens, rounds=max(2, rounds or 5), **common)
    elif method:
        _methods(method, out, as_json, tasks=tasks or [4, 8], rounds=rounds or 10, **common)
    else:
        rows = bench_train(joeynmt=str(joeynmt) if joeynmt else None, rounds=rounds or 5, **common)
        _write(rows, out, as_json)


def _check_train(dtypes: list[str], method: list[str] | None, joeynmt: Path | None) -> None:
    from ..bench.train import DTYPES
    from ..errors import MnmtError, nearest

    for name in dtypes:
        if name not in DTYPES:
            raise MnmtError("E102", f"dtype {name!r} is unknown", where="--dtype", remedy=nearest(name, DTYPES))
    if method and joeynmt:
        raise MnmtError("E104", "--joeynmt and --method exclude each other", where="mnmt bench train", remedy="leave one out")


def _methods(names: list[str], out: Path, as_json: bool, **options: Any) -> None:
    from ..bench.method_cost import bench_methods, report

    rows = bench_methods(names, **options)
    _write(rows, out, as_json, body=report(rows))


def _affinity(names: list[str], out: Path, as_json: bool, **options: Any) -> None:
    from ..bench.affinity_cost import bench_affinity, report
    from ..errors import MnmtError

    if names != ["affinity"]:
        raise MnmtError(
            "E104", "affinity has a table of its own", where="--method", remedy="call it once alone, once with the others"
        )
    rows = bench_affinity(**options)
    _write(rows, out, as_json, body=report(rows))


@app.command()
def decode(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A trained run; default: random weights.")] = None,
    preset: Annotated[str, typer.Option(help="Model preset of the random weights.")] = "bilingual",
    vocabulary_size: Annotated[int, typer.Option(min=100)] = 4000,
    sentences: Annotated[int, typer.Option(min=1)] = 200,
    beam: Annotated[list[int], typer.Option(min=1, help="May be given several times.")] = [5, 1],  # noqa: B006
    repetitions: Annotated[int, typer.Option(min=1)] = 3,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Target tokens per second of beam search and greedy decoding, beside Hugging Face's generate and CTranslate2.

    Example: mnmt bench decode runs/lafand-joint --sentences 500
    """
    from ..bench.decode import bench_decode, random_case, run_case

    case = run_case(run, sentences) if run else random_case(preset, vocabulary_size, sentences, 8192)
    _write(bench_decode(case, beams=beam, repetitions=repetitions, log=_tell), out, as_json)


@app.command()
def kernels(
    ops: Annotated[str, typer.Option(metavar="A,B", help="Only these ops; default: all.")] = "",
    full: Annotated[bool, typer.Option("--full", help="The papers' shapes on CPU too, as always on GPU.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny shapes, seconds in all: shows that everything runs.")] = False,
    seconds: Annotated[float | None, typer.Option(help="Timed per case, after five rounds; default by device.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU where there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of every candidate on CPU.")] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Every kernel against fp64, then its time, percent of this machine's peak, and memory, beside named rivals.

    Example: mnmt bench kernels --ops task_gram,linear_cross_entropy
    """
    from ..bench.kernel_pivot import pivot
    from ..bench.kernels import bench_kernels
    from ..errors import MnmtError

    if full and quick:
        raise MnmtError("E104", "--full and --quick exclude each other", where="mnmt bench kernels", remedy="leave one out")
    names = [name.strip() for name in ops.split(",") if name.strip()]
    size = "full" if full else "quick" if quick else "default"
    measured = bench_kernels(ops=names, size=size, seconds=seconds, device=device, threads=threads, say=_tell)
    _gather(measured, out, as_json, pivot)


def _gather(measured: Iterable[Any], out: Path, as_json: bool, body: Callable[[Sequence[Any]], str] | None = None) -> None:
    """Writes the rows once all are there; after a Ctrl-C, SIGTERM (``timeout``) or an error, those that there are."""
    rows: list[Any] = []
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rows.extend(measured)
    finally:
        signal.signal(signal.SIGTERM, before)
        if rows:
            _write(rows, out, as_json, body=body(rows) if body else None)


def _write(rows: Sequence[Any], out: Path, as_json: bool, body: str | None = None) -> None:
    from ..bench.table import describe_machine, machine, markdown, write_tables

    paths = write_tables(rows, out, body=body)
    text = f"{describe_machine(machine())}\n{body or markdown(rows)}\n\nwritten: {', '.join(paths.values())}"
    emit({"rows": list(rows), "files": paths}, as_json, text)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
