"""What ``linear_distillation`` means: the whole [T, V] matrices of student and teachers in plain torch, nothing fused.

With z = hidden weight^T and temperature tau, a token t of language l costs

    loss_t = w0[l] NLL_t + sum_c w[l, c] tau^2 sum_v Q_c(v) (-log softmax(z_t / tau)_v)

where NLL_t is the label-smoothed negative log-likelihood of ``linear_cross_entropy``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...flow import IGNORE
from ..teachers import DistillationLosses, HiddenTeacher, ProbabilityTeacher, Teacher, TopKTeacher
from .linear_cross_entropy import per_task, token_losses


def linear_distillation(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    segments: Sequence[int],
    teachers: Sequence[Teacher],
    teacher_weights: Tensor,
    student_weight: Tensor,
    languages: Tensor,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    every_teacher_nll: bool = False,
) -> DistillationLosses:
    """Weighted sum of the student's likelihood and its cross-entropies with C teachers.

    Args:
        hidden: [T, D].  weight: [V, D].  targets, scale, segments: as in ``linear_cross_entropy``.
        teacher_weights: [L, C].  student_weight: [L].  languages: [T] int64, row of each token in these.
        every_teacher_nll: also where the weight is 0.
    """
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    kept = targets != IGNORE
    languages = torch.where(kept, languages, 0)
    w0, w = student_weight.to(hidden.device, wide)[languages], teacher_weights.to(hidden.device, wide)[languages]
    logits = hidden.masked_fill(~kept[:, None], 0).to(wide) @ weight.to(wide).t()  # an ignored row may hold anything
    smoothed, nll = token_losses(logits, targets, label_smoothing)
    log_p = torch.log_softmax(logits / temperature, dim=1)
    distillation, entropy, teacher_nll = torch.zeros_like(w0), torch.zeros_like(w0), w.new_full(w.shape, float("nan"))
    for c, teacher in enumerate(teachers):
        q, nll_c = _distribution(teacher, targets.clamp(min=0), weight.shape[0], temperature, wide)
        used = kept & (w[:, c] != 0)
        factor = w[:, c] * temperature**2
        q = q.masked_fill(~used[:, None], 0)
        distillation = distillation + torch.where(used, factor * -(q * log_p).sum(dim=1), 0.0)
        entropy = entropy + torch.where(used, factor * torch.special.entr(q).sum(dim=1), 0.0)
        teacher_nll[:, c] = torch.where(kept if every_teacher_nll else used, nll_c, float("nan"))
    return DistillationLosses(
        total=((w0 * smoothed + distillation) * scale.detach()).sum(),
        sums=per_task(smoothed, segments),
        nlls=per_task(nll, segments),
        distillation=per_task(distillation, segments),
        entropy=per_task(entropy, segments),
        tokens=per_task(kept, segments),
        teacher_nll=teacher_nll,
    )


def _distribution(
    teacher: Teacher, labels: Tensor, vocabulary_size: int, temperature: float, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """[T, V] probabilities of a teacher, and [T] ``-log`` of the label's at temperature 1."""
    match teacher:
        case HiddenTeacher(hidden, weight):
            logits = hidden.detach().to(wide) @ weight.detach().to(wide).t()
            return torch.softmax(logits / temperature, dim=1), F.cross_entropy(logits, labels, reduction="none")
        case ProbabilityTeacher(probabilities):
            q = probabilities.detach().to(wide)
        case TopKTeacher(ids, log_probabilities, rest):
            each = rest.detach().to(wide) / max(vocabulary_size - ids.shape[1], 1)
            q = each[:, None].repeat(1, vocabulary_size).scatter(1, ids, log_probabilities.detach().to(wide).exp())
    return q, -q.gather(1, labels[:, None])[:, 0].log()
