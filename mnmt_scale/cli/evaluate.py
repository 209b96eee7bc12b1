"""``mnmt evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, emit


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or a bundle or workflow directory.")],
    split: Annotated[str, typer.Option(help="test or dev.")] = "test",
    against: Annotated[Path | None, typer.Option(metavar="RUN2", help="Paired bootstrap against this evaluated run.")] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="A-B,C-D", help="Only these directions (or the pair's other direction).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first lines of each test set.")] = None,
    beam: Annotated[int | None, typer.Option(min=1, help="Beam instead of the run's setting; 1 is greedy.")] = None,
    weights: Annotated[str | None, typer.Option(help="best, last, average, ema or step-N.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    tests: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Test sets of another corpus: a directory laid out as OPUS-100, raw text."),
    ] = None,
    tests_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What its results are called; default: as DIR.")
    ] = None,
    comet: Annotated[str | None, typer.Option(metavar="CKPT", help="Local COMET checkpoint (never downloaded).")] = None,
    as_json: Json = False,
) -> None:
    """BLEU, chrF++ and NLL of every direction, averages by resource class, sacreBLEU signatures.

    Writes RUN/eval/SPLIT.json and RUN/eval/SPLIT.DIRECTION.{src,ref,hyp}, with --tests RUN/eval/NAME.SPLIT.json and so on. A
    bundle of cluster models, or the workflow directory that made it, is evaluated as one: every direction by its own model.

    Example: mnmt evaluate runs/second --against runs/first
    """
    from ..evaluation.evaluate import evaluate_run
    from ..evaluation.scope import Options
    from .translate import default_device

    options = Options(
        split=split,
        only=[name.strip() for name in pairs.split(",")] if pairs else None,
        limit=limit,
        beam=beam,
        against=against,
        comet=comet,
        tests=tests,
        tests_name=tests_name,
    )
    result = evaluate_run(
        run,
        options,
        weights=weights,
        device=device or default_device(),
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    emit(result, as_json, table(result))


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    header = ["direction", "class", "lines", "BLEU", "chrF++", "NLL", "ppl", "off-target", "empty"]
    body = [_row(name, row) for name, row in result["directions"].items()]
    for group, mean in result["averages"].items():
        mark = "*" if mean["mixed_signatures"] else ""
        body.append([f"mean {group}", "", f"{mean['directions']} dir.", f"{mean['bleu']:.2f}{mark}", *_figures(mean), "", ""])
    if "models" in result:
        header.append("model")
        body = [[*line, result["directions"].get(line[0], {}).get("model", "")] for line in body]
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in [header, *body]
    ]
    if any(mean["mixed_signatures"] for mean in result["averages"].values()):
        lines.append("* mean over different BLEU signatures: not comparable")
    if result["missing"]:
        lines.append(f"no {result['split']} set, not averaged: {', '.join(result['missing'])}")
    if result.get("tests", {}).get("untagged"):
        lines.append(f"in the other corpus, but without a tag in the vocabulary: {', '.join(result['tests']['untagged'])}")
    rows = result["directions"].values()
    lines += sorted({f"signature {row[key]}" for row in rows for key in ("bleu_signature", "chrf_signature")})
    lines += [f"warning: {row['warning']}" for row in rows if row.get("warning")]
    if "against" in result:
        lines += _comparison(result["against"])
    return "\n".join(lines)


def _row(name: str, row: dict[str, Any]) -> list[str]:
    off = row["off_target"]
    rate = f"{off['ngram_rate']:.1%} ({off['reference_rate']:.1%} of ref)" if off else "-"
    return [name, row["class"], str(row["lines"]), f"{row['bleu']:.2f}", *_figures(row), rate, str(row["empty_hypotheses"])]


def _figures(row: dict[str, Any]) -> list[str]:
    return [f"{row['chrf']:.2f}", f"{row['nll']:.3f}", f"{row['perplexity']:.2f}"]


def _comparison(against: dict[str, Any]) -> list[str]:
    lines = [f"against {against['run']} (paired bootstrap):"]
    for name, differences in against["directions"].items():
        for d in differences or []:
            gain = d["system"] - d["baseline"]
            sure = "" if d["p"] < 0.05 else " (not significant)"
            lines.append(
                f"  {name} {d['metric']} {d['baseline']:.2f} -> {d['system']:.2f} ({gain:+.2f}), p = {d['p']:.3f}{sure}"
            )
        if differences is None:
            lines.append(f"  {name}: not evaluated there")
    return lines
