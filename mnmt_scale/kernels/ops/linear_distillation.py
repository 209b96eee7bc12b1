"""Output projection, label-smoothed cross-entropy and distillation from any number of teachers in one op that never holds
a [T, V] matrix; its memory does not grow with the number of teachers.

Student and gradients: ``kernels.chunks``. Teachers: ``teacher_mixture``. Nothing of any weight is kept for the backward
pass. Deviation from the reference: bf16 and fp16 logits, the teachers' too, are rounded to that type on CPU (fp16 logits
beyond 65504 overflow there).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from .. import ready_gradients
from ..arguments import check_dtype, check_like, check_shape
from ..chunks import Student, Workspace, check_facts, check_student, chunk_rows, logits_type, per_task, target_facts, wide_type
from ..reference import linear_distillation as reference
from ..segments import Segments, on_device
from ..teachers import (
    DistillationLosses,
    HiddenTeacher,
    ProbabilityTeacher,
    Teacher,
    TopKTeacher,
    check_teacher,
    check_top_k,
    flattened,
    unflattened,
)
from .teacher_mixture import TeacherMixture, distribution

__all__ = [
    "DistillationLosses",
    "HiddenTeacher",
    "ProbabilityTeacher",
    "Teacher",
    "TopKTeacher",
    "linear_distillation",
    "teacher_likelihood",
]


def linear_distillation(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    segments: Sequence[int],
    teachers: Sequence[Teacher],
    teacher_weights: Tensor | Sequence[Sequence[float]],
    student_weight: Tensor | Sequence[float] | float,
    *,
    languages: Tensor | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    every_teacher_nll: bool = False,
    chunk_tokens: int | None = None,
) -> DistillationLosses:
    """Negative log-likelihood and cross-entropies with teachers, weighted by language: a token t of language l costs

        loss_t = w0[l] NLL_t + sum_c w[l, c] tau^2 CE(Q_c, softmax(z_t / tau)),    z = hidden weight^T

    with NLL label-smoothed. Saleh et al. (Hierarchical Knowledge Distillation): Eq. (3) and (4) with w0 = lambda_1 and
    w = lambda_2 alpha_c, Eq. (1) and (2) with w0 = 1 - lambda, w = lambda and 0 where the student surpassed the teacher.
    Pareto Mutual Distillation: Eq. (3) and (4) with w0 = 1 - alpha[l], w = alpha[l]. Temperature as Hinton et al. (2015).

    Args:
        hidden: [T, D].  weight: [V, D], of the same dtype.
        targets: [T] int64; ``IGNORE`` rows cost nothing and get no gradient.
        scale: [T] factor of each token's loss in ``total``; no gradient flows into it.
        segments: [K+1] offsets: tokens ``segments[k]:segments[k+1]`` belong to task k.
        teachers: C of them; no gradient flows into any.
        teacher_weights: [L, C] w. Where it is 0, that teacher's work is left out.
        student_weight: w0, [L] or one number. These two are best kept on the host: on a GPU reading them waits for it.
        languages: [T] int64, row of each token in these tables; None: row k for the tokens of task k, L = K.
        label_smoothing, temperature: eps, spread over all V; tau.
        every_teacher_nll: do the work of teachers of weight 0 too, for their likelihoods.
        chunk_tokens: rows of logits that exist at once; None: ``chunk_rows``.

    Returns:
        DistillationLosses, whose ``total`` has a graph; differentiable once.

    Raises:
        ValueError: besides those of ``linear_cross_entropy``: a teacher or table that does not fit, languages outside the
            table, ids of a teacher outside 0..V-1, rest outside [0, 1], weights that are negative or not finite, a
            temperature that is not a positive finite number.
    """
    check_student(hidden, weight, targets, scale, segments, label_smoothing, chunk_tokens)
    if not 0 < temperature < inf:
        raise ValueError(f"temperature is {temperature}, but must be positive and finite")
    for c, teacher in enumerate(teachers):
        check_teacher(f"teachers[{c}]", teacher, targets, weight.shape[0])
    table, w0, languages = _tables(teacher_weights, student_weight, languages, segments, hidden, len(teachers))
    options = (label_smoothing, temperature, every_teacher_nll)
    if ready_gradients.unfused():
        _check_values(targets, scale, weight, teachers, table, w0, languages)
        return reference.linear_distillation(hidden, weight, targets, scale, segments, teachers, table, w0, languages, *options)
    total, sums, tokens, teacher_nll, *_ = _op(
        hidden, weight, targets, scale.detach(), segments, *flattened(teachers), table, w0, languages, *options,
        chunk_tokens or chunk_rows(weight.shape[0], weight.device.type, weight.dtype), *ready_gradients.wanted(hidden, weight),
    )  # fmt: skip
    return DistillationLosses(total, *sums.unbind(), tokens, teacher_nll)


def _tables(
    teacher_weights: Tensor | Sequence[Sequence[float]],
    student_weight: Tensor | Sequence[float] | float,
    languages: Tensor | None,
    segments: Sequence[int],
    hidden: Tensor,
    num_teachers: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """[L, C] and [L] weights, fp64 on the host, and the [T] rows of the tokens in them."""
    K, T = len(segments) - 1, hidden.shape[0]
    table = torch.as_tensor(teacher_weights, dtype=torch.float64, device="cpu").detach()
    check_shape("teacher_weights", table, (K if languages is None else None, num_teachers), "tables of teachers")
    w0 = torch.as_tensor(student_weight, dtype=torch.float64, device="cpu").detach()
    w0 = w0.repeat(table.shape[0]) if w0.dim() == 0 else w0
    check_shape("student_weight", w0, (table.shape[0],), f"teacher_weights of shape {list(table.shape)}")
    if languages is None:
        languages = Segments.of(segments).task_of_rows(hidden.device)
    check_shape("languages", languages, (T,), "hidden")
    check_dtype("languages", languages, (torch.int64,))
    check_like("languages", languages, "hidden", hidden, dtype=False)
    return table, w0, languages


@torch.no_grad()
def teacher_likelihood(
    teacher: Teacher, targets: Tensor, chunk_tokens: int | None = None, *, vocabulary_size: int | None = None
) -> Tensor:
    """A teacher's likelihood of the references, for weights that depend on it: HKD's alpha_c is a softmax over teachers of
    their negative perplexities on the batch. Costs one product more, which ``linear_distillation`` then repeats.

    Args:
        targets: [T] int64, possibly ``IGNORE``.
        vocabulary_size: V; only a ``TopKTeacher`` does not know it.

    Returns:
        [T] ``-log Q(y_t)`` in nats, as ``DistillationLosses.teacher_nll`` has it: nan at ignored tokens.
    """
    check_shape("targets", targets, (None,), "teacher_likelihood")
    check_dtype("targets", targets, (torch.int64,))
    check_teacher("teacher", teacher, targets, vocabulary_size)
    match teacher:
        case HiddenTeacher(values, other):
            V = other.shape[0]
        case ProbabilityTeacher(values):
            V = values.shape[1]
        case TopKTeacher(_, values, _):
            if vocabulary_size is None:
                raise ValueError("vocabulary_size is None, but a TopKTeacher spreads its rest over V ids")
            V = vocabulary_size
    T, wide = targets.shape[0], wide_type(values.dtype)
    nll = torch.full((T,), float("nan"), dtype=wide, device=targets.device)
    tokens, _ = _by_language(targets, nll.new_zeros(()), torch.zeros_like(targets), 1, V)
    if isinstance(teacher, TopKTeacher):
        check_top_k("teacher", teacher, tokens, V)
    tokens = torch.arange(T, device=targets.device) if tokens is None else tokens
    chunk = chunk_tokens or chunk_rows(V, targets.device.type, values.dtype)
    workspace = _workspace([teacher], min(chunk, len(tokens)), V, values)
    for rows in tokens.split(chunk):
        nll[rows] = distribution(teacher, rows, workspace).nll(targets[rows])
    return nll


@torch.library.custom_op("mnmt::linear_distillation", mutates_args=())
def _op(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    segments: Sequence[int],
    teachers: Sequence[Tensor],
    kinds: Sequence[int],
    teacher_weights: Tensor,
    student_weight: Tensor,
    languages: Tensor,
    label_smoothing: float,
    temperature: float,
    every_teacher_nll: bool,
    chunk_tokens: int,
    hidden_gradient: bool,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(total, [4, K] sums in the order of DistillationLosses, [K] tokens, [T, C] teacher_nll, d_hidden, d_weight, factor of
    both)."""
    T, V, wide, device = hidden.shape[0], weight.shape[0], wide_type(hidden.dtype), hidden.device
    given = unflattened(teachers, kinds)
    tokens, counts = _check_values(targets, scale, weight, given, teacher_weights, student_weight, languages)
    h, y, s = (hidden, targets, scale) if tokens is None else (hidden[tokens], targets[tokens], scale[tokens])
    y, s, n = y.contiguous(), s.to(wide), y.shape[0]
    workspace = _workspace(given, min(chunk_tokens, n), V, hidden)
    mixture = TeacherMixture(
        given, teacher_weights.to(wide), counts, y, tokens, temperature, chunk_tokens, workspace, every_teacher_nll
    )
    repeats = on_device(counts, torch.int64, device)
    w0 = student_weight.to(device, wide).repeat_interleave(repeats, output_size=n)
    gradient_scale, factor = ready_gradients.in_range(s, hidden.dtype)
    student = Student(
        h, weight, y, gradient_scale, w0, label_smoothing, temperature, (hidden_gradient, weight_gradient), workspace
    )
    losses = torch.empty(n, 4, dtype=wide, device=device)
    for a in range(0, n, chunk_tokens):
        b = min(a + chunk_tokens, n)
        mixed = mixture.mix(a, b)
        nll, uniform, distillation = student.chunk(a, b, mixed, None if mixed is None else mixture.weights[a:b]).unbind(1)
        losses[a:b] = torch.stack((torch.lerp(nll, uniform, label_smoothing), nll, distillation, distillation), dim=1)
    losses[:, 3] = temperature**2 * mixture.entropy
    d_hidden, d_weight = student.gradients()
    teacher_nll = mixture.nll.t().contiguous()
    if tokens is not None:
        teacher_nll = teacher_nll.new_full((T, len(given)), float("nan")).index_copy_(0, tokens, teacher_nll)
        d_hidden = torch.zeros_like(hidden).index_copy_(0, tokens, d_hidden) if hidden_gradient else d_hidden
    sums, task_tokens = per_task(losses, tokens, T, segments)
    total = torch.dot(torch.addcmul(losses[:, 2], w0, losses[:, 0]), s)
    return total, sums.t().contiguous(), task_tokens, teacher_nll, d_hidden, d_weight, factor


