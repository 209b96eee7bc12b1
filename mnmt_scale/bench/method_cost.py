"""``mnmt bench train --method``: what a method costs beside joint training, on the same tokens in one run.

*An observed step* (one at which the gradients of single tasks are measured) is timed against a plain step on the same
batch, in turns; the ratio is of each pair, the figure its median. *A training* that observes each m-th step then takes
``((m - 1) plain + 1 observed) / m plain``; with m = 10 it is timed directly as well, whole stretches of m steps with the
method's own decisions. *Memory* is the peak of an observed step above that of a plain one.

Ratios carry over between machines better than seconds do. The bounds are judged in the output; missing one fails nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import MnmtError, nearest
from .method_memory import bound_bytes, peak_bytes
from .method_steps import NAMES, PLAIN, Trainee, Variant
from .table import Row, figure, markdown, row
from .train import SIZES
from .train_data import constructed, prepared

OBSERVED_BOUND = 1.3
TRAINING_BOUNDS = {10: 1.05, 100: 1.01}
"""Largest time of a training over joint, by m."""
DIRECT_PERIOD, DIRECT_STEPS = 20, 20
"""A training is timed directly where it observes at least each so-manieth step, over at least so many steps."""
BENCH, RARE = "train-methods", 3
MIB = 1 << 20


def bench_methods(
    methods: Sequence[str],
    *,
    data: Path | None = None,
    preset: str | None = None,
    vocabulary_size: int = 4000,
    budget: int = 4096,
    tasks: Sequence[int] = (4, 8),
    rounds: int = 10,
    threads: int | None = None,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    work: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measure methods against joint training, on a GPU where there is one.

    Args:
        methods: names as in ``method.name``, without ``joint``.
        data: OPUS-100 tree; None: constructed languages.
        preset: of ``ModelConfig``; None: 3+3 layers, 256/1024, 4 heads.
        budget: tokens of a step on its longer side.
        tasks: K; those beyond the directions that the text has become as many as there are.
        rounds: of each kind of step (route ``per_task``: a third of them), after one that is not counted.
        threads: of torch on CPU; None: all cores.
        work: keeps the token store there instead of in a temporary directory.

    Returns:
        Rows as in ``table.py``; ``settings["bound"]`` and ``["met"]`` where a bound is stated.

    Raises:
        MnmtError: E102 for an unknown method, naming the nearest.
    """
    _check_names(methods)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            place = work or Path(temporary)
            place.mkdir(parents=True, exist_ok=True)
            corpus = data or constructed(place)
            say("preparing text")
            found = prepared(corpus, place, vocabulary_size)
            model = {"preset": preset} if preset else SIZES
            rows: list[Row] = []
            for dtype in dtypes:
                done: set[int] = set()
                for K in tasks:
                    trainee = Trainee(found, model, K, dtype, budget)
                    try:
                        if trainee.num_tasks not in done:
                            case = f"{corpus.name}, K = {trainee.num_tasks}"
                            rows += _measure(trainee, methods, case, rounds, say, direct=not done)
                        done.add(trainee.num_tasks)
                    finally:
                        trainee.close()
            return rows
    finally:
        torch.set_num_threads(before)


def _check_names(methods: Sequence[str]) -> None:
    for name in methods:
        if name not in NAMES:
            remedy = nearest(name, NAMES) or f"known: {', '.join(NAMES)}"
            raise MnmtError("E102", f"no method {name!r} to measure against joint", where="--method", remedy=remedy)


