"""One model in one dtype in ``mnmt bench train``: who takes part, the rounds, and the rows that come of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..flow import TaskBatch
from ..kernels import backend
from ..model.config import ModelConfig
from ..model.flops import training_flops
from .gemm_rate import ProductRounds
from .kernel_case import Unavailable
from .table import Row, row
from .timing import Clock, TooLong, in_one_line, release, time_limit
from .train_candidates import BareModel, Candidate, Engine, HuggingFace, Trainer
from .train_data import Padded, as_words, joeynmt_batches, padded_as_drawn, padded_by_length
from .train_joeynmt import JoeyNmt

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AS_DRAWN, BY_LENGTH, OWN_RULE, NO_PADDING = "padded as drawn", "sorted by length", "its own batch rule", "no padding"
PRODUCTS, HF = "matrix products of the model's shapes", "Hugging Face M2M100"
SPEED, UNIT = "target tokens per second", "tokens/s"


@dataclass(frozen=True)
class TextCase:
    """Batches on the CPU, with buckets; ``unpadded``: all sentences are of one length."""

    name: str
    batches: Sequence[TaskBatch]
    unpadded: bool = False


@dataclass
class CompileTime:
    """Seconds that compiling may still take, in all."""

    left: float = 0.0


@dataclass
class Contest:
    """One model in one dtype: all candidates on all cases.

    Attributes:
        who: of model, engine, huggingface, joeynmt.
        peak_rate: FLOP/s that MFU is a percentage of; None: no MFU.
    """

    config: ModelConfig
    vocabulary_size: int
    dtype: str
    clock: Clock
    budget: int
    rounds: int
    who: Sequence[str]
    joeynmt: str | None
    work: Path
    say: Callable[[str], None]
    peak_rate: float | None = None
    compile_time: CompileTime = field(default_factory=CompileTime)
    _trainers: dict[str, Trainer] = field(default_factory=dict)

    def rows(self, cases: Sequence[TextCase]) -> Iterator[Row]:
        """Rows of each case as soon as it is measured; then those of rivals that may take long, or much memory."""
        theirs = "huggingface" in self.who
        try:
            for case in cases:
                worker, problem = self._joeynmt(case)
                joeynmt = [worker.candidate(name) for name in worker.names] if worker else []
                try:
                    yield from self.measure(case, self._ours(case), self._hugging_face(case) + joeynmt)
                finally:
                    if worker is not None:
                        worker.close()
                if problem:
                    yield self._failed(case, "JoeyNMT", problem, self._settings(case))
            self._close(HF)
            for case in cases if theirs and self.compile_time.left > 0 else ():
                yield from self.measure(case, self._ours(case), [self._compiled(case)], only_rivals=True)
                self._close(HF)
            for case in cases if theirs else ():
                if not case.unpadded:
                    yield from self.measure(case, self._ours(case), [self._as_drawn(case)], only_rivals=True)
        finally:
            self._close("")

    def measure(
        self, case: TextCase, ours: list[Candidate], rivals: list[Candidate], *, only_rivals: bool = False
    ) -> Iterator[Row]:
        """Rows of one case; ``only_rivals``: without those that ours have by themselves. Who is stopped while it measures
        (Ctrl-C, SIGTERM) gives those of the rounds that are whole."""
        settings = self._settings(case)
        where = f"{settings['preset'] or settings['layers']}, {case.name}, {self.dtype}"
        everybody = ours + rivals
        sizes = self.config, self.vocabulary_size
        products, stopped = None, None
        try:
            for candidate in everybody:
                self.say(f"{where}: {candidate.name}")
                self._begin(candidate)
            self.say(f"{where}: {self.rounds} rounds")
            if not only_rivals:
                products = ProductRounds(*sizes, case.batches, DTYPES[self.dtype], self.clock)
            self._take_turns(everybody, products)
        except KeyboardInterrupt as stop:
            stopped = stop
            settings["rounds"] = self._cut(everybody, products)
        if products is not None:
            giga, failed = [r / 1e9 for r in products.rates], {"error": products.problem} if products.problem else {}
            yield row("train", case.name, PRODUCTS, "rate", giga or None, "GFLOP/s", **settings, **failed)
        flops = sum(training_flops(self.config, self.vocabulary_size, batch) for batch in case.batches)
        for candidate in rivals if only_rivals else everybody:
            rates = products.rates if products is not None and candidate in ours else []
            yield from self._rows(case, candidate, flops, rates, settings)
        yield from self._speeds(case, ours, rivals, settings)
        if stopped is not None:
            raise stopped

    def _take_turns(self, everybody: list[Candidate], products: ProductRounds | None) -> None:
        for number in range(self.rounds):
            if products is not None:
                products.take_turn()
            running = [c for c in everybody if c.problem is None]
            first = number % max(1, len(running))
            for candidate in running[first:] + running[:first]:
                self._attempt(candidate, lambda candidate=candidate: candidate.seconds.append(candidate.one_pass(self.clock)))

    def _cut(self, everybody: list[Candidate], products: ProductRounds | None) -> int:
        """To the rounds that all have made, and their number; without any everybody says so."""
        running = [c for c in everybody if c.problem is None]
        rounds = min((len(c.seconds) for c in running), default=0)
        for candidate in running:
            del candidate.seconds[rounds:]
            if not rounds:
                candidate.problem = "stopped before a round was whole"
        if products is not None:
            del products.rates[rounds:]
            products.problem = products.problem or ("" if rounds else "stopped before a round was whole")
        return rounds

    def _begin(self, candidate: Candidate) -> None:
        left = self.compile_time.left if candidate.compiles else None
        if left is not None and left <= 0:
            candidate.drop("not compiled: the time for compiling is used up", self.clock)
            return
        began = time.perf_counter()

        def begin() -> None:
            with time_limit(left, "compiling"):
                candidate.begin(self.clock)

        self._attempt(candidate, begin)
        if left is not None:
            self.compile_time.left = left - (time.perf_counter() - began)

    def _attempt(self, candidate: Candidate, call: Callable[[], object]) -> None:
        """What goes wrong is the candidate's problem alone."""
        said = ""
        try:
            call()
        except (Unavailable, TooLong) as problem:
            said = str(problem)
        except Exception as problem:
            said = in_one_line(problem)
        if said:  # outside: the exception held the memory of the call that failed
            candidate.drop(said, self.clock)

    def _trainer(self, name: str, make: Callable[..., Trainer], **options: Any) -> Trainer:
        """One for all batches of this model and dtype."""
        if name not in self._trainers:
            self._tidy()
            self._trainers[name] = make(self.config, self.vocabulary_size, DTYPES[self.dtype], self.clock.device, **options)
        return self._trainers[name]

    def _close(self, prefix: str) -> None:
        for name in [name for name in self._trainers if name.startswith(prefix)]:
            self._trainers.pop(name).close()
        self._tidy()

    def _tidy(self) -> None:
        if self.clock.device.type == "cuda":  # where what a trainer holds is told by what is in use
            release(self.clock.device)

    def _ours(self, case: TextCase) -> list[Candidate]:
        tokens = sum(sum(batch.step_tokens) for batch in case.batches)
        kinds: dict[str, type[BareModel | Engine]] = {"engine": Engine, "model": BareModel}
        return [
            Candidate(kind.name, case.batches, tokens, partial(self._trainer, kind.name, kind))
            for who, kind in kinds.items()
            if who in self.who
        ]

    def _padded(self, case: TextCase) -> tuple[str, list[Padded]]:
        """The least padding that rivals can have, and its name."""
        if case.unpadded:
            return NO_PADDING, padded_as_drawn(case.batches)
        return BY_LENGTH, padded_by_length(case.batches, self.budget)

    def _rival(self, name: str, padding: str, batches: list[Padded], **options: Any) -> Candidate:
        start = partial(self._trainer, name, HuggingFace, **options)
        return Candidate(f"{name}, {padding}", batches, sum(b.tokens for b in batches), start)

    def _hugging_face(self, case: TextCase) -> list[Candidate]:
        if "huggingface" not in self.who:
            return []
        kinds = {HF: False, f"{HF} autocast": True} if self.dtype == "bf16" else {HF: False}
        return [self._rival(name, *self._padded(case), autocast=autocast) for name, autocast in kinds.items()]

    def _as_drawn(self, case: TextCase) -> Candidate:
        return self._rival(HF, AS_DRAWN, padded_as_drawn(case.batches))

    def _compiled(self, case: TextCase) -> Candidate:
        kind = "static" if case.unpadded else "dynamic"
        candidate = self._rival(f"{HF} compiled", *self._padded(case), compiling=kind)
        candidate.compiles = True
        return candidate

    def _joeynmt(self, case: TextCase) -> tuple[JoeyNmt | None, str]:
        """Its worker, or why there is none."""
        if "joeynmt" not in self.who:
            return None, ""
        if self.joeynmt is None:
            return None, "not installed"
        if self.clock.device.type != "cpu":
            return None, "measured on CPU only"
        padding, padded = self._padded(case)
        words = {padding: as_words(padded)}
        if not case.unpadded:
            words[OWN_RULE] = joeynmt_batches(case.batches, self.budget)
        threads, bf16 = torch.get_num_threads(), self.dtype == "bf16"
        sizes = self.config, self.vocabulary_size
        try:
            return JoeyNmt(self.joeynmt, *sizes, words, self.work, bf16=bf16, threads=threads), ""
        except (OSError, RuntimeError) as problem:
            return None, str(problem)

    def _settings(self, case: TextCase) -> dict[str, Any]:
        c, device = self.config, self.clock.device.type
        return {
            "preset": c.preset or "",
            "dtype": self.dtype,
            "device": device,
            "threads": torch.get_num_threads() if device == "cpu" else "",
            "layers": f"{c.encoder_layers}+{c.decoder_layers}",
            "width": f"{c.d_model}/{c.d_ffn}",
            "heads": c.heads,
            "vocabulary": self.vocabulary_size,
            "batch_tokens": self.budget,
            "batches": len(case.batches),
            "rounds": self.rounds,
            "runs": "reference" if backend.on_references(["vocabulary_rows"], device) else "kernels",
        }

    def _rows(
        self, case: TextCase, candidate: Candidate, flops: int, rates: list[float], settings: dict[str, Any]
    ) -> Iterator[Row]:
        """Of one candidate; ``rates`` of the matrix products of each round where its share of them is asked for."""
        name, seconds = candidate.name, candidate.seconds
        if candidate.problem is not None:
            yield self._failed(case, name, candidate.problem, settings)
            return
        yield row("train", case.name, name, SPEED, candidate.speeds(), UNIT, **settings)
        if rates:
            share = [100 * flops / s / rate for s, rate in zip(seconds, rates, strict=True)]
            yield row("train", case.name, name, "share of matrix-product rate", share, "%", **settings)
        if self.peak_rate is not None:
            mfu = [100 * flops / s / self.peak_rate for s in seconds]
            yield row("train", case.name, name, "MFU", mfu, "%", **settings)
        if candidate.peak_bytes is not None:
            yield row("train", case.name, name, "peak memory", candidate.peak_bytes / 2**20, "MiB", **settings)
        if candidate.compiles:
            took = max(0.0, candidate.first_seconds - statistics.median(seconds))
            yield row("train", case.name, name, "compile time", took, "s", **settings)

    def _speeds(
        self, case: TextCase, ours: list[Candidate], rivals: list[Candidate], settings: dict[str, Any]
    ) -> Iterator[Row]:
        """Ours over every rival, round by round."""
        for mine in ours:
            for rival in rivals:
                if mine.problem is None and rival.problem is None:
                    ratios = [a / b for a, b in zip(mine.speeds(), rival.speeds(), strict=True)]
                    yield row("train", case.name, mine.name, f"speed over {rival.name}", ratios, "x", **settings)

    def _failed(self, case: TextCase, name: str, problem: str, settings: dict[str, Any]) -> Row:
        return row("train", case.name, name, SPEED, None, UNIT, **settings, error=problem)
