"""``mnmt demo``: the whole house once, on constructed languages or on a directory of real text."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, emit

# Sizes for two cores and a few minutes; both go through the same settings as any training. What they cost and reach is
# in the README and in docs/synthetic.md.
_COMMON: dict[str, Any] = {
    "model": {"preset": "tiny"},
    "engine": {
        "zero_stage": 1,
        "clip_norm": 1.0,
        "ema_decay": 0.99,
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"name": "inverse_sqrt", "warmup_steps": 150},
        "checkpoint": {"every_steps": 100_000, "keep_last": 2},
    },
    "train": {"log_steps": 50, "validate_steps": 250, "validate_sentences": 100, "max_steps": 100_000},
    "batch": {"batch_tokens": 2048},
    "evaluation": {"weights": "ema"},
}
_CONSTRUCTED: dict[str, Any] = {
    "data": {
        "max_tokens": 64,
        "tokenizer": {"vocabulary_size": 3000, "temperature": 2.0, "character_coverage": 1.0},
    },
    "evaluation": {"low_below": 1500, "high_from": 6000},
}
_REAL: dict[str, Any] = {
    "data": {"tokenizer": {"vocabulary_size": 4000}},
    "model": {"preset": "bilingual"},
    "batch": {"batch_tokens": 4096},
    "engine": {"optimizer": {"learning_rate": 1e-3}, "schedule": {"warmup_steps": 400}},
}


def demo(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An OPUS-100 tree of real text; default: constructed languages.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Everything is written here.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(min=0.2, help="Wall-clock time for the whole of it.")] = 5.0,
    pivot: Annotated[str, typer.Option(help="Translate into this language.")] = "en",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    as_json: Json = False,
) -> None:
    """Prepare, train, evaluate and report in one go, many-to-one; ends with a table and report.html.

    Example: mnmt demo --data path/to/opus-100 --minutes 20 --out demo-real
    """
    from .. import settings
    from ..data.build import prepare
    from ..evaluation.evaluate import evaluate_run
    from ..evaluation.scope import Options
    from ..train.config import RunConfig
    from ..train.loop import REQUEUE_EXIT_CODE
    from ..train.train import train

    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    _tell(f"1/5 text: {data or 'constructed languages'}")
    config_file = _write_settings(data, out, pivot, seed)
    config = settings.load(RunConfig, config_file)
    _tell("2/5 prepare: clean, tokenizer, token store")
    prepare(config.data, log=_tell)
    left = minutes - (time.monotonic() - began) / 60
    # decoding and the report take about a tenth, more than which a short demo cannot spare
    with config_file.open("a", encoding="utf-8") as file:  # [train] is the last table of the file
        file.write(f"max_minutes = {max(0.1, 0.88 * left - 0.1):.2f}\n")
    config = settings.load(RunConfig, config_file)
    _tell(f"3/5 train: {config.train.max_minutes:.1f} minutes")
    result = train(config, out / "run", "never")
    if result.stopped == "signal":
        raise typer.Exit(REQUEUE_EXIT_CODE)
    _tell("4/5 evaluate: beam search on the test sets")
    scores = evaluate_run(out / "run", Options(limit=100 if minutes <= 10 else 500), log=_tell)
    _tell("5/5 report")
    page = _report(out)
    seconds = time.monotonic() - began
    summary = {"out": str(out), "report": str(page), "seconds": round(seconds, 1), "steps": result.steps, "scores": scores}
    summary["tokens_per_second"] = _tokens_per_second(out / "run")
    emit(summary, as_json, _table(summary, config_file))


def _write_settings(data: Path | None, out: Path, pivot: str, seed: int) -> Path:
    """RunConfig of the demo as OUT/demo.toml, generating the constructed text where no directory is given."""
    import tomli_w

    table = json.loads(json.dumps(_COMMON))
    if data is None:
        from ..data.synthetic import SyntheticConfig, generate

        generate(SyntheticConfig(seed=seed), out / "text")
    _over(table, _REAL if data is not None else _CONSTRUCTED)
    corpus = {"reader": "opus", "path": str(data if data is not None else out / "text")}
    _over(
        table,
        {"name": "demo", "data": {"corpora": [corpus], "store": str(out / "store"), "pivot": pivot}, "train": {"seed": seed}},
    )
    table["train"] = table.pop("train")
    path = out / "demo.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def _over(under: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict):
            _over(under.setdefault(key, {}), value)
        else:
            under[key] = value


def _report(out: Path) -> Path:
    from ..report.page import write_report

    return write_report([out / "run"], out / "report.html")


def _tokens_per_second(run: Path) -> float:
    """Predicted target tokens per second over the training steps, the first interval (warm-up) left out."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [line for line in lines if line["kind"] == "train"][1:] or [line for line in lines if line["kind"] == "train"]
    seconds = sum(row["seconds"] for row in rows)
    tokens = sum(task["tokens"] for row in rows for task in row["tasks"].values())
    return round(tokens / seconds, 1) if seconds else 0.0


def _table(summary: dict[str, Any], config_file: Path) -> str:
    from .evaluate import table

    return "\n".join(
        [
            table(summary["scores"]),
            "",
            f"scored: the first {summary['scores']['limit']} test sentences of each direction",
            f"{summary['steps']} steps, {summary['tokens_per_second']:,.0f} target tokens/s, {summary['seconds']:.0f} s in all",
            f"report: {summary['report']}",
            f"again, piece by piece: mnmt prepare {config_file}; mnmt train {config_file}; mnmt evaluate runs/demo",
        ]
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