@_op.register_fake
def _(hidden, weight, targets, scale, segments, teachers, kinds, *options):
    K, C, wide, (hidden_gradient, weight_gradient) = len(segments) - 1, len(kinds), wide_type(hidden.dtype), options[-2:]
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty(4, K, dtype=wide),
        hidden.new_empty(K, dtype=torch.int64),
        hidden.new_empty(hidden.shape[0], C, dtype=wide),
        hidden.new_empty(hidden.shape if hidden_gradient else 0),
        weight.new_empty(weight.shape if weight_gradient else 0),
        hidden.new_empty((), dtype=wide),
    )


_op.register_autograd(ready_gradients.hand_out, setup_context=lambda ctx, inputs, output: ready_gradients.save(ctx, output))


def _workspace(teachers: Sequence[Teacher], rows: int, vocabulary_size: int, hidden: Tensor) -> Workspace:
    """Room for the logits of the student and of each teacher in turn, and for what is not logits in wide rows."""
    types = [logits_type(t.hidden) if isinstance(t, HiddenTeacher) else wide_type(hidden.dtype) for t in teachers]
    return Workspace(rows, vocabulary_size, [logits_type(hidden), *types], hidden.device)


def _check_values(
    targets: Tensor,
    scale: Tensor,
    weight: Tensor,
    teachers: Sequence[Teacher],
    teacher_weights: Tensor,
    student_weight: Tensor,
    languages: Tensor,
) -> tuple[Tensor | None, list[int]]:
    """What ``_by_language`` returns, with every value checked."""
    for name, table in (("teacher_weights", teacher_weights), ("student_weight", student_weight)):
        good = (table >= 0) & (table < inf)
        if not bool(good.all()):
            raise ValueError(f"{name} holds {table[~good][0].item()}, but weights must be finite and not negative")
    tokens, counts = _by_language(targets, scale, languages, teacher_weights.shape[0], weight.shape[0])
    for c, teacher in enumerate(teachers):
        if isinstance(teacher, TopKTeacher):
            check_top_k(f"teachers[{c}]", teacher, tokens, weight.shape[0])
    return tokens, counts


