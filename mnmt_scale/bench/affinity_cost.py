"""``mnmt bench train --method affinity``: what probing costs beside a plain training, and what it is worth to measure all
directions around a step instead of one at random.

Every contender is a training of its own, from the same seed and over the same number of updates of the same size. They take
turns, a *stretch* at a time: 2 N steps for N directions, so that a probing training trains each direction alone once.

*Time* is that of a stretch over joint's in the same round. *The standard error* of a cell after n measurements is
sigma / sqrt(n). What a measurement is does not depend on how many others are made around the same step, so sigma is taken
from the contender that measures all directions on as many held sentences, pooled over cells; n per second is counted. At
equal time all directions can have no less than 1 / sqrt(N) of the standard error of one at random, if the others came free.
The errors of the cells of a row are then not independent: they share the updates.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import dist
from ..data.config import DataConfig
from ..data.store import TokenStore
from ..methods.affinity.method import Affinity
from ..methods.spec import Method
from ..runlog import RunLog
from ..train.config import RunConfig
from ..train.learner import Learner
from ..train.lookahead import hold
from ..train.observe import observe
from ..train.train import method_of, resolve_tasks
from .method_cost import judged, paired, report
from .method_text import largest, opened, text_of
from .table import Row, row
from .timing import Clock, chosen_device, release
from .train import SIZES

ERROR_BOUND = 0.2
"""Largest standard error of a cell with all directions over that with one at random, at equal time."""
BENCH = "train-affinity"
JOINT, ALL, ONE = "joint", "affinity, all directions", "affinity, one at random"
PAIR_ALL, PAIR_ONE = "affinity, all directions, one sentence pair", "affinity, one at random, one sentence pair"
_ONE_WINDOW = 10**9

__all__ = ["BENCH", "ERROR_BOUND", "bench_affinity", "report"]


def bench_affinity(
    *,
    data: Path | None = None,
    store: Path | None = None,
    preset: str | None = None,
    vocabulary_size: int | None = None,
    budget: int = 4096,
    held: int = 512,
    tasks: Sequence[int] = (11,),
    rounds: int = 5,
    seconds: float | None = None,
    threads: int | None = None,
    device: str | None = None,
    dtypes: Sequence[str] = ("fp32",),
    work: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Measure probing against joint training.

    Args:
        data, store: OPUS-100 tree, None: constructed languages; or a prepared token store.
        preset: of ``ModelConfig``; None: 3+3 layers, 256/1024, 4 heads.
        vocabulary_size: V of the model, at least that of the text; None: the text's.
        budget: tokens of a step on its longer side.
        held: ``method.affinity.held_tokens``.
        tasks: N, directions of the training, those with the most text; those beyond what it has become as many as there are.
        rounds: stretches of each contender, after one that is not counted.
        seconds: about what the stretches of one N in one dtype may take; two of each are made however long they are.
        threads, device: of torch on CPU, None: all cores; ``cpu`` or ``cuda``, None: a GPU where there is one.
        work: keeps the token store there instead of in a temporary directory.

    Returns:
        Rows as in ``table.py``; ``settings["bound"]`` and ``["met"]`` where a bound is stated, ``["limit"]`` the least that
        can be reached. An N that cannot be measured is a row that says why.

    Raises:
        MnmtError: E102 for an unknown device, or a vocabulary smaller than that of the text.
    """
    assert rounds > 1, "no variance"
    where = chosen_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            found, text = text_of(data, store, work or Path(temporary), vocabulary_size, None, say)
            there = TokenStore.open(Path(found.store))
            for dtype in dtypes:
                for N in sorted({min(n, len(there.report["tasks"])) for n in tasks}):
                    case, model = f"{text}, N = {N}", {"preset": preset} if preset else SIZES
                    say(f"{case}, {dtype}: {rounds} stretches of {2 * N} steps of {len(SETTINGS)} trainings")
                    config = _config(found, largest(there, N), model, dtype, budget, where)
                    try:
                        yield from _measure(config, case, held, rounds, seconds, where, vocabulary_size)
                    except Exception as error:
                        problem = f"{type(error).__name__}: {error}".splitlines()[0]
                        settings = {"dtype": dtype, "device": where.type, "error": problem}
                        yield row(BENCH, case, ALL, "training over joint", None, "x", **settings)
                    release(where)
    finally:
        torch.set_num_threads(before)


SETTINGS: Mapping[str, Mapping[str, Any] | None] = {
    JOINT: None,
    ALL: {"affected": 0},
    ONE: {"affected": 1},
    PAIR_ALL: {"affected": 0, "held_tokens": 1},
    PAIR_ONE: {"affected": 1, "held_tokens": 1},
}
"""``method.affinity`` of each contender. The paper samples one sentence pair of one direction; ``PAIR_ALL`` is there to
know how much a measurement on one pair varies. A draw holds one sentence at least, so 1 token is one pair."""


