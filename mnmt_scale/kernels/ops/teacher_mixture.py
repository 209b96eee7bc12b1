"""The mixture ``sum_c w_c Q_c`` of all teachers in a chunk of tokens: all that a student's loss and gradient need of them.

Teachers are added one after another to one chunk of memory, so it does not grow with their number. A teacher's work is
done only where its weight is not 0: tokens of one language are neighbours, so those rows are a few runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from ..chunks import Workspace, logits_type, product, wide_type
from ..segments import on_device
from ..teachers import HiddenTeacher, ProbabilityTeacher, Teacher, TopKTeacher
from .vocabulary_rows import student_rows, teacher_rows

Runs = list[tuple[int, int]]
"""Rows of a chunk: ascending ranges that neither meet nor overlap."""


class TeacherMixture:
    """
    Args:
        teachers: C of them, on T tokens.
        table: [L, C] wide, on the host; row l for the tokens of language l.
        counts: [L] tokens of each language; they come in the order of the languages, n in all.
        targets: [n] int64.
        tokens: [n] which of the T tokens they are; None: all of them, in order.
        chunk_tokens: most tokens of a chunk.
        workspace: free memory whenever ``mix`` is called.
        everywhere: whether teachers of weight 0 do their work too, for their likelihoods.

    Attributes:
        weights: [n] ``sum_c w_c``.
        entropy: [n] ``sum_c w_c H(Q_c)``.
        nll: [C, n] ``-log Q_c(y)``, nan where no work was done; these two are complete after the last chunk.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        table: Tensor,
        counts: Sequence[int],
        targets: Tensor,
        tokens: Tensor | None,
        temperature: float,
        chunk_tokens: int,
        workspace: Workspace,
        everywhere: bool,
    ) -> None:
        self.teachers, self.targets, self.tokens = teachers, targets, tokens
        self.temperature, self.workspace = temperature, workspace
        self.ends = [0, *accumulate(counts)]
        self.active = [[w != 0 for w in column] for column in table.t().tolist()]
        self.idle = [[everywhere and not active for active in column] for column in self.active]
        n, device = targets.shape[0], targets.device
        repeats = on_device(counts, torch.int64, device)
        self.by_teacher = table.t().contiguous().to(device).repeat_interleave(repeats, dim=1, output_size=n)
        self.weights = self.by_teacher.sum(dim=0)
        self.entropy = torch.zeros_like(self.weights)
        self.nll = torch.full_like(self.by_teacher, float("nan"))
        rows = min(chunk_tokens, n) if any(chain.from_iterable(self.active)) else 0
        self.memory = torch.empty(rows, workspace.vocabulary_size, dtype=table.dtype, device=device)

    def mix(self, a: int, b: int) -> Tensor | None:
        """[b - a, V] mixture of tokens a..b, overwritten by the next; None where all weights are 0."""
        mixture = None
        for c, teacher in enumerate(self.teachers):
            if idle := self._runs(self.idle[c], a, b):
                rows = torch.cat([torch.arange(a + start, a + end, device=self.targets.device) for start, end in idle])
                source = distribution(teacher, self._tokens(idle, a), self.workspace)
                self.nll[c, rows] = source.nll(self.targets[rows])
            runs = self._runs(self.active[c], a, b)
            if not runs:
                continue
            first = mixture is None
            if first:
                mixture = self.memory[: b - a]
                for start, end in _gaps(runs, b - a):
                    mixture[start:end].zero_()
            source = distribution(teacher, self._tokens(runs, a), self.workspace)
            done = 0
            for start, end in runs:
                span, part = slice(a + start, a + end), slice(done, done + end - start)
                weights, targets = self.by_teacher[c, span], self.targets[span]
                nll, entropy = source.mix(part, mixture[start:end], weights, targets, self.temperature, not first)
                self.nll[c, span] = nll
                self.entropy[span].addcmul_(weights, entropy)
                done = part.stop
        return mixture

    def _runs(self, chosen: list[bool], a: int, b: int) -> Runs:
        """The rows of chunk a..b, counted from a, of the languages that are chosen."""
        runs: Runs = []
        for wanted, start, end in zip(chosen, self.ends, self.ends[1:]):
            start, end = max(start, a) - a, min(end, b) - a
            if not wanted or start >= end:
                continue
            if runs and runs[-1][1] == start:
                start = runs.pop()[0]
            runs.append((start, end))
        return runs

    def _tokens(self, runs: Runs, a: int) -> slice | Tensor:
        if self.tokens is None and len(runs) == 1:
            return slice(a + runs[0][0], a + runs[0][1])
        if self.tokens is None:
            return torch.cat([torch.arange(a + start, a + end, device=self.targets.device) for start, end in runs])
        return torch.cat([self.tokens[a + start : a + end] for start, end in runs])