def _measure(
    trainee: Trainee, methods: Sequence[str], case: str, rounds: int, say: Callable[[str], None], *, direct: bool
) -> list[Row]:
    """Rows of one K in one dtype."""
    settings = _settings(trainee, rounds)
    where = f"{case}, {settings['dtype']}"
    variants = [variant for name in methods for variant in trainee.variants(name)]
    kinds = trainee.kinds(variants, RARE)
    say(f"{where}: {rounds} rounds of {', '.join(kind.name for kind in kinds)}")
    seconds = trainee.in_turns(kinds, rounds)
    plain = seconds[PLAIN]
    tokens = [trainee.target_tokens[i % len(trainee.batches)] for i in range(rounds)]
    rows = [
        row(BENCH, case, PLAIN, "time", [s for s in plain if s], "s", **settings),
        row(BENCH, case, PLAIN, "target tokens", [n / s for n, s in zip(tokens, plain) if s], "tokens/s", **settings),
    ]
    for kind in kinds[1:]:
        assert kind.variant is not None
        ratios = paired(seconds[kind.name], plain)
        found = row(BENCH, case, kind.name, "times a plain step", ratios, "x", **settings)
        bounded = kind.route == "segmented" and kind.variant.only_gram
        rows.append(judged(found, OBSERVED_BOUND) if bounded else found)
        if bounded:
            rows += mixes(case, kind.variant, ratios, settings)
    for variant in variants:
        if direct and 1 < variant.period <= DIRECT_PERIOD:
            blocks = max(2, rounds // 3, -(-DIRECT_STEPS // variant.period))
            say(f"{where}: {blocks * variant.period} steps of {variant.name} and of joint")
            rows.append(_direct(trainee, variant, blocks, case, settings))
    say(f"{where}: memory")
    return rows + _memory(trainee, variants, case, settings)


def _settings(trainee: Trainee, rounds: int) -> dict[str, Any]:
    config = trainee.learner.config
    c, device = config.model, trainee.learner.world.device
    return {
        "dtype": config.engine.dtype,
        "K": trainee.num_tasks,
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else "",
        "layers": f"{c.encoder_layers}+{c.decoder_layers}",
        "width": f"{c.d_model}/{c.d_ffn}",
        "heads": c.heads,
        "vocabulary": trainee.learner.store.tokenizer.vocabulary_size,
        "batch_tokens": config.batch.batch_tokens,
        "rounds": rounds,
    }


def paired(seconds: Sequence[float | None], plain: Sequence[float | None]) -> list[float]:
    """Ratio of each round in which both took part."""
    return [s / p for s, p in zip(seconds, plain, strict=True) if s is not None and p is not None]


def mix(ratio: float, m: int) -> float:
    """Time of m - 1 plain steps and one that takes ``ratio`` times as long, over that of m plain ones."""
    return (m - 1 + ratio) / m


def mixes(case: str, variant: Variant, ratios: Sequence[float], settings: dict[str, Any]) -> list[Row]:
    """Trainings that observe each m-th step, for the bounds' m and the variant's own; none for one that always observes."""
    if variant.period == 1:
        return []
    rows = []
    for m in sorted({*TRAINING_BOUNDS, variant.period}):
        name, metric = f"{variant.name}, m = {m}", f"training over joint ({m - 1} plain + 1 observed)"
        found = row(BENCH, case, name, metric, [mix(r, m) for r in ratios], "x", **settings)
        rows.append(judged(found, TRAINING_BOUNDS.get(m)))
    return rows


def judged(found: Row, bound: float | None) -> Row:
    """The row with its bound (in its own unit) and whether its figure keeps it; ``met`` has "yes" or "no"."""
    if bound is None or found["value"] is None:
        return found
    found["settings"] |= {"bound": bound, "met": "yes" if found["value"] <= bound else "no"}
    return found


def _direct(trainee: Trainee, variant: Variant, blocks: int, case: str, settings: dict[str, Any]) -> Row:
    joint, method = trainee.trainings(variant, blocks)
    name, metric = f"{variant.name}, m = {variant.period}", f"training over joint ({blocks * variant.period} steps timed)"
    found = row(BENCH, case, name, metric, [b / a for a, b in zip(joint, method, strict=True)], "x", **settings)
    return judged(found, TRAINING_BOUNDS.get(variant.period))


def _memory(trainee: Trainee, variants: Iterable[Variant], case: str, settings: dict[str, Any]) -> list[Row]:
    """Of the first variant that sees the Gram beside its step (they all cost the same), and of each that has it first."""
    learner, batches = trainee.learner, trainee.batches[0]
    device = learner.world.device
    bound = bound_bytes(learner.engine.module, trainee.num_tasks, learner.engine.dtype) / MIB
    plain = peak_bytes(device, partial(trainee.plain, batches)) / MIB
    rows = [row(BENCH, case, PLAIN, "peak beyond what stays", plain, "MiB", **settings)]
    firsts: dict[str, Variant] = {}
    for variant in variants:
        if variant.request.gram:
            firsts.setdefault(variant.request.gram, variant)
    for variant in firsts.values():
        extra = peak_bytes(device, partial(trainee.observed, variant, "segmented", batches)) / MIB - plain
        name = f"{variant.observed_name}, segmented"
        rows.append(judged(row(BENCH, case, name, "peak above a plain step's", extra, "MiB", **settings), round(bound, 1)))
    return rows


def verdicts(rows: Iterable[Row]) -> list[str]:
    """One line for each bound: met or missed, the figure, its interval and the bound."""
    lines = []
    for r in rows:
        s = r["settings"]
        if "bound" not in s:
            continue
        word = "missed" if s["met"] == "no" else "met" if r["p80"] is None or r["p80"] <= s["bound"] else "met, p80 above it"
        spread = f" (p20 .. p80 {figure(r['p20'])} .. {figure(r['p80'])})" if r["p20"] is not None else ""
        what = f"{r['case']}, {s['dtype']}: {r['candidate']}, {r['metric']}"
        lines.append(f"{word}: {what} {figure(r['value'])}{spread}, bound {figure(s['bound'])} {r['unit']}")
    return lines


def report(rows: Sequence[Row]) -> str:
    """The table, and below it what became of the bounds."""
    return markdown(rows) + "\n\nBounds:\n\n" + "\n".join(f"- {line}" for line in verdicts(rows))
