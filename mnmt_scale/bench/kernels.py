"""``mnmt bench kernels``: every op beside its rivals, on the same inputs, in one run.

Correctness first: each candidate is compared with fp64; one that is wrong is reported and not timed. Then all that are
right take turns, from cold caches, so that a change of the machine's load or clock meets all of them; the first of a
round changes from round to round. Their times are set beside the model's bytes or FLOPs and the machine's own peak:
that of memory is measured in every round, that of matrix products at the start of the same run. What cannot run, or runs
out of memory, is a row that says so. On a GPU the time is the device's own; ``host time`` is what the launch took besides,
which shows in a training only where the host does not run ahead (or where the op waits for the device).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import MnmtError, nearest
from ..kernels import backend, native
from .kernel_case import OURS, Candidate, Case, Outputs, Unavailable, Workload, errors, kept, output_bytes, same_bits
from .kernel_cases import OPS, Size, cases_of
from .kernel_targets import target_cases
from .peaks import Peaks, Stream, measure_peaks
from .table import Row, row
from .timing import Clock, available_bytes, chosen_device, in_one_line, peak_extra_bytes, release

MIN_ROUNDS, MAX_ROUNDS = 5, 200
FEWEST_ROUNDS, LONG_SECONDS = 2, 6.0
"""Where five rounds would take longer than this, two have to do."""
SECONDS = {"cpu": 1.5, "cuda": 0.5}
QUICK_SECONDS = 0.02
AHEAD_MS = 4.0
"""More than the launch of an op over 2,400 fragments takes."""


def bench_kernels(
    *,
    ops: Sequence[str] = (),
    size: Size = "default",
    targets: bool = False,
    seconds: float | None = None,
    device: str | None = None,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Row]:
    """Rows as in ``table.py``, as soon as each case is measured: who stops early keeps what there is.

    Args:
        ops: names from ``OPS``; all by default.
        size: of the set of shapes: ``quick`` (seconds), ``default`` (CPU: 8 GB, five to seven minutes on two cores; GPU: as
            ``full``), ``full`` (the shapes of the papers).
        targets: instead of such a set, the shapes that targets are set for, the most valuable first (``kernel_targets``);
            with ``quick`` the same cases at tiny shapes.
        seconds: timed per case, after five rounds (two where these take long); None: by device.
        device: ``cpu`` or ``cuda``; None: a GPU where there is one.
        threads: of a CPU's candidates; None: torch's setting.

    Raises:
        MnmtError: E102 for an op or a device that does not exist, or a budget below zero; E804 where MNMT_KERNELS forces
            what cannot run.
    """
    for name in ops:
        if name not in OPS:
            remedy = nearest(name, OPS) or "one of: " + ", ".join(OPS)
            raise MnmtError("E102", f"there is no op {name!r}", where="--ops", remedy=remedy)
    if seconds is not None and not 0 <= seconds < float("inf"):
        raise MnmtError("E102", f"the budget per case is {seconds} s", where="--seconds", remedy="give 0 or more")
    place = chosen_device(device)
    backend.forced_kind()  # an unknown one is refused here, not in every row
    budget = seconds if seconds is not None else QUICK_SECONDS if size == "quick" else SECONDS[place.type]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        clock = Clock(place, flush=size != "quick", ahead_ms=AHEAD_MS)
        if targets:
            cases = [case for case in target_cases(place.type, quick=size == "quick") if case.op in (ops or OPS)]
        else:
            cases = cases_of(ops or OPS, place, size)
        say(f"peaks of {place}")
        peaks = measure_peaks(place, clock, {case.cost.peak for case in cases}, quick=size == "quick")
        yield from peaks.rows
        for number, case in enumerate(cases, 1):
            began = time.perf_counter()
            rows = measure_case(case, clock, peaks, budget)
            say(f"[{number}/{len(cases)}] {time.perf_counter() - began:.1f} s, {case.title}: {_in_short(rows)}")
            yield from rows
            release(place)
    finally:
        torch.set_num_threads(before)


@dataclass
class Finding:
    """What is known of a candidate: its ``problem``, or its figures."""

    candidate: Candidate
    call: Callable[[], Outputs] | None = None
    problem: str | None = None
    absolute_error: float = 0.0
    relative_error: float = 0.0
    first: Outputs | None = None
    first_seconds: float = 0.0
    repeatable: bool = False
    extra_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    host_seconds: list[float] = field(default_factory=list)


def measure_case(case: Case, clock: Clock, peaks: Peaks, budget: float) -> list[Row]:
    """All rows of a case; whatever goes wrong is among them."""
    settings = _settings(case, clock.device)
    try:
        available = available_bytes(clock.device)
        if case.input_bytes > available:
            text = f"out of memory: inputs need {case.input_bytes / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free"
            return [_failed(case, OURS, text, settings)]
        work = case.build(clock.device)
        truth = work.truth()
    except Exception as problem:
        return [_failed(case, OURS, in_one_line(problem), settings)]
    findings = [check(candidate, work, truth, clock) for candidate in work.candidates]
    del truth
    rates = take_turns(findings, work, clock, budget, peaks.streams.get(case.cost.peak))
    rows: list[Row] = []
    for finding in findings:
        rows += _rows(case, finding, peaks, rates, settings)
    return rows + _speed_ups(case, findings, settings)


def check(candidate: Candidate, work: Workload, truth: Outputs, clock: Clock) -> Finding:
    """Run a candidate for the first time, against the truth."""
    finding = Finding(candidate)
    tolerance = work.tolerance if candidate.tolerance is None else candidate.tolerance
    with _failures(finding, clock):
        free = available_bytes(clock.device)
        if clock.device.type == "cpu" and candidate.needs_bytes > free:
            raise MemoryError(f"it needs {candidate.needs_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
        finding.call = candidate.start()
        _reset(work)
        finding.first_seconds, outputs = clock.time(finding.call)
        finding.absolute_error, finding.relative_error = errors(outputs, truth)
        if not finding.relative_error <= tolerance:  # also NaN
            finding.problem = f"wrong: relative error {finding.relative_error:.2g} against fp64, allowed {tolerance:.2g}"
        else:
            finding.first = kept(outputs)
    return finding


def take_turns(
    findings: Sequence[Finding], work: Workload, clock: Clock, budget: float, stream: Stream | None = None
) -> list[float]:
    """Time the candidates round by round until the budget is used; who fails on the way drops out.

    The first round also looks at memory, and whether the bits are those of ``check``.

    Returns:
        the rate of ``stream`` in each round, bytes/s; empty without one.
    """
    rates: list[float] = []
    began = time.perf_counter()
    for number in range(MAX_ROUNDS):
        passed = time.perf_counter() - began
        limit = max(budget, LONG_SECONDS) if number < MIN_ROUNDS else budget
        if number >= FEWEST_ROUNDS and passed > limit:
            break
        running = [f for f in findings if f.problem is None]
        if not running:
            break
        if stream is not None:
            try:
                rates.append(stream[1] / clock.time(stream[0])[0])
            except Exception as problem:  # of a lost device: an illegal access may show after the call that made it
                for finding in running:
                    finding.problem = in_one_line(problem)
                break
        first = number % len(running)
        for finding in running[first:] + running[:first]:
            with _failures(finding, clock):
                _reset(work)
                if number == 0:
                    _first_round(finding, work, clock)
                else:
                    finding.seconds.append(clock.time(finding.call)[0])
                    finding.host_seconds.append(clock.host_seconds)
    return rates


def _first_round(finding: Finding, work: Workload, clock: Clock) -> None:
    extra, (seconds, outputs) = peak_extra_bytes(clock.device, lambda: clock.time(finding.call))
    finding.seconds.append(seconds)
    if extra is not None:
        finding.extra_bytes = max(0, extra - (0 if work.reset else output_bytes(outputs)))
    finding.repeatable = same_bits(finding.first, outputs)
    finding.first = None
    if finding.candidate.name == OURS and work.repeatable and not finding.repeatable:
        finding.problem = "wrong: two runs differ, though the op promises the same bits"


@contextmanager
def _failures(finding: Finding, clock: Clock) -> Iterator[None]:
    """What goes wrong becomes the finding's problem."""
    try:
        yield
    except Unavailable as problem:
        finding.problem = str(problem)
    except Exception as problem:
        finding.problem = in_one_line(problem)
        release(clock.device)


