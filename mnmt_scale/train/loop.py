"""THE loop: asks the method, moves the learner, writes the log. Nothing holds the loop, nothing calls back into it."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine import checkpoint
from ..engine.faults import fault
from ..errors import MnmtError
from ..flow import StepReport, TaskBatch
from ..methods.spec import Method
from ..runlog import RunLog
from .learner import Learner
from .profile import ProfileWindow

REQUEUE_EXIT_CODE = 75
"""Exit code after SIGTERM or SIGUSR1: the run was saved and can go on (sysexits' EX_TEMPFAIL; Slurm: requeue on it)."""

_TIME_UP, _SIGNALLED = 1, 1_000_000  # flags are summed over ranks: one addend per kind of request


@dataclass
class Progress:
    """How far a training is, besides what learner and method know; travels in the checkpoint."""

    best: float = math.inf
    worse: int = 0
    tokens: int = 0
    stopped: str = ""


def fit(
    learner: Learner, method: Method, run: Path, log: RunLog, progress: Progress, window: tuple[int, int] | None = None
) -> Progress:
    """Train until ``train.max_steps``, patience, the time limit or a signal.

    Returns:
        Progress with ``stopped`` naming why: ``steps``, ``patience``, ``minutes`` or ``signal``.

    Raises:
        MnmtError: E501 when loss or gradient is not finite, E406 when a checkpoint cannot be written.
    """
    config = learner.config
    meter, interrupted, profiler = _Meter(), _Interruption(), ProfileWindow(window, run, learner.world.rank)
    deadline = time.monotonic() + 60 * config.train.max_minutes if config.train.max_minutes else math.inf
    if config.train.patience and progress.worse >= config.train.patience:
        progress.stopped = "patience"  # the run that is resumed here had come to its end
    try:
        _steps(learner, method, run, log, progress, meter, interrupted, profiler, deadline)
    finally:
        profiler.finish()
        interrupted.restore()
    progress.stopped = progress.stopped or "steps"
    return progress


def _steps(
    learner: Learner,
    method: Method,
    run: Path,
    log: RunLog,
    progress: Progress,
    meter: _Meter,
    interrupted: _Interruption,
    profiler: ProfileWindow,
    deadline: float,
) -> None:
    config = learner.config
    while learner.step < config.train.max_steps and not progress.stopped:
        fault("train.before_step", step=learner.step, rank=learner.world.rank)
        profiler.before(learner.step + 1)
        batches = learner.stream.next()
        scales = method.scales(batches[0])
        observing = method.wants(learner.step)
        flag = _TIME_UP * (time.monotonic() > deadline) + _SIGNALLED * interrupted.now
        try:
            report, flags = learner.update(batches, scales, flag)
        except MnmtError as error:
            if error.code == "E501":
                _write_bad_batch(run, learner, batches)
            raise
        profiler.after(report.step)
        if report.skipped:
            _write_bad_batch(run, learner, batches)
            log.record("event", step=report.step, text="update skipped: loss or gradient not finite")
            log.say(f"step {report.step}: loss or gradient not finite, update skipped")
        if observing:
            method.observe(report)
        progress.tokens += 0 if report.skipped else sum(report.tokens)
        meter.add(report)
        progress.stopped = _reason(flags)
        last = bool(progress.stopped) or learner.step == config.train.max_steps
        if last or learner.step % config.train.log_steps == 0:
            _log_step(log, learner, meter, progress)
        began, saved = time.perf_counter(), False
        # a signal leaves seconds, not minutes: then the state is saved and nothing else is done
        if progress.stopped != "signal" and (last or learner.step % config.train.validate_steps == 0):
            saved = _validate(learner, method, run, log, progress, last=last)
        if not saved and (last or progress.stopped or learner.step % config.engine.checkpoint.every_steps == 0):
            save(learner, method, run, log, progress, metric=None, final=last)
        meter.leave_out(time.perf_counter() - began)


def save(
    learner: Learner, method: Method, run: Path, log: RunLog, progress: Progress, *, metric: float | None, final: bool
) -> bool:
    """Write a checkpoint of the present step with everything that a resumed run needs; False when that failed and training
    goes on without. After a ``final`` one nothing goes on: its failure is an error whatever ``on_save_error`` says."""
    start = time.perf_counter()
    state = {
        "learner": learner.state(),
        "method": method.state_dict(),
        "progress": {"best": _json_float(progress.best), "worse": progress.worse, "tokens": progress.tokens},
    }
    policy = learner.config.engine.checkpoint
    if final:
        policy = policy.model_copy(update={"on_save_error": "stop"})
    fingerprints = {"tokenizer": learner.store.tokenizer.fingerprint, "tasks": learner.tasks.names}
    written = checkpoint.save(
        run,
        learner.step,
        learner.engine,
        state,
        metric=metric,
        config=policy,
        fingerprints=fingerprints,
    )
    if written is not None:
        log.record("checkpoint", step=learner.step, seconds=round(time.perf_counter() - start, 3))
    return written is not None


def restore(state: dict[str, Any], learner: Learner, method: Method) -> Progress:
    """Put the state of a checkpoint back (the engine's own part has been loaded already)."""
    learner.load_state(state["learner"])
    method.load_state_dict(state["method"])
    kept = state["progress"]
    best = math.inf if kept["best"] is None else float(kept["best"])
    return Progress(best=best, worse=kept["worse"], tokens=kept["tokens"])


def _validate(learner: Learner, method: Method, run: Path, log: RunLog, progress: Progress, *, last: bool) -> bool:
    """Dev loss per task (token mean); saves when it is the best so far, or training ends here. True if it saved."""
    config = learner.config
    rows: dict[str, dict[str, float | None]] = {}
    total = 0.0
    start = time.perf_counter()
    learner.engine.evaluate_begin()
    for task in learner.tasks:
        if learner.store.has(task.pair, "dev"):
            nll, tokens = learner.validation_nll(task, config.train.validate_sentences)
            total += nll
            if tokens:
                rows[task.name] = {"nll": _json_float(nll / tokens), "tokens": tokens}
    learner.engine.evaluate_end()
    if not rows:
        return False
    tokens = sum(row["tokens"] for row in rows.values())
    loss = total / tokens
    best = loss < progress.best
    before = progress.best, progress.worse
    progress.best, progress.worse = (loss, 0) if best else (progress.best, progress.worse + 1)
    seconds = time.perf_counter() - start
    log.record("valid", step=learner.step, loss=_json_float(loss), best=best, tasks=rows, seconds=seconds)
    mark = "best so far" if best else f"best {progress.best:.4f}"
    log.say(f"step {learner.step}: dev nll {loss:.4f} ({mark}) over {len(rows)} of {len(learner.tasks)} directions")
    if config.train.patience and progress.worse >= config.train.patience:
        progress.stopped = progress.stopped or "patience"
    due = learner.step % config.engine.checkpoint.every_steps == 0
    if best or last or due or progress.stopped:
        final = last or bool(progress.stopped)
        if save(learner, method, run, log, progress, metric=_json_float(loss), final=final):
            return True
        if best:  # weights that were not kept are not the best ones to compare with
            progress.best, progress.worse = before
    return False


def _log_step(log: RunLog, learner: Learner, meter: _Meter, progress: Progress) -> None:
    values = meter.take(learner.tasks.names)
    if not values["tasks"]:
        log.say(f"step {learner.step}: every update since the last line was skipped")
        return
    log.record("train", step=learner.step, tokens=progress.tokens, **values)
    log.advance(learner.step, values["loss"], values["tokens_per_second"])
    total = learner.config.train.max_steps
    log.say(
        f"step {learner.step}/{total} loss {values['loss']:.4f} nll {values['nll']:.4f}"
        f" lr {values['learning_rate']:.3g} grad {values['grad_norm']:.3g} {values['tokens_per_second']:,.0f} tokens/s"
    )


class _Meter:
    """Means over a logging interval; tokens per second are predicted target tokens, waiting for data included, validation
    and checkpoints not."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._rows: dict[int, list[float]] = {}
        self._last: StepReport | None = None

    def add(self, report: StepReport) -> None:
        self._last = report
        for task, loss, nll, tokens in zip(report.tasks, report.losses, report.nlls, report.tokens, strict=True):
            row = self._rows.setdefault(task, [0.0, 0.0, 0.0])
            if tokens and not report.skipped:
                row[0], row[1], row[2] = row[0] + loss * tokens, row[1] + nll * tokens, row[2] + tokens

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self._since += seconds

    def take(self, names: list[str]) -> dict[str, Any]:
        """The interval's means, and a fresh interval."""
        now = time.perf_counter()
        total = [sum(row[i] for row in self._rows.values()) for i in range(3)]
        tokens = max(total[2], 1.0)
        assert self._last is not None
        values = {
            "loss": total[0] / tokens,
            "nll": total[1] / tokens,
            "learning_rate": self._last.learning_rate,
            "grad_norm": _json_float(self._last.grad_norm) or 0.0,
            "tokens_per_second": total[2] / max(now - self._since, 1e-9),
            "seconds": now - self._since,
            "tasks": {
                names[k]: {"loss": row[0] / row[2], "nll": row[1] / row[2], "tokens": int(row[2])}
                for k, row in sorted(self._rows.items())
                if row[2]
            },
        }
        self._since, self._rows = now, {}
        return values


class _Interruption:
    """SIGTERM and SIGUSR1 ask for a checkpoint and an end after the present step; a second one, seconds later, ends at once
    (a launcher forwards what its process group has had already)."""

    AGAIN_SECONDS = 5.0

    def __init__(self) -> None:
        self.now, self._first = False, 0.0
        self._before: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGUSR1):
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread: the caller handles signals
                return

    def restore(self) -> None:
        """The handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.now and time.monotonic() - self._first > self.AGAIN_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.now:
            self.now, self._first = True, time.monotonic()


def _reason(flags: int) -> str:
    if flags >= _SIGNALLED:
        return "signal"
    return "minutes" if flags else ""


def _json_float(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_bad_batch(run: Path, learner: Learner, batches: list[TaskBatch]) -> None:
    """Which sentences were in the step, for this rank: RUN/bad_batches/step-N.rank-R.json."""
    directory = run / "bad_batches"
    names = learner.tasks.names
    record = [
        {
            "step": batch.step,
            "micro": batch.micro,
            "sentences": [
                {"task": names[batch.tasks[slot]], "row": row}
                for slot, row in zip(batch.sentence_task.tolist(), batch.rows.tolist(), strict=True)
            ],
        }
        for batch in batches
    ]
    path = directory / f"step-{batches[0].step + 1:06d}.rank-{learner.world.rank}.json"
    with contextlib.suppress(OSError):  # the error that this explains matters more than a full disk
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")
