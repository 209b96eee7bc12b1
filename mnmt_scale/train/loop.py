"""THE loop: asks the method, moves the learner, writes the log. Nothing holds the loop, nothing calls back into it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..engine import checkpoint
from ..engine.faults import fault
from ..errors import MnmtError
from ..flow import TaskBatch
from ..methods.spec import Method, label, state_name
from ..runlog import RunLog
from .interruption import Interruption
from .learner import Learner
from .lookahead import hold
from .meter import Meter, json_float
from .observe import log_method, observe
from .probe import probe_training, write_measured
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
    meter, interrupted, profiler = Meter(), Interruption(), ProfileWindow(window, run, learner.world.rank)
    deadline = time.monotonic() + 60 * config.train.max_minutes if config.train.max_minutes else math.inf
    if config.train.patience and progress.worse >= config.train.patience:
        progress.stopped = "patience"  # the run that is resumed here had come to its end
    try:
        _steps(learner, method, run, log, progress, meter, interrupted, profiler, deadline)
    finally:
        profiler.finish()
        interrupted.restore()
    progress.stopped = progress.stopped or "steps"
    if progress.stopped != "signal":
        write_measured(learner, method.measured(learner.step, last=True), log, run, tokens=progress.tokens)
    return progress


def _steps(
    learner: Learner,
    method: Method,
    run: Path,
    log: RunLog,
    progress: Progress,
    meter: Meter,
    interrupted: Interruption,
    profiler: ProfileWindow,
    deadline: float,
) -> None:
    config, observed = learner.config, False
    while learner.step < config.train.max_steps and not progress.stopped:
        fault("train.before_step", step=learner.step, rank=learner.world.rank)
        profiler.before(learner.step + 1)
        batches = learner.stream.next()
        scales = method.scales(batches[0])
        request = method.wants(learner.step)
        flag = _TIME_UP * (time.monotonic() > deadline) + _SIGNALLED * interrupted.now
        try:
            held = hold(learner, request.lookahead, batches) if request and request.lookahead else None
            weigh = partial(method.weigh, batch=batches[0])
            report, flags, gram = learner.update(batches, scales, flag, gram=request.gram if request else "", weigh=weigh)
        except MnmtError as error:
            if error.code == "E501":
                _write_bad_batch(run, learner, batches)
            raise
        profiler.after(report.step)
        if report.skipped or (gram is not None and gram.bad):
            _write_bad_batch(run, learner, batches)
        if report.skipped:
            log.record("event", step=report.step, text="update skipped: loss or gradient not finite")
            log.say(f"step {report.step}: loss or gradient not finite, update skipped")
        if request:
            observed |= observe(learner, method, request, report, gram, log, held)
        progress.tokens += 0 if report.skipped else sum(report.tokens)
        meter.add(report)
        progress.stopped = _reason(flags)
        last = bool(progress.stopped) or learner.step == config.train.max_steps
        if last or learner.step % config.train.log_steps == 0:
            _log_step(log, learner, meter, progress)
            if observed:
                log_method(learner, method, log, label(config.method))
            observed = False
        began, saved = time.perf_counter(), False
        if progress.stopped != "signal":
            _probe(learner, method, log, run, progress)
        # a signal leaves seconds, not minutes: then the state is saved and nothing else is done
        if progress.stopped != "signal" and (last or learner.step % config.train.validate_steps == 0):
            saved = _validate(learner, method, run, log, progress, last=last)
        if not saved and (last or progress.stopped or learner.step % config.engine.checkpoint.every_steps == 0):
            save(learner, method, run, log, progress, metric=None, final=last)
        meter.leave_out(time.perf_counter() - began)


def _probe(learner: Learner, method: Method, log: RunLog, run: Path, progress: Progress) -> None:
    """The probes that are due after this step. Collective."""
    settings = learner.config.probe
    for kind, every in (("gradients", settings.gradients_every), ("curvature", settings.curvature_every)):
        if every and learner.step % every == 0:
            probe_training(learner, learner.task_gradients, kind, log, run, tokens=progress.tokens)
    if learner.step < learner.config.train.max_steps:  # then ``fit`` writes it
        write_measured(learner, method.measured(learner.step, last=False), log, run, tokens=progress.tokens)


def save(
    learner: Learner, method: Method, run: Path, log: RunLog, progress: Progress, *, metric: float | None, final: bool
) -> bool:
    """Write a checkpoint of the present step with everything that a resumed run needs; False when that failed and training
    goes on without. After a ``final`` one nothing goes on: its failure is an error whatever ``on_save_error`` says."""
    start = time.perf_counter()
    state = {
        "learner": learner.state(),
        "method": {"name": state_name(learner.config.method), "state": method.state_dict()},
        "progress": {"best": json_float(progress.best), "worse": progress.worse, "tokens": progress.tokens},
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
    _restore_method(state["method"], learner, method)
    kept = state["progress"]
    best = math.inf if kept["best"] is None else float(kept["best"])
    return Progress(best=best, worse=kept["worse"], tokens=kept["tokens"])


def go_on(state: dict[str, Any], learner: Learner) -> Progress:
    """Put what another training's checkpoint says of the data back, and nothing that its method or its validations know."""
    learner.load_state(state["learner"])
    return Progress(tokens=state["progress"]["tokens"])


