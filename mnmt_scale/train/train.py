"""One training from settings to a finished run directory."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import dist, settings
from ..data.store import TokenStore
from ..engine import checkpoint
from ..engine.commit import on_first_rank
from ..errors import MnmtError
from ..evaluation.resources import check_classes
from ..groups import GroupsFile, write_groups
from ..methods.catalog import make_method
from ..methods.spec import NEED_GRADIENTS, Facts, Method, label
from ..runlog import TRAINING_MARK, RunLock, RunLog, environment, write_atomically
from ..tasks import TaskSet, directions_of
from .cluster import check_served, of_cluster
from .config import Resume, RunConfig
from .learner import Learner
from .lookahead import check_lookahead
from .loop import Progress, fit, go_on, restore
from .probe import check_probes
from .profile import parse_window


@dataclass(frozen=True)
class TrainResult:
    """How a training ended. ``stopped``: steps, patience, minutes or signal; ``best_nll``: dev nats per token."""

    run: Path
    steps: int
    tokens: int
    best_nll: float | None
    stopped: str
    rank: int

    def summary(self) -> dict[str, Any]:
        """For ``mnmt train --json`` and RUN/training.json."""
        return {
            "run": str(self.run),
            "steps": self.steps,
            "target_tokens": self.tokens,
            "best_nll": self.best_nll,
            "stopped": self.stopped,
        }


def train(
    config: RunConfig,
    run: Path,
    resume: Resume = "auto",
    profile: str | None = None,
    begin_from: Path | None = None,
) -> TrainResult:
    """Train in this process, which is one rank of however many the launcher started. The process group is left open, since
    DeepSpeed cannot be given a second one: a program that trains several models in turn keeps it, the others ``dist.leave``.

    Args:
        begin_from: a run whose newest checkpoint a fresh training goes on from: weights, moments, place in the data and step,
            but neither its method's state nor its best loss.

    Raises:
        MnmtError: among others E303 no store, E401 and E402 run directory, E403 nothing to resume, E501 not finite.
    """
    window = parse_window(profile)
    world = dist.join()
    lock = None
    try:
        lock = _lock_together(run, world.rank)
        store = TokenStore.open(settings.user_path(config.data.store))
        config, groups = of_cluster(config, store)
        tasks = resolve_tasks(config, store)
        check_served(config, tasks.names)
        check_classes(tasks.names, config.data.pivot, config.evaluation)
        config = _resolved(config, tasks)
        found = checkpoint.find(run, resume)
        origin = found or (checkpoint.find(begin_from, "required") if begin_from else None)
        _check_same(origin, store, tasks)
        learner = Learner.build(config, store, tasks, world)
        method = method_of(learner)
        check_probes(learner)
        check_lookahead(learner)
        progress = _take_up(found, origin, learner, method)
        # only now: a run that refuses these settings keeps its own
        on_first_rank(lambda: _begin_directory(config, run, store, world.size, groups, fresh=found is None), run)
        log = RunLog(
            run,
            active=world.rank == 0,
            total_steps=config.train.max_steps,
            resumed_at=learner.step if found is not None else None,
            max_seconds=60 * config.train.max_minutes if config.train.max_minutes else None,
        )
        try:
            _announce(log, learner, origin)
            progress = fit(learner, method, run, log, progress, window)
            log.say(f"stopped after step {learner.step} ({progress.stopped}), {progress.tokens:,} target tokens")
        finally:
            log.close()
            learner.close()
        best = progress.best if math.isfinite(progress.best) else None
        result = TrainResult(run, learner.step, progress.tokens, best, progress.stopped, world.rank)
        if world.rank == 0 and result.stopped != "signal":  # else the training is to go on
            write_atomically(run / TRAINING_MARK, json.dumps(result.summary()) + "\n")
        return result
    finally:
        if lock is not None:
            lock.release()


def _take_up(
    found: checkpoint.CheckpointInfo | None, origin: checkpoint.CheckpointInfo | None, learner: Learner, method: Method
) -> Progress:
    """Where the run itself had come to, or what it begins from, and the method's first shares."""
    progress = Progress()
    if found is not None:
        progress = restore(checkpoint.load(found, learner.engine), learner, method)
    elif origin is not None:
        progress = go_on(checkpoint.load(origin, learner.engine), learner)
    first = method.shares()
    if first is not None:
        learner.stream.set_shares(first)
    return progress


def method_of(learner: Learner) -> Method:
    """The method of the settings, told about this training.

    Raises:
        MnmtError: E104 when there are fewer tasks than a step is to hold; what the method itself refuses.
    """
    config, p = learner.config, learner.stream.shares
    there, asked = int((p > 0).sum()), config.sampling.tasks_per_batch
    if asked > there:
        raise MnmtError(
            "E104",
            f"sampling.tasks_per_batch = {asked}, but only {there} directions are trained",
            where=f"method '{config.method.name}'",
            remedy=f"set it to {there} or less, or to 0 for all of them",
        )
    if config.method.name == "multidds" and len(_without_dev(learner)) == len(learner.tasks):
        raise MnmtError(
            "E104",
            "no direction has dev text, which the rewards are measured on",
            where="method 'multidds'",
            remedy="give the corpora a dev split, or choose another method",
        )
    sizes = learner.store.sizes()
    facts = Facts(
        names=tuple(learner.tasks.names),
        shares=tuple(p.tolist()),
        tasks_per_batch=min(asked or there, there),
        seed=config.train.seed,
        sizes=tuple(sizes[task.pair] for task in learner.tasks),
        max_steps=config.train.max_steps,
    )
    return make_method(config.method, facts)