@dataclass
class Contender:
    """A training whose steps are timed. ``seconds`` of each stretch, ``tokens`` trained in it."""

    name: str
    learner: Learner
    method: Method
    clock: Clock
    log: RunLog
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @classmethod
    def of(
        cls, name: str, config: RunConfig, held: int, device: str | None = None, vocabulary_size: int | None = None
    ) -> Contender:
        settings = SETTINGS[name]
        method: dict[str, Any] = {"name": "joint"}
        if settings is not None:
            method = {"name": "affinity", "affinity": {"held_tokens": held, "window_steps": _ONE_WINDOW, **settings}}
        config = RunConfig.model_validate(config.model_dump() | {"method": method})
        store = opened(Path(config.data.store), vocabulary_size)
        learner = Learner.build(config, store, resolve_tasks(config, store), dist.join(device))
        learner.engine.module.train()
        clock = Clock(learner.world.device, flush=False)
        return cls(name, learner, method_of(learner), clock, RunLog(Path(config.data.store), active=False))

    def stretch(self, steps: int) -> None:
        """Makes ``steps`` updates and notes what they took."""
        seconds, tokens = self.clock.time(lambda: sum(self._step() for _ in range(steps)))
        self.seconds.append(seconds)
        self.tokens.append(tokens)

    def forget(self) -> None:
        """What was timed and measured so far does not count."""
        self.seconds.clear()
        self.tokens.clear()
        if isinstance(self.method, Affinity):
            self.method.windows.all.clear()

    def measurements(self) -> float:
        """Of a cell, on average over all cells."""
        assert isinstance(self.method, Affinity)
        return float(self.method.windows.total("count").mean())

    def deviation(self) -> float:
        """Standard deviation of a measurement within its cell, pooled over cells; NaN where no cell has two."""
        assert isinstance(self.method, Affinity)
        (window,) = self.method.windows.all
        freedom = (window.count - 1).clip(min=0).sum()
        return math.sqrt(window.squares.sum() / freedom) if freedom else math.nan

    def _step(self) -> int:
        """As the loop of ``train/loop.py`` makes it."""
        learner, method = self.learner, self.method
        batches = learner.stream.next()
        request = method.wants(learner.step)
        held = hold(learner, request.lookahead, batches) if request and request.lookahead else None
        done, _, gram = learner.update(batches, method.scales(batches[0]))
        if request:
            observe(learner, method, request, done, gram, self.log, held)
        return sum(done.tokens)


def _config(
    data: DataConfig, tasks: Sequence[str], model: Mapping[str, Any], dtype: str, budget: int, device: torch.device
) -> RunConfig:
    """On a GPU the next step is made while it computes, as in a training; on CPU that would take the cores of whoever is
    timed."""
    return RunConfig.model_validate(
        {
            "data": data.model_dump() | {"tasks": list(tasks)},
            "model": dict(model),
            "batch": {"batch_tokens": budget, "prefetch": device.type == "cuda"},
            "engine": {
                "dtype": dtype,
                "optimizer": {"learning_rate": 1e-3},
                "schedule": {"warmup_steps": 100},
            },
        }
    )


def _measure(
    config: RunConfig,
    case: str,
    held: int,
    rounds: int,
    seconds: float | None,
    device: torch.device,
    vocabulary_size: int | None,
) -> list[Row]:
    """Rows of one N in one dtype."""
    contenders: list[Contender] = []
    try:
        for name in SETTINGS:
            contenders.append(Contender.of(name, config, held, device.type, vocabulary_size))
        N, spent = len(contenders[0].learner.tasks), 0.0
        for number in range(-1, rounds):
            if number == 0:
                for contender in contenders:
                    contender.forget()
            if seconds is not None and number >= 2 and spent * (1 + 1 / number) > seconds:
                rounds = number
                break
            first = number % len(contenders)
            for contender in [*contenders[first:], *contenders[:first]]:
                contender.stretch(2 * N)
            spent = sum(sum(contender.seconds) for contender in contenders)
        return _rows({c.name: c for c in contenders}, case, N, _settings(contenders[0].learner, held, rounds))
    finally:
        for contender in contenders:
            contender.learner.close()
        torch.use_deterministic_algorithms(False)


def _rows(by_name: Mapping[str, Contender], case: str, N: int, settings: dict[str, Any]) -> list[Row]:
    joint = by_name[JOINT]
    rows = []
    for name, c in by_name.items():
        speeds = [n / s for n, s in zip(c.tokens, c.seconds, strict=True)]
        rows.append(row(BENCH, case, name, "target tokens trained", speeds, "tokens/s", **settings))
        if c is not joint:
            rows.append(row(BENCH, case, name, "training over joint", paired(c.seconds, joint.seconds), "x", **settings))
    rates = {name: c.measurements() / sum(c.seconds) for name, c in by_name.items() if c is not joint}
    for name, rate in rates.items():
        rows.append(row(BENCH, case, name, "measurements of a cell", 1000 * rate, "per 1000 s", **settings))
    sigmas = {ALL: by_name[ALL].deviation(), PAIR_ALL: by_name[PAIR_ALL].deviation()}
    for name, sigma in sigmas.items():
        rows.append(row(BENCH, case, name, "standard deviation of a measurement", sigma, "nats/token", **settings))
    for rival, its in ((ONE, ALL), (PAIR_ONE, PAIR_ALL)):
        metric = f"standard error at equal time, over {rival.removeprefix('affinity, ')}"
        ratio = relative_error(sigmas[ALL], rates[ALL], sigmas[its], rates[rival])
        least = {"limit": 1 / math.sqrt(N)} if its == ALL else {}
        rows.append(judged(row(BENCH, case, ALL, metric, ratio, "x", **settings, **least), ERROR_BOUND))
    return rows


def relative_error(sigma: float, rate: float, rival_sigma: float, rival_rate: float) -> float:
    """Standard error of a cell over the rival's after the same time: sigma / sqrt(rate) over the same of the rival."""
    return (sigma / rival_sigma) * math.sqrt(rival_rate / rate)


def _settings(learner: Learner, held: int, rounds: int) -> dict[str, Any]:
    c, device = learner.config.model, learner.world.device
    return {
        "dtype": learner.config.engine.dtype,
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else "",
        "layers": f"{c.encoder_layers}+{c.decoder_layers}",
        "width": f"{c.d_model}/{c.d_ffn}",
        "heads": c.heads,
        "vocabulary": learner.store.tokenizer.vocabulary_size,
        "preset": learner.config.model.preset or "",
        "batch_tokens": learner.config.batch.batch_tokens,
        "held_tokens": held,
        "rounds": rounds,
    }
