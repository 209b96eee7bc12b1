"""``mnmt bench train``: target tokens per second beside Hugging Face and JoeyNMT, memory, and percent of the matrix rate.

All candidates of a case take turns in one run (one pass each over the same sentences, then the next; the first of a round
changes), so that a change of the machine's load meets all of them. Target tokens that are predicted and not padding are
what counts. Who cannot run, or runs out of memory, is a row that says so, and the others go on. MFU (GPU) is the FLOPs of
the formula (``model.flops``) over time and the best matrix product of ``peaks``, measured at the start of the same run.

Rivals under torch.compile come last, beside ours once more: who is stopped while they compile keeps all the rest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..data.store import TokenStore
from ..errors import MnmtError
from ..flow import TaskBatch
from ..model.config import ModelConfig
from .peaks import measure_peaks
from .table import Row
from .timing import Clock, chosen_device, release
from .train_cases import DTYPES, CompileTime, Contest, TextCase
from .train_data import constructed, equal_batches, kind_of, prepared, real_batches

SIZES = {"encoder_layers": 3, "decoder_layers": 3, "d_model": 256, "d_ffn": 1024, "heads": 4}
TEXT_PIECES = 4000
"""Vocabulary of the text where no store is given; a model's may be larger."""

__all__ = ["DTYPES", "SIZES", "bench_train"]


def bench_train(
    *,
    data: Path | None = None,
    store: Path | None = None,
    presets: Sequence[str | None] = (None,),
    joeynmt: str | None = None,
    vocabulary_size: int | None = None,
    budget: int = 4096,
    batches: int = 3,
    rounds: int = 5,
    threads: int | None = None,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    device: str | None = None,
    compile_seconds: float = 0.0,
    candidates: Sequence[str] = ("model", "engine", "huggingface", "joeynmt"),
    work: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Measure training steps; rows as soon as a case is measured.

    Args:
        data: OPUS-100 tree; None: constructed languages. store: a prepared token store instead.
        presets: of ``ModelConfig``; None: 3+3 layers, 256/1024, 4 heads.
        joeynmt: interpreter of a virtual environment with joeynmt 2.3; None: its rows say "not installed".
        vocabulary_size: V of the models; None: that of the text.
        budget: tokens of a batch on its longer side (with padding, for rivals that pad and sort).
        batches, rounds: batches of a pass; passes that are timed, after one that is not.
        threads, device: of torch on CPU, None: all cores; ``cpu`` or ``cuda``, None: a GPU where there is one.
        compile_seconds: what compiling Hugging Face's model may take in all; 0: it is not compiled.
        candidates, work: who takes part; keeps token store and worker files there, not in a temporary directory.

    Returns:
        Rows as in ``table.py``, metrics "target tokens per second", "share of matrix-product rate" (ours), "speed over RIVAL"
        (ours, of each round), "compile time", on GPU "MFU" and "peak memory"; and the rates that percentages are of.

    Raises:
        MnmtError: E102 for a device that is not there or a vocabulary smaller than the text's, and what ``prepared`` raises.
    """
    clock = Clock(chosen_device(device), flush=False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            (place := work or Path(temporary)).mkdir(parents=True, exist_ok=True)
            corpus = store or data or constructed(place)
            say("preparing text")
            found = prepared(corpus, place, min(vocabulary_size or TEXT_PIECES, TEXT_PIECES), store)
            V = _vocabulary(vocabulary_size, Path(found.store))
            cases = _cases(f"{kind_of(corpus)} text ({corpus.name})", real_batches(found, budget, batches), V, budget)
            rates, rows = _product_rates(clock, dtypes, say)
            yield from rows
            compile_time = CompileTime(compile_seconds)
            for preset in presets:
                config = ModelConfig.model_validate({"preset": preset} if preset else SIZES)
                for dtype in dtypes:
                    contest = Contest(config, V, dtype, clock, budget, rounds, candidates, joeynmt, place, say)
                    contest.peak_rate, contest.compile_time = rates.get(dtype), compile_time
                    yield from contest.rows(cases)
    finally:
        torch.set_num_threads(before)


def _cases(name: str, text: list[TaskBatch], V: int, budget: int) -> tuple[TextCase, TextCase]:
    """The text, and as many batches of random sentences that all have its mean length."""
    length = max(8, round(sum(b.target_in.shape[0] for b in text) / sum(b.num_sentences for b in text)))
    equal = equal_batches(V, budget, length, len(text))
    return TextCase(name, text), TextCase(f"equal lengths ({length})", equal, unpadded=True)


def _vocabulary(wanted: int | None, store: Path) -> int:
    there = TokenStore.open(store).tokenizer.vocabulary_size
    if wanted is not None and wanted < there:
        what = f"{wanted} is smaller than the text's vocabulary of {there}"
        raise MnmtError("E102", what, where="--vocabulary-size", remedy=f"give {there} or more")
    return wanted or there


def _product_rates(clock: Clock, dtypes: Sequence[str], say: Callable[[str], None]) -> tuple[dict[str, float], list[Row]]:
    """On a GPU the best matrix product of each dtype, FLOP/s, and the rows that say so; on CPU nothing, where the products of
    the model's own shapes are the measure and others take half a minute."""
    if clock.device.type == "cpu":
        return {}, []
    say("matrix products")
    peaks = measure_peaks(clock.device, clock, {f"product {dtype}" for dtype in dtypes})
    release(clock.device)
    rates = {dtype: peaks.rates[f"product {dtype}"] for dtype in dtypes if f"product {dtype}" in peaks.rates}
    return rates, [r | {"bench": "train"} for r in peaks.rows if r["metric"] == "rate"]