def _gaps(runs: Runs, count: int) -> Runs:
    edges = [0, *chain.from_iterable(runs), count]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2]) if start < end]


def distribution(teacher: Teacher, tokens: slice | Tensor, workspace: Workspace) -> Distribution:
    """A teacher's distributions for the m given tokens, with its matrix product done; valid until the workspace is used."""
    match teacher:
        case HiddenTeacher(hidden, weight):
            h = hidden[tokens]
            logits = workspace.rows(h.shape[0], logits_type(h))
            product(h, weight.t(), logits)
            return _Logits(logits)
        case ProbabilityTeacher(probabilities):
            return _Probabilities(probabilities[tokens], workspace)
        case TopKTeacher(ids, log_probabilities, rest):
            return _TopK(ids[tokens], log_probabilities[tokens], rest[tokens], workspace.vocabulary_size)


@dataclass(frozen=True)
class _Logits:
    logits: Tensor

    def nll(self, targets: Tensor) -> Tensor:
        return student_rows(self.logits, None, targets, None, None, None, 0.0, 1.0)[:, 0]

    def mix(
        self, part: slice, mixture: Tensor, weights: Tensor, targets: Tensor, temperature: float, accumulate: bool
    ) -> tuple[Tensor, Tensor]:
        """Add ``weights * Q`` of these rows to the mixture or, without ``accumulate``, put it there: (nll, entropy) of each."""
        nll, entropy = teacher_rows(self.logits[part], mixture, weights, targets, temperature, accumulate).unbind(dim=1)
        return nll, entropy


@dataclass(frozen=True)
class _Probabilities:
    probabilities: Tensor
    workspace: Workspace

    def nll(self, targets: Tensor) -> Tensor:
        return -self.probabilities.gather(1, targets[:, None])[:, 0].to(wide_type(self.probabilities.dtype)).log()

    def mix(self, part, mixture, weights, targets, temperature, accumulate) -> tuple[Tensor, Tensor]:
        q, scratch = self.probabilities[part], self.workspace.rows(mixture.shape[0], mixture.dtype)
        if q.dtype != mixture.dtype:
            q = scratch.copy_(q)
        if accumulate:
            mixture.addcmul_(q, weights[:, None])
        else:
            torch.mul(q, weights[:, None], out=mixture)
        nll = -q.gather(1, targets[:, None])[:, 0].log()
        return nll, torch.special.entr(q, out=scratch).sum(dim=1)


@dataclass(frozen=True)
class _TopK:
    ids: Tensor
    log_probabilities: Tensor
    rest: Tensor
    vocabulary_size: int

    def nll(self, targets: Tensor) -> Tensor:
        log_p, each = self._wide(wide_type(self.rest.dtype))
        hit = self.ids == targets[:, None]
        return -torch.where(hit.any(dim=1), torch.where(hit, log_p, 0.0).sum(dim=1), each.log())

    def mix(self, part, mixture, weights, targets, temperature, accumulate) -> tuple[Tensor, Tensor]:
        rows = _TopK(self.ids[part], self.log_probabilities[part], self.rest[part], self.vocabulary_size)
        log_p, each = rows._wide(mixture.dtype)
        everywhere = (weights * each)[:, None]
        if accumulate:
            mixture.add_(everywhere)
        else:
            mixture.copy_(everywhere.expand_as(mixture))
        p = log_p.exp()
        mixture.scatter_add_(1, rows.ids, weights[:, None] * (p - each[:, None]))
        others = self.vocabulary_size - rows.ids.shape[1]
        return rows.nll(targets), torch.special.entr(p).sum(dim=1) + others * torch.special.entr(each)

    def _wide(self, wide: torch.dtype) -> tuple[Tensor, Tensor]:
        """Log-probabilities [m, k] and the probability [m] of each other id."""
        others = max(self.vocabulary_size - self.ids.shape[1], 1)
        return self.log_probabilities.to(wide), self.rest.to(wide) / others


Distribution = _Logits | _Probabilities | _TopK