def _without_dev(learner: Learner) -> list[str]:
    return [task.name for task in learner.tasks if not learner.store.has(task.pair, "dev")]


def resolve_tasks(config: RunConfig, store: TokenStore) -> TaskSet:
    """The directions of this training, from the settings and the store's training pairs (E105 for unknown ones)."""
    config, _ = of_cluster(config, store)
    pairs = store.pairs("train")
    return TaskSet(directions_of(pairs, config.data.directions, config.data.pivot, config.data.tasks))


def _resolved(config: RunConfig, tasks: TaskSet) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"tasks": tasks.names})})


def _lock_together(run: Path, rank: int) -> RunLock | None:
    """Rank 0 takes the lock; if it cannot, every rank raises the same error."""
    held: list[RunLock] = []
    on_first_rank(lambda: held.append(RunLock(run)), run)
    return held[0] if rank == 0 else None


def _check_same(found: checkpoint.CheckpointInfo | None, store: TokenStore, tasks: TaskSet) -> None:
    """A checkpoint goes on with the vocabulary and the directions that it was begun with."""
    if found is None:
        return
    was = found.manifest["fingerprints"]
    if was["tokenizer"] != store.tokenizer.fingerprint:
        raise MnmtError(
            "E405",
            f"the checkpoint has vocabulary {was['tokenizer'][:12]}, the store {store.tokenizer.fingerprint[:12]}",
            where=str(found.path),
            remedy="give the store that the run was begun with, or another --run-dir",
        )
    if was["tasks"] != tasks.names:
        change = sorted(set(was["tasks"]) ^ set(tasks.names)) or ["their order"]
        raise MnmtError(
            "E405",
            f"the checkpoint was begun with other directions: {', '.join(change[:5])}",
            where=str(found.path),
            remedy="give another --run-dir and set train.init_from to this run",
        )


def _begin_directory(
    config: RunConfig, run: Path, store: TokenStore, size: int, groups: GroupsFile | None, *, fresh: bool
) -> None:
    """Settings, environment, tokenizer and the groups file into the run directory, and no mark of an end; ``fresh`` runs drop
    what an earlier one left."""
    write_atomically(run / "config.toml", settings.dump(config))
    write_atomically(run / "environment.json", json.dumps(environment(size), indent=1) + "\n")
    (run / TRAINING_MARK).unlink(missing_ok=True)
    if fresh:
        for name in ("tokenizer.model", "vocabulary.json", "groups.json"):
            (run / name).unlink(missing_ok=True)
        for name in ("bad_batches", "eval", "probes", "tensorboard", "profile"):
            shutil.rmtree(run / name, ignore_errors=True)
    store.tokenizer.save(run)
    if groups is not None:
        write_groups(run / "groups.json", groups.grouping, groups.about)


def _announce(log: RunLog, learner: Learner, found) -> None:
    plan = learner.stream.describe()
    sizes = learner.store.sizes()
    rows = [{"name": t.name, "sentences": sizes[t.pair], "share": float(learner.stream.shares[t.index])} for t in learner.tasks]
    log.record("plan", step=learner.step, **{**plan, "tasks": rows})
    engine = learner.engine
    parameters = sum(math.prod(getattr(p, "ds_shape", p.shape)) for p in engine.module.parameters())
    log.say(
        f"{len(learner.tasks)} directions, {sum(sizes[p] for p in learner.tasks.pairs):,} sentence pairs, "
        f"{parameters:,} parameters, {learner.world.size} rank(s), ZeRO-{learner.config.engine.zero_stage}, "
        f"{str(engine.dtype).removeprefix('torch.')} on {engine.device.type}"
    )
    method = learner.config.method
    if method.name == "multidds":  # one gradient at a time, beside the mean of the dev gradients
        log.say(f"method multidds; gradients of single tasks one by one, two at a time in pieces of 1/{learner.world.size}")
    elif method.name in NEED_GRADIENTS:
        log.say(f"method {label(method)}; {learner.task_gradients.describe(plan['tasks_per_batch'])}")
    elif method.name == "ftac":
        helpers = ", ".join(task.name for task in learner.tasks if task not in learner.served)
        names = ", ".join(task.name for task in learner.served)
        log.say(f"method ftac, for {names}" + (f"; helped by {helpers}" if helpers else ""))
    elif method.name != "joint":
        every = f"; one step of {method.affinity.every_steps} is of one direction" if method.name == "affinity" else ""
        log.say(f"method {label(method)}{every}")
        if method.name == "affinity" and method.affinity.estimate_every:
            log.say(f"estimates: {learner.task_gradients.describe(plan['tasks_per_batch'])}")
    if learner.config.method.name == "multidds" and _without_dev(learner):
        log.say(f"no dev text, so not in the mean of the rewards: {', '.join(_without_dev(learner))}")
    log.say("starting from step 0" if found is None else f"resumed from {found.path.name} at step {learner.step}")
    if found is not None and found.partial:
        log.say(f"incomplete and not used: {', '.join(found.partial)}")