def share_of_peak(amount: int, seconds: Sequence[float], rates: Sequence[float]) -> list[float]:
    """Percent of the peak rate of its round that ``amount`` (bytes or FLOPs) in each of these times comes to."""
    return [100 * amount / s / rate for s, rate in zip(seconds, rates, strict=True)]


def _rows(case: Case, finding: Finding, peaks: Peaks, rates: list[float], settings: dict[str, Any]) -> list[Row]:
    name, seconds, cost = finding.candidate.name, finding.seconds, case.cost
    settings = settings | {"rounds": len(seconds)}
    if finding.problem is not None:
        return [_failed(case, name, finding.problem, settings)]

    def measured(metric: str, value: Any, unit: str, **more: Any) -> Row:
        return row("kernels", case.title, name, metric, value, unit, **settings, **more)

    unit, giga = cost.unit
    more = {"absolute_error": finding.absolute_error, "repeatable": finding.repeatable}
    rows = [
        measured("relative error", finding.relative_error, "of the largest fp64 value", **more),
        measured("time", [1e3 * s for s in seconds], "ms"),
        measured("rate", [cost.amount / s / giga for s in seconds], unit, model=cost.amount, formula=cost.formula),
    ]
    if not rates and cost.peak in peaks.rates:
        rates = [peaks.rates[cost.peak]] * len(seconds)
    if not rates:
        why = peaks.missing.get(cost.peak, f"{cost.peak} was not measured")
        rows.append(measured("share of peak", None, "%", peak=cost.peak, error=why))
    else:
        rows.append(measured("share of peak", share_of_peak(cost.amount, seconds, rates), "%", peak=cost.peak))
        rows[-1]["settings"]["peak_rate"] = f"{statistics.median(rates) / giga:.4g} {unit}"
    if settings["device"] == "cuda" and finding.host_seconds:
        rows.append(measured("host time", [1e3 * s for s in finding.host_seconds], "ms"))
    extra = finding.extra_bytes
    missing = {} if extra is not None else {"error": "this system does not reset the high-water mark of memory"}
    rows.append(measured("extra memory", None if extra is None else extra / 2**20, "MiB", **missing))
    if finding.candidate.compiles:
        rows.append(measured("compile time", max(0.0, finding.first_seconds - min(seconds)), "s"))
    return rows