def _restore_method(saved: dict[str, Any], learner: Learner, method: Method) -> None:
    """E405 naming both where the checkpoint is of another method."""
    then, now = saved.get("name", "joint"), state_name(learner.config.method)
    if then != now:
        what = f"method {then} in the checkpoint and {now} in this run"
        remedy = (
            "resume with the method that the run was begun with, or give another --run-dir and set train.init_from to this run"
        )
        raise MnmtError("E405", what, where="method", remedy=remedy)
    method.load_state_dict(saved.get("state", {}))


def _validate(learner: Learner, method: Method, run: Path, log: RunLog, progress: Progress, *, last: bool) -> bool:
    """Dev loss (token mean) of the directions that the model is for; saves when it is the best so far, or training ends here.
    True if it saved."""
    config = learner.config
    rows: dict[str, dict[str, float | None]] = {}
    total = 0.0
    start = time.perf_counter()
    learner.engine.evaluate_begin()
    for task in learner.served:
        if learner.store.has(task.pair, "dev"):
            nll, tokens = learner.validation_nll(task, config.train.validate_sentences)
            total += nll
            if tokens:
                rows[task.name] = {"nll": json_float(nll / tokens), "tokens": tokens}
    learner.engine.evaluate_end()
    if not rows:
        return False
    tokens = sum(row["tokens"] for row in rows.values())
    loss = total / tokens
    best = loss < progress.best
    before = progress.best, progress.worse
    progress.best, progress.worse = (loss, 0) if best else (progress.best, progress.worse + 1)
    seconds = time.perf_counter() - start
    log.record("valid", step=learner.step, loss=json_float(loss), best=best, tasks=rows, seconds=seconds)
    mark = "best so far" if best else f"best {progress.best:.4f}"
    log.say(f"step {learner.step}: dev nll {loss:.4f} ({mark}) over {len(rows)} of {len(learner.served)} directions")
    if config.train.patience and progress.worse >= config.train.patience:
        progress.stopped = progress.stopped or "patience"
    due = learner.step % config.engine.checkpoint.every_steps == 0
    if best or last or due or progress.stopped:
        final = last or bool(progress.stopped)
        if save(learner, method, run, log, progress, metric=json_float(loss), final=final):
            return True
        if best:  # weights that were not kept are not the best ones to compare with
            progress.best, progress.worse = before
    return False


def _log_step(log: RunLog, learner: Learner, meter: Meter, progress: Progress) -> None:
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


def _reason(flags: int) -> str:
    if flags >= _SIGNALLED:
        return "signal"
    return "minutes" if flags else ""


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
