"""``mnmt bench``: each suite prints a markdown table and writes JSON, CSV and markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import bench_train
from .bench_output import OUT, Out, check_names, gather, tell
from .common import Json, emit

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="Measure this machine and this system against named rivals, in one run."
)


@app.command()
def data(
    text: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="An OPUS-100 tree; default: constructed languages.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1000, help="Sentence pairs of the large store, made by repetition.")] = 5_000_000,
    work: Annotated[Path | None, typer.Option(help="Where temporary files may lie (200 bytes a pair).")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Timed windows of each rate, half a second each.")] = 9,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Cleaning and encoding in pairs per second per core; the loader's pairs per second and its memory.

    Example: mnmt bench data --data path/to/opus-100 --pairs 1000000
    """
    from ..bench.data import bench_data

    sizes = {"pairs": pairs, "fewer_pairs": max(1000, pairs // 10)}
    gather(bench_data(text, work=work, repetitions=repetitions, log=tell, **sizes), out, as_json)


app.command()(bench_train.train)


@app.command()
def decode(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A trained run; default: random weights.")] = None,
    preset: Annotated[str, typer.Option(help="Model preset of the random weights.")] = "bilingual",
    vocabulary_size: Annotated[int, typer.Option(min=100)] = 4000,
    sentences: Annotated[int, typer.Option(min=1)] = 200,
    beam: Annotated[list[int], typer.Option(min=1, help="May be given several times.")] = [5, 1],  # noqa: B006
    batch_tokens: Annotated[
        int | None, typer.Option(min=64, help="Source tokens times beam at once; default 8192, of a run its own.")
    ] = None,
    dtype: Annotated[list[str], typer.Option(help="fp32, bf16; may be given twice.")] = ["fp32"],  # noqa: B006
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU where there is one.")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Timed rounds of each dtype and beam, at most.")] = 3,
    seconds: Annotated[float | None, typer.Option(help="No round of a dtype and beam begins that would end later.")] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Target tokens per second of beam search and greedy decoding, beside Hugging Face's generate and CTranslate2.

    Example: mnmt bench decode runs/lafand-joint --sentences 500

    Example: mnmt bench decode --preset base --vocabulary-size 64000 --sentences 500 --dtype bf16 --seconds 10
    """
    from ..bench.decode import DTYPES, bench_decode, random_case, run_case
    from ..bench.timing import chosen_device

    check_names("dtype", dtype, DTYPES)
    where = chosen_device(device)
    if run:
        case = run_case(run, sentences, batch_tokens=batch_tokens)
    else:
        case = random_case(preset, vocabulary_size, sentences, batch_tokens or 8192)
    options = dict(beams=beam, dtypes=dtype, repetitions=repetitions, seconds=seconds, device=where)
    gather(bench_decode(case, log=tell, **options), out, as_json)


@app.command()
def kernels(
    ops: Annotated[str, typer.Option(metavar="A,B", help="Only these ops; default: all.")] = "",
    full: Annotated[bool, typer.Option("--full", help="The papers' shapes on CPU too, as always on GPU.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny shapes, seconds in all: shows that everything runs.")] = False,
    targets: Annotated[
        bool, typer.Option("--targets", help="Only the shapes that targets are set for, the most valuable first.")
    ] = False,
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

    if full and (quick or targets):
        other = "--quick" if quick else "--targets"
        raise MnmtError("E104", f"--full and {other} exclude each other", where="mnmt bench kernels", remedy="leave one out")
    names = [name.strip() for name in ops.split(",") if name.strip()]
    size = "full" if full else "quick" if quick else "default"
    measured = bench_kernels(ops=names, size=size, targets=targets, seconds=seconds, device=device, threads=threads, say=tell)
    gather(measured, out, as_json, pivot)


@app.command()
def quality(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Evaluated runs; the others are held against the first.")
    ],
    split: Annotated[str, typer.Option(help="test or dev.")] = "test",
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """BLEU of every direction of trained and evaluated runs side by side, with a paired bootstrap, and what they cost.

    Example: mnmt bench quality runs/gpu-joint runs/gpu-cats
    """
    from ..bench.quality import bench_quality, report
    from ..errors import MnmtError

    missing = [str(run) for run in runs if not run.is_dir()]
    if len(missing) == len(runs):
        raise MnmtError(
            "E103", f"there is no {', no '.join(missing)}", where="mnmt bench quality", remedy="give run directories"
        )
    gather(bench_quality(runs, split), out, as_json, report)
    if missing:  # what the others did is worth having: a row says who is not there, and so does the exit code
        tell(f"mnmt bench quality: there is no {', no '.join(missing)}")
        raise typer.Exit(1)


@app.command()
def summary(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What launchers/gpu_check.sh wrote.")],
    as_json: Json = False,
) -> None:
    """One page of a GPU check: targets met and missed, parts, tests and all tables, as DIR/report.md and DIR/report.json.

    Example: mnmt bench summary gpu-check-2026-11-22-1000
    """
    from ..bench.summary import write_report
    from ..errors import MnmtError

    if not directory.is_dir():
        raise MnmtError(
            "E103", f"there is no directory {directory}", where="mnmt bench summary", remedy="give gpu_check.sh's --out"
        )
    report = write_report(directory)
    text = f"{report.pop('text')}\n\nwritten: {', '.join(report.values())}"
    emit({"files": report}, as_json, text)
