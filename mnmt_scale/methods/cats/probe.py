"""Measures gradients and curvature of all directions at the present weights of a model in training (CATS, Fig. 2, 3, 5).

Both are of the mean token NLL of fixed sentences of each direction, in evaluation mode. All of it is collective, in the
same order on all ranks: directions one after another, every product in step; what is decided on the way (when Lanczos
stops) follows from numbers that are summed over ranks. Nothing of the training moves: see ``untouched``.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.packing import pack_batch
from ...data.stream import evaluation_batches
from ...dist import World
from ...errors import MnmtError, nearest
from ...flow import TaskBatch
from ...tasks import Task
from .hessian import DifferencedHessian, ReplicatedHessian
from .lanczos import hutchinson, lanczos
from .probe_config import ProbeConfig
from .similarity import cosine, magnitude, with_sum

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """The sentences of one direction: this rank's micro-batches, as many on every rank, and the predicted tokens of all."""

    task: Task
    batches: list[TaskBatch]
    tokens: int


def chosen(tasks: Sequence[Task], config: ProbeConfig, has: Callable[[Task], bool]) -> list[Task]:
    """The directions to measure: those of the settings, else all that have the split.

    Args:
        has: whether a direction has sentences of ``config.split``.

    Raises:
        MnmtError: E105 for a direction that is not trained, or named but without the split, or when none has it.
    """
    by_name = {task.name: task for task in tasks}
    for name in config.directions:
        if name not in by_name:
            raise MnmtError(
                "E105", f"direction {name!r} is not trained", where="probe.directions", remedy=nearest(name, by_name)
            )
        if not has(by_name[name]):
            raise MnmtError("E105", f"{name} has no {config.split} sentences", where="probe.directions", remedy="leave it out")
    found = [t for t in tasks if (t.name in config.directions if config.directions else has(t))]
    if not found:
        raise MnmtError("E105", f"no direction has {config.split} sentences", where="probe.split", remedy="set it to 'train'")
    return found


