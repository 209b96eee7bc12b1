"""Teachers of ``linear_distillation`` and its result: the records that the op and its reference share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .arguments import FLOATS, check_dtype, check_like, check_shape

_FLOATS = (*FLOATS, torch.float64)


@dataclass(frozen=True, eq=False)
class HiddenTeacher:
    """A teacher given by its last layer: ``Q = softmax(hidden weight^T / temperature)``, made chunk by chunk.

    Attributes:
        hidden: [T, H], of any width H; no gradient flows into it.
        weight: [V, H], of the same dtype; may be the student's own weight.
    """

    hidden: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class ProbabilityTeacher:
    """A teacher given by its probabilities, taken as they are at any temperature: whoever made them chose it.

    Attributes:
        probabilities: [T, V], each row >= 0 with sum 1 (not checked).
    """

    probabilities: Tensor


@dataclass(frozen=True, eq=False)
class TopKTeacher:
    """A teacher given by its k best ids, taken as they are at any temperature: whoever made them chose it.

    Attributes:
        ids: [T, k] int64, distinct within a row (not checked).
        log_probabilities: [T, k].
        rest: [T] probability of all other ids together, spread evenly over the V - k of them.
    """

    ids: Tensor
    log_probabilities: Tensor
    rest: Tensor


Teacher = HiddenTeacher | ProbabilityTeacher | TopKTeacher
KINDS = (HiddenTeacher, ProbabilityTeacher, TopKTeacher)


@dataclass(frozen=True, eq=False)
class DistillationLosses:
    """What ``linear_distillation`` returns; only ``total`` has a graph. fp32, fp64 for fp64 input.

    Attributes:
        total: ``sum_t scale_t loss_t``.
        sums, nlls: [K] per task, sums of the smoothed and of the plain negative log-likelihoods, without any weight:
            those of ``linear_cross_entropy``, so that runs with and without teachers compare.
        distillation: [K] sums of ``temperature^2 sum_c w[t, c] CE(Q_c, softmax(z / temperature))``, as in ``loss_t``.
        entropy: [K] sums of ``temperature^2 sum_c w[t, c] H(Q_c)``: what ``distillation`` cannot fall below; their
            difference is the weighted Kullback-Leibler divergence.
        tokens: [K] int64, tokens that are not ignored.
        teacher_nll: [T, C] ``-log Q_c(y_t)`` in nats; at temperature 1 for a ``HiddenTeacher``. nan at ignored tokens and
            where a weight of 0 let the teacher's work be skipped.
    """

    total: Tensor
    sums: Tensor
    nlls: Tensor
    distillation: Tensor
    entropy: Tensor
    tokens: Tensor
    teacher_nll: Tensor


def flattened(teachers: Sequence[Teacher]) -> tuple[list[Tensor], list[int]]:
    """The teachers' tensors, detached, one after another, and the kind of each: an op takes no nested lists."""
    tensors = [getattr(teacher, f.name).detach() for teacher in teachers for f in fields(teacher)]
    return tensors, [KINDS.index(type(teacher)) for teacher in teachers]


def unflattened(tensors: Sequence[Tensor], kinds: Sequence[int]) -> list[Teacher]:
    """The teachers that ``flattened`` took apart."""
    remaining = iter(tensors)
    return [KINDS[kind](*(next(remaining) for _ in fields(KINDS[kind]))) for kind in kinds]


def check_teacher(name: str, teacher: Teacher, targets: Tensor, vocabulary_size: int | None) -> None:
    """Shapes, dtypes and devices fit T targets and, if known, V ids.

    Raises:
        ValueError: names the tensor and both values.
    """
    T, V, where = targets.shape[0], vocabulary_size, "a teacher of the T targets and the V rows of weight"
    match teacher:
        case HiddenTeacher(hidden, weight):
            check_shape(f"{name}.hidden", hidden, (T, None), where)
            check_dtype(f"{name}.hidden", hidden, _FLOATS)
            check_shape(f"{name}.weight", weight, (V, hidden.shape[1]), where)
            check_like(f"{name}.weight", weight, f"{name}.hidden", hidden)
        case ProbabilityTeacher(probabilities):
            check_shape(f"{name}.probabilities", probabilities, (T, V), where)
            check_dtype(f"{name}.probabilities", probabilities, _FLOATS)
        case TopKTeacher(ids, log_probabilities, rest):
            check_shape(f"{name}.ids", ids, (T, None), where)
            check_dtype(f"{name}.ids", ids, (torch.int64,))
            if V is not None and ids.shape[1] > V:
                raise ValueError(f"{name}.ids holds {ids.shape[1]} ids per token, but weight has V = {V} rows")
            check_shape(f"{name}.log_probabilities", log_probabilities, tuple(ids.shape), f"{name}.ids")
            check_dtype(f"{name}.log_probabilities", log_probabilities, _FLOATS)
            check_like(f"{name}.log_probabilities", log_probabilities, f"{name}.ids", ids, dtype=False)
            check_shape(f"{name}.rest", rest, (T,), where)
            check_like(f"{name}.rest", rest, f"{name}.log_probabilities", log_probabilities)
        case _:
            kinds = ", ".join(kind.__name__ for kind in KINDS)
            raise ValueError(f"{name} is a {type(teacher).__name__}, but must be one of {kinds}")
    check_like(f"{name}.{fields(teacher)[0].name}", getattr(teacher, fields(teacher)[0].name), "targets", targets, dtype=False)


def check_top_k(name: str, teacher: TopKTeacher, rows: Tensor | None, vocabulary_size: int) -> None:
    """Ids and rest of the given tokens (None: of all) lie in their ranges; on a GPU this waits for the device."""
    ids, rest = (teacher.ids, teacher.rest) if rows is None else (teacher.ids[rows], teacher.rest[rows])
    if ids.numel():
        low, high = torch.stack(torch.aminmax(ids)).tolist()
        if low < 0 or high >= vocabulary_size:
            raise ValueError(f"{name}.ids holds {low if low < 0 else high}, but weight has V = {vocabulary_size} rows")
    if rest.numel():
        low, high = torch.stack(torch.aminmax(rest)).tolist()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name}.rest holds {low if not low >= 0 else high}, but a probability lies in 0..1")
    log_p = teacher.log_probabilities if rows is None else teacher.log_probabilities[rows]
    if log_p.numel():
        high = log_p.amax().item()
        if not high <= 1e-2:  # narrow types round beyond 0
            raise ValueError(f"{name}.log_probabilities holds {high}, but a logarithm of a probability is at most 0")
