"""Wrong arguments of ``linear_distillation``: each is named, with both values."""

import contextlib

import pytest
import torch

from mnmt_scale.kernels import backend
from mnmt_scale.kernels.ops import linear_distillation as ops

T, D, V = 6, 4, 9
NAN, INF = float("nan"), float("inf")


def arguments():
    q = torch.softmax(torch.randn(T, V), dim=1)
    best = q.topk(3, dim=1)
    given = [
        ops.HiddenTeacher(torch.randn(T, 2), torch.randn(V, 2)),
        ops.ProbabilityTeacher(q),
        ops.TopKTeacher(best.indices, best.values.log(), 1 - best.values.sum(dim=1)),
    ]
    return dict(
        hidden=torch.randn(T, D, requires_grad=True), weight=torch.randn(V, D), targets=torch.arange(T), scale=torch.ones(T),
        segments=(0, 2, T), teachers=given, teacher_weights=[[0.1, 0.2, 0.3], [0.4, 0.0, 0.6]], student_weight=1.0,
    )  # fmt: skip


def teacher(position, **changes):
    def change(values):
        old = values["teachers"][position]
        values["teachers"][position] = type(old)(**{**vars(old), **changes})

    return change


def but(**changes):
    return lambda values: values.update(changes)


WRONG = {
    "student": (but(targets=torch.full((T,), 9)), "targets holds 9, but weight has V = 9 rows"),
    "scale": (but(scale=torch.full((T,), INF)), "scale holds inf"),
    "no teacher": (but(teachers=[1, 2, 3]), r"teachers\[0\] is a int, but must be one of HiddenTeacher"),
    "tokens": (teacher(0, hidden=torch.zeros(5, 2)), r"teachers\[0\].hidden has shape \[5, 2\].*\[6, \*\]"),
    "width": (teacher(0, weight=torch.zeros(V, 3)), r"teachers\[0\].weight has shape \[9, 3\].*\[9, 2\]"),
    "vocabulary": (teacher(0, weight=torch.zeros(8, 2)), r"teachers\[0\].weight has shape \[8, 2\].*\[9, 2\]"),
    "dtype": (teacher(0, weight=torch.zeros(V, 2).half()), r"teachers\[0\].weight is torch.float16.*torch.float32"),
    "device": (teacher(1, probabilities=torch.zeros(T, V, device="meta")), r"teachers\[1\].*is on meta.*targets is on cpu"),
    "probabilities": (teacher(1, probabilities=torch.zeros(T, 8)), r"teachers\[1\].probabilities has shape \[6, 8\]"),
    "ids": (teacher(2, ids=torch.full((T, 3), 9)), r"teachers\[2\].ids holds 9, but weight has V = 9 rows"),
    "id": (teacher(2, ids=torch.full((T, 3), -1)), r"teachers\[2\].ids holds -1, but weight has V = 9 rows"),
    "ids' type": (teacher(2, ids=torch.zeros(T, 3, dtype=torch.int32)), r"teachers\[2\].ids is torch.int32"),
    "k": (teacher(2, log_probabilities=torch.zeros(T, 2)), r"teachers\[2\].log_probabilities has shape \[6, 2\].*\[6, 3\]"),
    "rest": (teacher(2, rest=torch.full((T,), 1.5)), r"teachers\[2\].rest holds 1.5"),
    "negative rest": (teacher(2, rest=torch.full((T,), -0.5)), r"teachers\[2\].rest holds -0.5"),
    "rest nan": (teacher(2, rest=torch.full((T,), NAN)), r"teachers\[2\].rest holds nan"),
    "columns": (but(teacher_weights=[[0.1, 0.2]] * 2), r"teacher_weights has shape \[2, 2\].*\[2, 3\]"),
    "table's rows": (but(teacher_weights=[[0.1] * 3] * 3), r"teacher_weights has shape \[3, 3\].*\[2, 3\]"),
    "negative": (but(teacher_weights=[[0.1, -0.2, 0.3]] * 2), "teacher_weights holds -0.2"),
    "infinite": (but(teacher_weights=[[0.1, INF, 0.3]] * 2), "teacher_weights holds inf"),
    "student's": (but(student_weight=NAN), "student_weight holds nan"),
    "student's rows": (but(student_weight=[1.0] * 3), r"student_weight has shape \[3\].*\[2\]"),
    "languages": (but(languages=torch.full((T,), 2)), "languages holds 2, but teacher_weights has L = 2 rows"),
    "language": (but(languages=torch.full((T,), -1)), "languages holds -1, but teacher_weights has L = 2 rows"),
    "languages' shape": (but(languages=torch.zeros(5, dtype=torch.int64)), r"languages has shape \[5\].*\[6\]"),
    "languages' type": (but(languages=torch.zeros(T)), "languages is torch.float32"),
    "temperature 0": (but(temperature=0.0), "temperature is 0.0"),
    "temperature inf": (but(temperature=INF), "temperature is inf"),
    "temperature nan": (but(temperature=NAN), "temperature is nan"),
}


@pytest.mark.parametrize("kind", [None, "reference"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong, kind):
    values, (change, message) = arguments(), WRONG[wrong]
    ops.linear_distillation(**values)
    change(values)
    with backend.forced(kind) if kind else contextlib.nullcontext(), pytest.raises(ValueError, match=message):
        ops.linear_distillation(**values)


def test_wrong_arguments_of_a_likelihood():
    _, _, top_k = arguments()["teachers"]
    targets = torch.arange(T)
    with pytest.raises(ValueError, match="vocabulary_size is None"):
        ops.teacher_likelihood(top_k, targets)
    with pytest.raises(ValueError, match=r"teacher.ids holds . ids per token|teacher.ids holds ., but weight has V = 5"):
        ops.teacher_likelihood(ops.TopKTeacher(top_k.ids * 0 + 8, top_k.log_probabilities, top_k.rest), targets.clamp(max=4),
                               vocabulary_size=5)  # fmt: skip
    with pytest.raises(ValueError, match=r"teacher.ids has shape \[6, 3\].*\[5, \*\]"):
        ops.teacher_likelihood(top_k, targets[:5], vocabulary_size=V)
    with pytest.raises(ValueError, match="targets holds 6, but weight has V = 6 rows"):
        ops.teacher_likelihood(top_k, targets + 1, vocabulary_size=6)
