"""``mnmt bench train --method``: what a method costs beside joint training, on the same tokens in one run.

*An observed step* (one at which the gradients of single tasks are measured) is timed against a plain step on the same
batch, in turns; the ratio is of each pair, the figure its median. *A training* that observes each m-th step then takes
``((m - 1) plain + 1 observed) / m plain``; with m = 10 it is timed directly as well, whole stretches of m steps with the
method's own decisions. *Memory* is the peak of an observed step above that of a plain one.

Ratios carry over between machines better than seconds do. The bounds are judged in the output; missing one fails nothing.
Methods are measured one after the other, each against plain steps of its own, and rows are given as soon as there are any;
a method that cannot be measured is a row that says why.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.config import DataConfig
from ..errors import MnmtError, nearest
from ..kernels import backend
from .method_memory import bound_bytes, peak_bytes
from .method_steps import NAMES, PLAIN, Trainee, Variant
from .method_text import Say, text_of
from .table import Row, figure, markdown, row
from .timing import chosen_device, release
from .train import SIZES

OBSERVED_BOUND = 1.3
TRAINING_BOUNDS = {"cpu": {10: 1.05, 100: 1.01}, "cuda": {10: 1.03, 100: 1.01}}
"""Largest time of a training over joint, by device and m."""
DIRECT_PERIOD, DIRECT_STEPS = 20, 20
"""A training is timed directly where it observes at least each so-manieth step, over at least so many steps."""
BENCH, RARE = "train-methods", 3
MIB = 1 << 20


def bench_methods(
    methods: Sequence[str],
    *,
    data: Path | None = None,
    store: Path | None = None,
    preset: str | None = None,
    vocabulary_size: int | None = None,
    budget: int = 4096,
    tasks: Sequence[int] = (4, 8),
    directions: int | None = None,
    rounds: int = 10,
    seconds: float | None = None,
    threads: int | None = None,
    device: str | None = None,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    work: Path | None = None,
    say: Say = lambda text: None,
) -> Iterator[Row]:
    """Measure methods against joint training.

    Args:
        methods: names as in ``method.name``, without ``joint``.
        data: OPUS-100 tree; None: constructed languages.
        store: a prepared token store instead of text.
        preset: of ``ModelConfig``; None: 3+3 layers, 256/1024, 4 heads.
        vocabulary_size: V of the model, at least that of the text; None: the text's.
        budget: tokens of a step on its longer side.
        tasks: K; those beyond the directions that the text has become as many as there are.
        directions: train on the so many with the most text; None: on all. (An observation of ``multidds`` measures them all.)
        rounds: of each kind of step (route ``per_task``: a third of them), after one that is not counted.
        seconds: about what the rounds of one K in one dtype may take; what is slow then takes part in two of them. None: any.
        threads: of torch on CPU; None: all cores.
        device: ``cpu`` or ``cuda``; None: a GPU where there is one.
        work: keeps the token store there instead of in a temporary directory.

    Returns:
        Rows as in ``table.py``, as soon as each method is measured; ``settings["bound"]`` and ``["met"]`` where a bound is
        stated.

    Raises:
        MnmtError: E102 for an unknown method or device, or a vocabulary smaller than that of the text.
    """
    _check_names(methods)
    place = chosen_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            found, text = text_of(data, store, work or Path(temporary), vocabulary_size, directions, say)
            bench = _Bench(place, found, text, preset, vocabulary_size, budget, methods, rounds, seconds, say)
            for dtype in dtypes:
                done: set[int] = set()
                for K in tasks:
                    yield from bench.measure(K, dtype, done)
    finally:
        torch.set_num_threads(before)


def _check_names(methods: Sequence[str]) -> None:
    for name in methods:
        if name not in NAMES:
            remedy = nearest(name, NAMES) or f"known: {', '.join(NAMES)}"
            raise MnmtError("E102", f"no method {name!r} to measure against joint", where="--method", remedy=remedy)


class _Bench:
    """What all measurements of one call share."""

    def __init__(
        self,
        device: torch.device,
        data: DataConfig,
        text: str,
        preset: str | None,
        vocabulary_size: int | None,
        budget: int,
        methods: Sequence[str],
        rounds: int,
        seconds: float | None,
        say: Say,
    ) -> None:
        self.device, self.data, self.text, self.preset, self.vocabulary_size = device, data, text, preset, vocabulary_size
        self.budget, self.methods, self.rounds, self.say = budget, methods, rounds, say
        self.seconds = None if seconds is None else seconds / len(methods)

    def measure(self, K: int, dtype: str, done: set[int]) -> Iterator[Row]:
        """Rows of one K in one dtype, unless ``done`` has its number of tasks; a failure ends one method, not the others."""
        trainee, grams = None, set[str]()
        try:
            for name in self.methods:
                problem, where = None, f"{self.text}, K = {trainee.num_tasks if trainee else K}"
                try:
                    if trainee is None:
                        model = {"preset": self.preset} if self.preset else SIZES
                        device, size = self.device.type, self.vocabulary_size
                        trainee = Trainee(self.data, model, K, dtype, self.budget, device=device, vocabulary_size=size)
                        if name == self.methods[0] and trainee.num_tasks in done:
                            return
                        where = f"{self.text}, K = {trainee.num_tasks}"
                    yield from self._method(trainee, name, where, grams, first_K=not done)
                except Exception as error:
                    problem = f"{type(error).__name__}: {error}".splitlines()[0]
                if problem is not None:  # what an interrupted step left in the engine should not meet the next method
                    self.say(f"{where}, {dtype}: {name} failed: {problem}")
                    settings = {"dtype": dtype, "K": K, "device": self.device.type, "error": problem}
                    yield row(BENCH, where, name, "times a plain step", None, "x", **settings)
                    if trainee is not None:
                        trainee.close()
                    trainee = None
                    release(self.device)
            if trainee is not None:
                done.add(trainee.num_tasks)
        finally:
            if trainee is not None:
                trainee.close()
            release(self.device)

    def _method(self, trainee: Trainee, name: str, case: str, grams: set[str], *, first_K: bool) -> Iterator[Row]:
        """Rows of one method; those of plain steps beside the first. ``grams``: the kinds whose memory is known."""
        settings = _settings(trainee, self.rounds)
        where = f"{case}, {settings['dtype']}"
        variants = trainee.variants(name)
        kinds = trainee.kinds(variants, RARE)
        self.say(f"{where}: {self.rounds} rounds of {', '.join(kind.name for kind in kinds)}")
        seconds = trainee.in_turns(kinds, self.rounds, self.seconds)
        plain = seconds[PLAIN]
        settings["rounds"] = len(plain)  # that there was time for
        if name == self.methods[0]:
            tokens = [trainee.target_tokens[i % len(trainee.batches)] for i in range(len(plain))]
            yield row(BENCH, case, PLAIN, "time", [s for s in plain if s], "s", **settings)
            speed = [n / s for n, s in zip(tokens, plain) if s]
            yield row(BENCH, case, PLAIN, "target tokens", speed, "tokens/s", **settings)
        for kind in kinds[1:]:
            assert kind.variant is not None
            ratios = paired(seconds[kind.name], plain)
            found = row(BENCH, case, kind.name, "times a plain step", ratios, "x", **settings)
            bounded = kind.route == "segmented" and kind.variant.only_gram
            yield judged(found, OBSERVED_BOUND) if bounded else found
            if bounded:
                yield from mixes(case, kind.variant, ratios, settings)
        step = statistics.median(s for s in plain if s)
        for variant in variants:
            if first_K and 1 < variant.period <= DIRECT_PERIOD:
                blocks = _blocks(variant.period, self.rounds, step, self.seconds)
                self.say(f"{where}: {blocks * variant.period} steps of {variant.name} and of joint")
                yield _direct(trainee, variant, blocks, case, settings)
        yield from _memory(trainee, variants, case, settings, grams)


def _blocks(period: int, rounds: int, step: float, seconds: float | None) -> int:
    """How many stretches of ``period`` steps are timed, each twice, where a step takes ``step`` seconds."""
    most = max(2, rounds // 3, -(-DIRECT_STEPS // period))
    return most if seconds is None else max(1, min(most, int(seconds / (2 * period * step))))


def _settings(trainee: Trainee, rounds: int) -> dict[str, Any]:
    config = trainee.learner.config
    c, device = config.model, trainee.learner.world.device.type
    return {
        "dtype": config.engine.dtype,
        "K": trainee.num_tasks,
        "directions": len(trainee.learner.tasks),
        "device": device,
        "threads": torch.get_num_threads() if device == "cpu" else "",
        "preset": c.preset or "",
        "layers": f"{c.encoder_layers}+{c.decoder_layers}",
        "width": f"{c.d_model}/{c.d_ffn}",
        "heads": c.heads,
        "vocabulary": trainee.learner.store.tokenizer.vocabulary_size,
        "batch_tokens": config.batch.batch_tokens,
        "rounds": rounds,
        "runs": "reference" if backend.on_references(["vocabulary_rows", "task_gram"], device) else "kernels",
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
    rows, bounds = [], TRAINING_BOUNDS[settings.get("device", "cpu")]
    for m in sorted({*bounds, variant.period}):
        name, metric = f"{variant.name}, m = {m}", f"training over joint ({m - 1} plain + 1 observed)"
        found = row(BENCH, case, name, metric, [mix(r, m) for r in ratios], "x", **settings)
        rows.append(judged(found, bounds.get(m)))
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
    return judged(found, TRAINING_BOUNDS[settings["device"]].get(variant.period))


def _memory(
    trainee: Trainee, variants: Iterable[Variant], case: str, settings: dict[str, Any], known: set[str]
) -> Iterator[Row]:
    """Of the first variant that sees the Gram beside its step (they all cost the same), and of each that has it first; none
    of what is in ``known``, which grows."""
    learner, batches = trainee.learner, trainee.batches[0]
    device = learner.world.device
    firsts = {variant.request.gram: variant for variant in reversed(list(variants)) if variant.request.gram}
    wanted = [variant for gram, variant in firsts.items() if gram not in known]
    if not wanted:
        return
    bound = bound_bytes(learner.engine.module, trainee.num_tasks, learner.engine.dtype) / MIB
    plain = peak_bytes(device, partial(trainee.plain, batches)) / MIB
    if not known:
        yield row(BENCH, case, PLAIN, "peak beyond what stays", plain, "MiB", **settings)
    for variant in wanted:
        known.add(variant.request.gram)
        extra = peak_bytes(device, partial(trainee.observed, variant, "segmented", batches)) / MIB - plain
        name = f"{variant.observed_name}, segmented"
        yield judged(row(BENCH, case, name, "peak above a plain step's", extra, "MiB", **settings), round(bound, 1))


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