def _by_language(
    targets: Tensor, scale: Tensor, languages: Tensor, num_languages: int, vocabulary_size: int
) -> tuple[Tensor | None, list[int]]:
    """[n] tokens that are not ignored, sorted by language (None where that is all tokens as they come), and how many of
    them each language has. Sorted, a teacher's tokens are a few runs, and its products large."""
    if targets.shape[0] == 0:
        return None, [0] * num_languages
    kept, facts = target_facts(targets, scale)
    key = torch.where(kept, languages, num_languages)  # ignored tokens at the end
    counts = key.new_zeros(num_languages + 1).scatter_add_(0, key.clamp(0, num_languages), torch.ones_like(key))
    bounds = torch.stack((*torch.aminmax(torch.where(kept, languages, 0)), (key[1:] >= key[:-1]).all().long()))
    host = torch.cat((facts, bounds, counts)).tolist()  # the only wait for a GPU
    count, (least, greatest, in_order) = check_facts(host[:4], scale, vocabulary_size), host[4:7]
    if least < 0 or greatest >= num_languages:
        bad = least if least < 0 else greatest
        raise ValueError(f"languages holds {bad}, but teacher_weights has L = {num_languages} rows")
    unchanged = in_order and count == targets.shape[0]
    return None if unchanged else key.argsort(stable=True)[:count], host[7:-1]
