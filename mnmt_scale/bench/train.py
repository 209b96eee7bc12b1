"""``mnmt bench train``: target tokens per second beside Hugging Face and JoeyNMT, and percent of the matrix-product rate.

All candidates take turns in one run (one pass each over the same sentences, then the next), so that a change of the
machine's load meets all of them. Target tokens that are predicted and not padding are what counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..model.config import ModelConfig
from ..model.flops import training_flops
from .gemm_rate import GemmRate
from .table import Row, row
from .train_candidates import BareModel, Candidate, Engine, HuggingFace, JoeyNmt
from .train_data import as_words, constructed, equal_batches, joeynmt_batches, padded_as_drawn, padded_by_length, real_batches

SIZES = {"encoder_layers": 3, "decoder_layers": 3, "d_model": 256, "d_ffn": 1024, "heads": 4}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AS_DRAWN, BY_LENGTH, OWN_RULE, NO_PADDING = "padded as drawn", "sorted by length", "its own batch rule", "no padding"


def bench_train(
    *,
    data: Path | None = None,
    preset: str | None = None,
    joeynmt: str | None = None,
    vocabulary_size: int = 4000,
    budget: int = 4096,
    batches: int = 3,
    rounds: int = 5,
    threads: int | None = None,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    candidates: Sequence[str] = ("model", "engine", "huggingface", "joeynmt"),
    work: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measure training steps on CPU.

    Args:
        data: OPUS-100 tree; None: constructed languages.
        preset: of ``ModelConfig``; None: 3+3 layers, 256/1024, 4 heads.
        joeynmt: interpreter of a virtual environment with joeynmt 2.3; None: its rows say "not installed".
        budget: tokens of a batch on its longer side (with padding, for rivals that pad and sort).
        batches: batches of a pass.
        rounds: passes that are timed, after one that is not.
        threads: of torch; None: all cores.
        candidates: who takes part.
        work: keeps token store and worker files there instead of in a temporary directory.

    Returns:
        Rows as in ``table.py``, metrics "target tokens per second", "share of matrix-product rate", "matrix products".
    """
    config = ModelConfig.model_validate({"preset": preset} if preset else SIZES)
    threads = threads or torch.get_num_threads()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            place = work or Path(temporary)
            place.mkdir(parents=True, exist_ok=True)
            run = _Run(config, vocabulary_size, budget, threads, rounds, candidates, joeynmt, place, say)
            corpus = data or constructed(place)
            say("preparing text")
            text = real_batches(corpus, place, vocabulary_size, budget, batches)
            length = max(8, round(sum(b.target_in.shape[0] for b in text) / sum(b.num_sentences for b in text)))
            equal = equal_batches(vocabulary_size, budget, length, batches)
            rows: list[Row] = []
            for dtype in dtypes:
                rows += run.measure(f"real text ({corpus.name})", text, dtype, unpadded=False)
                rows += run.measure(f"equal lengths ({length})", equal, dtype, unpadded=True)
            return rows
    finally:
        torch.set_num_threads(before)


class _Run:
    """What all measurements of one call share."""

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        budget: int,
        threads: int,
        rounds: int,
        who: Sequence[str],
        joeynmt: str | None,
        work: Path,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.vocabulary_size, self.budget, self.threads = config, vocabulary_size, budget, threads
        self.rounds, self.who, self.joeynmt, self.work, self.say = rounds, who, joeynmt, work, say

    def measure(self, case: str, batches: list, dtype: str, *, unpadded: bool) -> list[Row]:
        """Rows of one set of sentences in one dtype."""
        kind = DTYPES[dtype]
        flops = sum(training_flops(self.config, self.vocabulary_size, b) for b in batches)
        products = [GemmRate(self.config, self.vocabulary_size, b, kind) for b in batches]
        taking_part, worker, error = self._candidates(batches, kind, unpadded)
        product_seconds: list[float] = []
        try:
            for number in range(self.rounds + 1):
                self.say(f"{case}, {dtype}: round {number} of {self.rounds}")
                product_seconds.append(sum(p.run() for p in products))
                for candidate in taking_part:
                    candidate.take_pass()
        finally:
            for candidate in taking_part:
                candidate.close()
            if worker is not None:
                worker.close()
        rate = [sum(p.flops for p in products) / s for s in product_seconds[1:]]
        giga = [r / 1e9 for r in rate]
        settings = self._settings(dtype, batches)
        rows = [row("train", case, "matrix products of the model's shapes", "rate", giga, "GFLOP/s", **settings)]
        for candidate in taking_part:
            rows += self._rows(case, candidate, flops, rate, settings)
        if "joeynmt" in self.who and worker is None:
            absent = {**settings, "error": error or "not installed"}
            rows.append(row("train", case, "JoeyNMT", "target tokens per second", None, "tokens/s", **absent))
        return rows

    def _candidates(self, batches: list, dtype: torch.dtype, unpadded: bool) -> tuple[list[Candidate], JoeyNmt | None, str]:
        sizes = self.config, self.vocabulary_size
        found: list[Candidate] = []
        if "model" in self.who:
            found.append(BareModel(*sizes, batches, dtype))
        if "engine" in self.who:
            found.append(Engine(*sizes, batches, dtype))
        named = {NO_PADDING: padded_as_drawn(batches)}
        if not unpadded:
            named = {AS_DRAWN: padded_as_drawn(batches), BY_LENGTH: padded_by_length(batches, self.budget)}
        if "huggingface" in self.who:
            for padding, padded in named.items():
                found.append(HuggingFace(*sizes, padded, dtype, padding=padding))
                if dtype == torch.bfloat16 and padding != AS_DRAWN:
                    found.append(HuggingFace(*sizes, padded, dtype, padding=padding, autocast=True))
        worker = None
        if "joeynmt" in self.who and self.joeynmt is not None:
            words = {name: as_words(padded) for name, padded in named.items() if name != AS_DRAWN}
            if not unpadded:
                words[OWN_RULE] = joeynmt_batches(batches, self.budget)
            bf16 = dtype == torch.bfloat16
            try:
                worker = JoeyNmt(self.joeynmt, *sizes, words, self.work, bf16=bf16, threads=self.threads)
            except (OSError, RuntimeError) as problem:
                return found, None, str(problem)
            found += [worker.candidate(name) for name in words]
        return found, worker, ""

    def _settings(self, dtype: str, batches: list) -> dict[str, Any]:
        c = self.config
        return {
            "dtype": dtype,
            "threads": self.threads,
            "layers": f"{c.encoder_layers}+{c.decoder_layers}",
            "width": f"{c.d_model}/{c.d_ffn}",
            "heads": c.heads,
            "vocabulary": self.vocabulary_size,
            "batch_tokens": self.budget,
            "batches": len(batches),
            "rounds": self.rounds,
        }

    def _rows(self, case: str, candidate: Candidate, flops: int, rate: list[float], settings: dict[str, Any]) -> list[Row]:
        seconds = candidate.seconds[1:]
        name = candidate.name
        speed = [candidate.tokens / s for s in seconds]
        rows = [row("train", case, name, "target tokens per second", speed, "tokens/s", **settings)]
        if isinstance(candidate, BareModel | Engine):
            share = [100 * flops / s / r for s, r in zip(seconds, rate, strict=True)]
            rows.append(row("train", case, name, "share of matrix-product rate", share, "%", **settings))
        return rows
