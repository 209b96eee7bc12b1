"""A run directory as a training and an evaluation would have left it, with made-up but plausible numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import tomli_w

CODES = [a + b for a in "abcdefghijklmnop" for b in "lrstuvz"]


def directions(count: int) -> list[str]:
    """``count`` directions into English."""
    return [f"{code}-en" for code in CODES[:count]]


def fake_run(path: Path, count: int = 6, *, name: str = "fake", steps: int = 1000, gain: float = 0.0, **more: Any) -> Path:
    """Write a whole run directory.

    Args:
        count: directions; sizes fall from a million to a few hundred.
        gain: added to every BLEU and taken from every loss, to tell runs apart.
        more: ``without``: names of what is left out (plan, train, valid, eval, environment); ``settings``: tables that go
            over the settings; ``against``: another run's path for a paired comparison; ``tasks``: instead of
            ``directions(count)``.
    """
    without = more.get("without", ())
    path.mkdir(parents=True)
    tasks = list(more.get("tasks") or directions(count))
    count = len(tasks)
    sizes = {task: int(10 ** (6.2 - 4 * i / max(count - 1, 1))) for i, task in enumerate(tasks)}
    weights = {task: size**0.2 for task, size in sizes.items()}
    shares = {task: weight / sum(weights.values()) for task, weight in weights.items()}
    config = {"name": name, "data": {"tasks": tasks}, "model": {"preset": "tiny"}, **more.get("settings", {})}
    (path / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    if "environment" not in without:
        environment = {"host": "node7", "cores": 2, "packages": {"torch": "2.13.0"}, "command": ["mnmt", "train"]}
        (path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    lines = list(_metrics(tasks, sizes, shares, steps, gain))
    lines = [line for line in lines if line["kind"] not in without]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if "eval" not in without:
        (path / "eval").mkdir()
        evaluation = _evaluation(tasks, sizes, gain, more.get("against"))
        (path / "eval" / "test.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return path


def _metrics(tasks, sizes, shares, steps, gain):
    rows = [{"name": task, "sentences": sizes[task], "share": shares[task]} for task in tasks]
    yield {
        "kind": "plan", "step": 0, "tasks": rows, "tasks_per_batch": len(tasks), "within": "proportional", "unit": "tokens",
        "p": shares, "dropped": {"en-" + task[:2]: 7 for task in tasks}, "batch_tokens": 4096,
    }  # fmt: skip
    tokens, count = 0, len(tasks)
    for step in range(50, steps + 1, 50):
        losses = {task: _nll(i, step, gain) for i, task in enumerate(tasks)}
        drawn = {task: round(20_000 * share * (1 + 0.1 * math.sin(step))) for task, share in shares.items()}
        tokens += sum(drawn.values())
        table = {task: {"loss": losses[task] + 0.4, "nll": losses[task], "tokens": drawn[task]} for task in tasks}
        nll = sum(row["nll"] * row["tokens"] for row in table.values()) / sum(drawn.values())
        yield {
            "kind": "train", "step": step, "loss": nll + 0.4, "nll": nll,
            "learning_rate": 1e-3 * min(step / 200, (200 / step) ** 0.5), "grad_norm": 2.0 * (step / 50) ** -0.4,
            "tokens_per_second": 3000 + 100 * math.sin(step), "seconds": 6.6, "tokens": tokens, "tasks": table,
        }  # fmt: skip
        if step % 250 == 0:
            dev = {task: {"nll": losses[task] + 0.2 + 0.3 * i / count, "tokens": 900} for i, task in enumerate(tasks[:-1])}
            loss = sum(row["nll"] for row in dev.values()) / max(len(dev), 1)
            yield {"kind": "valid", "step": step, "loss": loss, "best": True, "seconds": 3.0, "tasks": dev}
            yield {"kind": "checkpoint", "step": step, "seconds": 0.4}
    yield {"kind": "event", "step": 300, "text": "update skipped: loss or gradient not finite"}


def _nll(i: int, step: int, gain: float) -> float:
    return 2.0 + 0.02 * i + 5.0 * math.exp(-step / 250) - 0.05 * gain + 0.03 * math.sin(step * 0.7 + i)


def _evaluation(tasks, sizes, gain, against):
    def row(i: int, task: str) -> dict[str, Any]:
        size = sizes[task]
        return {
            "class": "low" if size < 100_000 else "high" if size >= 1_000_000 else "medium",
            "train_sentences": size, "lines": 500, "bleu": 4 * math.log10(size) + 3 * math.sin(i) + gain, "chrf": 40.0 + gain,
            "bleu_signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0", "chrf_signature": "nrefs:1|nw:2",
            "nll": 2.2 + 0.02 * i, "perplexity": 9.0,
        }  # fmt: skip

    found = {task: row(i, task) for i, task in enumerate(tasks[:-1])}
    averages = {}
    for group in ("all", "low", "medium", "high"):
        rows = [r for r in found.values() if group in ("all", r["class"])]
        if rows:
            mean = {key: sum(r[key] for r in rows) / len(rows) for key in ("bleu", "chrf", "nll")}
            averages[group] = {"directions": len(rows), **mean, "mixed_signatures": False}
    result = {"split": "test", "limit": None, "directions": found, "missing": tasks[-1:], "averages": averages}
    if against is not None:
        difference = {"metric": "BLEU", "baseline": 20.0, "system": 21.5, "p": 0.013, "signature": "x"}
        result["against"] = {"run": str(against), "directions": {tasks[0]: [difference]}}
    return result
