"""``mnmt bench decode``: target tokens per second of beam and greedy search beside Hugging Face ``generate`` and CTranslate2.

Same weights, same sentences, same batches (those that our own planning makes), same device and dtype, the same number of
threads, all candidates in turn within each repetition. Outputs are judged first: a candidate whose outputs are wrong is
reported as failed, without a time.

In fp32 two right decoders give the same outputs but for near-ties. In bf16 many differ: there a good part must be what fp32
gives. And always the fp32 model must find outputs as probable as those of the others. That model runs on the CPU and as in
training, without caches, so that nothing of what is judged judges itself and ours can be found wrong too.

On a run, sentences end where the model ends them. Without one the weights are random and ``</s>`` is never the best, so
that every sentence is given the length of a translation: as many tokens as its source has, times 0.8 to 1.2, as its limit,
for us and, by a stopping criterion per sentence, for ``generate``. CTranslate2 knows one limit per batch only and is
measured on runs alone.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..data.packing import pack_batch
from .decode_candidates import CANDIDATES, DTYPES, GPU_ALONE, OURS, OWN_SEARCH, Candidate, Outputs
from .decode_cases import Case, random_case, run_case
from .kernel_case import Unavailable
from .table import Row, row
from .timing import Clock, in_one_line, peak_extra_bytes, release

__all__ = ["DTYPES", "Case", "bench_decode", "random_case", "run_case"]

MIN_EQUAL = {"fp32": 0.97, "bf16": 0.25}
"""Share of outputs that must be those of ours in fp32: two implementations round differently, and near-ties in the scores
fall either way. On random weights 54 to 73 % of the bf16 outputs of right decoders were the same, and at most 10 % of those
of broken ones (beams not reordered, all beams seeing all, positions off by one, padding seen)."""

MOST_LESS_PROBABLE = {"fp32": 0.02, "bf16": 0.1}
"""Nats per token by which outputs may be less probable, under the fp32 model, than the most probable ones seen (right
decoders in bf16 lost up to 0.03)."""

JUDGED = 64
"""Sentences, evenly spread, whose probability is looked at."""


@dataclass
class Entrant:
    """A candidate at one dtype, and what it did at one beam."""

    name: str
    decode: Candidate | None = None
    problem: str | None = None
    outputs: Outputs | None = None
    equal: int | None = None
    log_prob: float | None = None
    extra_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)

    def at_next_beam(self) -> Entrant:
        """Ready for another beam; who could not be started stays so."""
        return Entrant(self.name, self.decode, None if self.decode else self.problem)


def bench_decode(
    case: Case,
    *,
    beams: Sequence[int] = (5, 1),
    dtypes: Sequence[str] = ("fp32",),
    repetitions: int = 3,
    seconds: float | None = None,
    device: torch.device | None = None,
    log: Callable[[str], None] = print,
) -> Iterator[Row]:
    """Rows for every dtype, beam and candidate, as soon as measured: target tokens per second (generated tokens, ``</s>``
    included, tags not), and the ratio of ours to each rival.

    Args:
        repetitions: timed rounds of each dtype and beam, at most.
        seconds: no further round begins that would end later than this after the first; None: no limit.
    """
    clock = Clock(device or torch.device("cpu"), flush=False)
    if clock.device.type == "cuda":  # cuBLAS takes its workspace once: not on the account of who multiplies first
        torch.ones(8, 8, device=clock.device).mm(torch.ones(8, 8, device=clock.device))
    exact: dict[int, Outputs | None] = {}  # ours in fp32, by beam
    names = [name for name in CANDIDATES if clock.device.type == "cuda" or name not in GPU_ALONE]
    with tempfile.TemporaryDirectory() as folder:
        for dtype in dtypes:
            release(clock.device)
            entrants = [_started(name, case, clock.device, dtype, Path(folder)) for name in names]
            for beam in beams:
                entrants = [e.at_next_beam() for e in entrants]
                first_outputs(entrants, beam, clock)
                if dtype == "fp32":
                    exact[beam] = entrants[0].outputs
                elif beam not in exact:
                    exact[beam] = _exact(case, beam, clock, Path(folder))
                judge(entrants, case, beam, dtype, exact[beam])
                take_turns(entrants, beam, clock, repetitions, seconds)
                for line in _rows(entrants, case, beam, dtype, clock.device, exact[beam]):
                    _tell(line, log)
                    yield line


def _started(name: str, case: Case, device: torch.device, dtype: str, folder: Path) -> Entrant:
    try:
        return Entrant(name, CANDIDATES[name](case, device, dtype, folder))
    except Unavailable as problem:
        return Entrant(name, problem=str(problem))
    except Exception as problem:
        return Entrant(name, problem=in_one_line(problem))


def _try(entrant: Entrant, call: Callable[[], Any]) -> Any:
    """What ``call`` gives; None, and the entrant is out, where it fails."""
    try:
        return call()
    except Exception as problem:
        entrant.problem = in_one_line(problem)
        return None


def _running(entrants: Sequence[Entrant]) -> list[Entrant]:
    return [e for e in entrants if e.problem is None]


def first_outputs(entrants: Sequence[Entrant], beam: int, clock: Clock) -> None:
    """What everyone gives, which is the warm-up too, and the memory that it takes on a GPU."""
    for entrant in _running(entrants):
        decode = entrant.decode
        assert decode is not None
        if clock.device.type == "cuda" and entrant.name != "ctranslate2":  # whose memory torch does not see
            found = _try(entrant, lambda decode=decode: peak_extra_bytes(clock.device, lambda: decode(beam)))
            entrant.extra_bytes, entrant.outputs = found or (None, None)
        else:
            entrant.outputs = _try(entrant, lambda decode=decode: decode(beam))


def _exact(case: Case, beam: int, clock: Clock, folder: Path) -> Outputs | None:
    """Our fp32 outputs; None where even that fails."""
    ours = _started(OURS, case, clock.device, "fp32", folder)
    if ours.decode is not None:
        ours.outputs = _try(ours, lambda: ours.decode(beam))  # type: ignore[misc]
    return ours.outputs


def judge(entrants: Sequence[Entrant], case: Case, beam: int, dtype: str, exact: Outputs | None) -> None:
    """Those whose outputs are wrong are out. ``exact``: ours in fp32, None where there are none."""
    running = _running(entrants)
    ours = next((e for e in running if e.name == OURS), None)
    for entrant in running:
        assert entrant.outputs is not None
        entrant.log_prob = mean_log_prob(case, entrant.outputs)
        entrant.equal = None if ours is None else _equal(case, ours.outputs, entrant.outputs)
    best = max([e.log_prob or 0.0 for e in running if e.name not in OWN_SEARCH], default=-math.inf)
    for entrant in running:
        if entrant.name not in OWN_SEARCH or beam == 1:
            entrant.problem = _wrong(case, dtype, entrant.outputs, exact, best)
        elif ours is not None and ours.decode is not None:
            greedy = [_try(entrant, lambda e=e: e.decode(1)) for e in (ours, entrant)]
            if entrant.problem is None:
                entrant.problem = _wrong(case, dtype, greedy[1], greedy[0], mean_log_prob(case, greedy[0]))


def _wrong(case: Case, dtype: str, outputs: Outputs | None, right: Outputs | None, best: float) -> str | None:
    """What is wrong with outputs, beside right ones and the best mean log-probability."""
    assert outputs is not None
    if right is not None and _equal(case, right, outputs) < MIN_EQUAL[dtype] * len(outputs):
        return "outputs differ from ours" + ("" if dtype == "fp32" else " in fp32")
    found = mean_log_prob(case, outputs)
    if not found >= best - MOST_LESS_PROBABLE[dtype]:  # also NaN
        return f"outputs less probable than others: {found:.3f} against {best:.3f} nats a token"
    return None


@torch.inference_mode()
def mean_log_prob(case: Case, outputs: Outputs) -> float:
    """Mean log-probability (nats) of the generated tokens of up to ``JUDGED`` sentences, by the forward pass of training."""
    model, tokenizer = case.opened.model, case.opened.tokenizer
    chosen = range(0, len(outputs), -(-len(outputs) // JUDGED))
    texts = [outputs[i][: case.limits[i] - 1] for i in chosen]
    sources = [case.sources[i][1:-1] for i in chosen]
    batch = pack_batch(sources, texts, [0] * len(texts), [case.task], tokenizer)
    hidden = model.hidden(batch)
    total, count = 0.0, 0
    bounds = pairwise(batch.target_offsets.tolist())
    for i, (start, end), text in zip(chosen, bounds, texts, strict=True):
        last = end if len(text) + 1 < case.limits[i] else end - 1  # </s> only where it was generated
        scores = (hidden[start + 1 : last] @ model.shared.weight.T).log_softmax(1)
        total += float(scores.gather(1, batch.target_out[start + 1 : last, None]).sum())
        count += last - start - 1
    return total / max(count, 1)


def take_turns(entrants: Sequence[Entrant], beam: int, clock: Clock, repetitions: int, seconds: float | None) -> None:
    """Time the entrants round by round; who fails on the way is out."""
    began = last = time.perf_counter()
    for number in range(repetitions):
        now = time.perf_counter()
        if number and seconds is not None and (now - began) + (now - last) > seconds:
            break
        last = now
        for entrant in _running(entrants):
            took = _try(entrant, lambda decode=entrant.decode: clock.time(lambda: decode(beam)))
            if took is not None:
                entrant.seconds.append(took[0])


def _equal(case: Case, ours: Outputs | None, theirs: Outputs | None) -> int:
    """How many outputs are the same up to the limit of each sentence."""
    return sum(a == b[: most - 1] for a, b, most in zip(ours or [], theirs or [], case.limits, strict=True))


def _rows(
    entrants: Sequence[Entrant], case: Case, beam: int, dtype: str, device: torch.device, exact: Outputs | None
) -> Iterator[Row]:
    title, common = f"{case.name}, beam {beam}", {"dtype": dtype, "device": device.type}
    for entrant in entrants:
        rates = None
        settings: dict[str, Any] = {**common, "threads": torch.get_num_threads(), "repetitions": len(entrant.seconds)}
        settings |= {"batches": len(case.batches(beam)), "ends": "natural" if case.natural_end else "by length"}
        if entrant.outputs is not None:
            tokens = sum(len(o) + (len(o) + 1 < most) for o, most in zip(entrant.outputs, case.limits, strict=True))
            settings |= {"target_tokens": tokens, "log_prob": None if entrant.log_prob is None else round(entrant.log_prob, 4)}
            settings |= {} if entrant.equal is None else {"equal_outputs": f"{entrant.equal}/{len(entrant.outputs)}"}
            if dtype != "fp32" and exact is not None:
                settings["equal_to_fp32"] = f"{_equal(case, exact, entrant.outputs)}/{len(exact)}"
            if entrant.extra_bytes is not None:
                settings["extra_mib"] = round(entrant.extra_bytes / 2**20, 1)
            rates = [tokens / s for s in entrant.seconds]
        if entrant.problem is not None:
            rates, settings["error"] = None, entrant.problem
        yield row("decode", title, entrant.name, "target tokens", rates, "tokens/s", **settings)
    ours, *rivals = entrants
    for rival in rivals if ours.problem is None else ():
        if rival.problem is None:
            ratios = [b / a for a, b in zip(ours.seconds, rival.seconds, strict=True)]
            yield row("decode", title, ours.name, f"speed over {rival.name}", ratios, "x", **common)


def _tell(line: Row, log: Callable[[str], None]) -> None:
    found = f"{line['value']:.4g} {line['unit']}" if line["value"] is not None else f"failed: {line['settings']['error']}"
    log(f"{line['settings']['dtype']}, {line['case'].split(', ')[-1]}, {line['candidate']}, {line['metric']}: {found}")