def take(store: Any, task: Task, config: ProbeConfig, world: World, *, max_tokens: int, bucketed: bool) -> Sample:
    """The first ``config.sentences`` sentences of a direction, dealt over the ranks; ranks that get less hold empty batches,
    since under ZeRO-3 all must run the model equally often."""

    def cut(batch_tokens: int) -> list[TaskBatch]:
        return list(
            evaluation_batches(
                store,
                task,
                config.split,
                max_tokens=max_tokens,
                batch_tokens=batch_tokens,
                limit=config.sentences,
                bucketed=bucketed,
            )
        )

    whole = cut(config.batch_tokens)
    tokens = sum(batch.step_tokens[0] for batch in whole)
    longer = sum(max(b.source_ids.shape[0], b.target_out.shape[0]) for b in whole)
    batches = cut(min(config.batch_tokens, -(-longer // world.size))) if world.size > 1 else whole
    empty = pack_batch([], [], [], [task], store.tokenizer, bucketed=bucketed)
    batches += [empty] * (-len(batches) % world.size)
    mine = [replace(b, step_tokens=(tokens,)).to(world.device) for b in batches[world.rank :: world.size]]
    return Sample(task, mine, tokens)


@torch.no_grad()
def measure_gradients(task_gradients: Any, samples: Sequence[Sample], config: ProbeConfig, say: Say) -> dict[str, Tensor]:
    """Gram matrices of the directions' gradients by group of parameters, ``all`` last: [N, N] fp64 on the host.

    The sharded gradients of all N directions are kept until the end: 4 P N / R bytes on each of R ranks for P parameters,
    on the device or, with ``config.host_memory``, in host memory.

    Args:
        task_gradients: an ``engine.task_grads.TaskGradients``.
    """
    kept = []
    for number, sample in enumerate(samples, 1):
        began = time.perf_counter()
        gradient = task_gradients.gradient(sample.batches, (1.0 / sample.tokens,), eval=True)
        kept.append({name: piece.cpu() for name, piece in gradient.items()} if config.host_memory else gradient)
        say(_progress("gradient", sample, number, len(samples), began))
    return with_sum(task_gradients.inner(kept))


def gradient_tensors(groups: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a probe file holds of Gram matrices: ``gram``, ``cosine`` and ``magnitude`` [groups, N, N]."""
    gram = torch.stack(list(groups.values()))
    return {"gram": gram, "cosine": cosine(gram), "magnitude": magnitude(gram)}


def measure_curvature(
    engine: Any, task_gradients: Any, samples: Sequence[Sample], config: ProbeConfig, say: Say
) -> tuple[dict[str, Tensor], str]:
    """The ends of the Hessian's spectrum, and its trace, for each direction.

    Args:
        task_gradients: as for ``measure_gradients``; used for differences alone.

    Returns:
        ``largest``, ``smallest``, ``top``, ``trace``, ``trace_error``, ``residual`` [N] fp64 (nan where a product was not
        finite, and the trace where no samples are drawn), and the product that was used.

    Raises:
        MnmtError: E507 for differences in bf16.
    """
    hessian = make_hessian(engine, task_gradients, config)
    rows = []
    failed = True
    try:
        for number, sample in enumerate(samples, 1):
            began = time.perf_counter()
            rows.append(_spectrum(hessian, sample, config))
            about = f"top {rows[-1][2]:.4g}, {rows[-1][6]} products to a residual of {rows[-1][5]:.1g}"
            say(_progress("curvature", sample, number, len(samples), began, about))
        failed = False
    finally:
        hessian.close(failed=failed)
    columns = torch.tensor([row[:6] for row in rows], dtype=torch.float64).t().contiguous()
    names = ("largest", "smallest", "top", "trace", "trace_error", "residual")
    return dict(zip(names, columns, strict=True)), hessian.kind


def make_hessian(engine: Any, task_gradients: Any, config: ProbeConfig) -> ReplicatedHessian | DifferencedHessian:
    """The kind of product that the settings ask for, or that suits the stage. Collective."""
    kind = config.product
    if kind == "auto":
        kind = "differences" if engine.config.zero_stage == 3 else "replicated"
    if kind == "replicated":
        return ReplicatedHessian.of_engine(engine)

    def gradient(batches: Sequence[TaskBatch], scales: tuple[float, ...]) -> dict[str, Tensor]:
        return task_gradients.gradient(batches, scales, eval=True)

    return DifferencedHessian(engine, gradient, config.difference_step)


def _spectrum(hessian: ReplicatedHessian | DifferencedHessian, sample: Sample, config: ProbeConfig) -> tuple[float, ...]:
    """(largest, smallest, top, trace, trace_error, residual, products)."""
    pieces = hessian.pieces
    product = hessian.of(sample.batches, sample.tokens)
    found = lanczos(
        product,
        pieces.normal(config.seed),
        steps=config.lanczos_steps,
        dimension=pieces.total,
        tolerance=config.lanczos_tolerance,
        inner=pieces.inner,
    )
    value = error = float("nan")
    if config.hutchinson_samples:
        trace = hutchinson(product, lambda i: pieces.signs(config.seed + 1 + i), config.hutchinson_samples, inner=pieces.inner)
        value, error = trace.value, trace.error
    return found.largest, found.smallest, found.top, value, error, found.residual, found.steps


@contextlib.contextmanager
def untouched(engine: Any) -> Iterator[None]:
    """Training goes on after the block as if it had not been: random generators (torch's on host and device, numpy's,
    Python's) and the module's mode are put back. Weights, moments and gradients are left alone by what is measured here."""
    training, device = engine.module.training, engine.device
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        engine.module.train(training)
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)


def _progress(what: str, sample: Sample, number: int, count: int, began: float, more: str = "") -> str:
    seconds = time.perf_counter() - began
    text = f"{what} of {sample.task.name} ({number} of {count}): {sample.tokens:,} target tokens, {seconds:.1f} s"
    return f"{text}, {more}" if more else text