def _speed_ups(case: Case, findings: list[Finding], settings: dict[str, Any]) -> list[Row]:
    """Ours over every rival, round by round."""
    ours = next((f for f in findings if f.candidate.name == OURS), None)
    if ours is None or ours.problem is not None:
        return []
    rows = []
    for rival in findings:
        if rival is not ours and rival.problem is None:
            ratios = [b / a for a, b in zip(ours.seconds, rival.seconds, strict=True)]
            rows.append(row("kernels", case.title, OURS, f"speed-up over {rival.candidate.name}", ratios, "x", **settings))
    return rows


def _failed(case: Case, candidate: str, problem: str, settings: dict[str, Any]) -> Row:
    return row("kernels", case.title, candidate, "time", None, "ms", **settings, error=problem)


def _settings(case: Case, device: torch.device) -> dict[str, Any]:
    settings = {"op": case.op, **case.shape, "device": device.type}
    op = "vocabulary_rows" if case.op.startswith("linear_") else "task_gram" if case.op == "segmented_wgrad" else case.op
    settings["runs"] = backend.implementation(op, device.type)
    if device.type == "cpu":
        settings["threads"] = torch.get_num_threads()
        settings["isa"] = native.module().isa() if native.problem is None else "not built"
    return settings


def _reset(work: Workload) -> None:
    if work.reset is not None:
        work.reset()


def _in_short(rows: Sequence[Row]) -> str:
    times = [r for r in rows if r["metric"] == "time"]
    return ", ".join(f"{r['candidate']} " + ("failed" if r["value"] is None else f"{r['value']:.4g} ms") for r in times)
