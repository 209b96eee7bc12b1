"""Cases over the vocabulary: ``linear_cross_entropy`` and ``linear_distillation``, forward and backward.

Every token has the same weight (1/T), so that rivals without weights per token compute the same numbers; ours are given
them all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel_case import DTYPES, OURS, Candidate, Case, Cost, Outputs, Workload
from .kernel_data import normal, readable
from .kernel_rivals import (
    LIGER,
    TORCH_COMPILE,
    compiled,
    liger_chunked,
    liger_cross_entropy,
    liger_jsd,
    torch_linear_cross_entropy,
)

LABEL_SMOOTHING = 0.1
TASKS = 4
STUDENT_SHARE = 0.5
"""Weight of the reference translation; the teachers share the rest."""
_TRUTH_TOKENS = 256
_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 3e-3}

Start = Callable[[], Callable[[], Outputs]]


def cross_entropy_case(
    tokens: int, vocabulary: int, width: int, dtype: str, *, smoothed: bool = True, compile_rival: bool = False
) -> Case:
    """Label-smoothed loss and its gradients by hidden states and output weight."""
    name = f"T={tokens}, V={readable(vocabulary)}, H={width}, {dtype}" + ("" if smoothed else ", no smoothing")
    eps = LABEL_SMOOTHING if smoothed else 0.0
    shape = {"T": tokens, "V": vocabulary, "H": width, "dtype": dtype, "label_smoothing": eps}
    shape |= _whole(tokens, vocabulary, dtype)
    cost = Cost(6 * tokens * vocabulary * width, "6 T V H FLOPs", _product_peak(dtype))
    input_bytes = (tokens + vocabulary) * width * DTYPES[dtype].itemsize

    def build(place: torch.device) -> Workload:
        return _Losses(tokens, vocabulary, width, 0, dtype, place, eps).cross_entropy(compile_rival)

    return Case("linear_cross_entropy", name, shape, cost, input_bytes, build)


def distillation_case(
    tokens: int, vocabulary: int, width: int, teachers: int, dtype: str, *, compile_rival: bool = False
) -> Case:
    """The same with C teachers of the student's width, given as hidden states and weight."""
    name = f"C={teachers}, T={tokens}, V={readable(vocabulary)}, H={width}, {dtype}"
    shape = {"C": teachers, "T": tokens, "V": vocabulary, "H": width, "dtype": dtype} | _whole(tokens, vocabulary, dtype)
    cost = Cost((6 + 2 * teachers) * tokens * vocabulary * width, "(6 + 2 C) T V H FLOPs", _product_peak(dtype))
    input_bytes = (1 + teachers) * (tokens + vocabulary) * width * DTYPES[dtype].itemsize

    def build(place: torch.device) -> Workload:
        return _Losses(tokens, vocabulary, width, teachers, dtype, place).distillation(compile_rival)

    return Case("linear_distillation", name, shape, cost, input_bytes, build)


def _whole(tokens: int, vocabulary: int, dtype: str) -> dict[str, float]:
    """What extra memory must stay below if no [T, V] tensor is to be in it."""
    return {"whole_logits_mib": tokens * vocabulary * DTYPES[dtype].itemsize / 2**20}


def _product_peak(dtype: str) -> str:
    return "product fp32" if dtype == "fp32" else "product bf16"


class _Losses:
    """Inputs of one case, and everybody's way from them to loss and gradients."""

    def __init__(
        self,
        tokens: int,
        vocabulary: int,
        width: int,
        teachers: int,
        dtype: str,
        device: torch.device,
        eps: float = LABEL_SMOOTHING,
    ) -> None:
        self.T, self.V, self.H, self.C, self.dtype, self.device = tokens, vocabulary, width, teachers, dtype, device
        self.eps = eps
        kind = DTYPES[dtype]
        self.hidden, self.weight = self._head(kind, 1)
        self.teachers = [self._head(kind, 2 + 2 * c) for c in range(teachers)]
        self.hidden.requires_grad_(True)
        self.weight.requires_grad_(True)
        generator = torch.Generator().manual_seed(0)
        self.targets = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
        self.scale = torch.full((tokens,), 1 / tokens, device=device)
        self.segments = [tokens * k // TASKS for k in range(TASKS + 1)]
        self.shares = [(1 - STUDENT_SHARE) / teachers for _ in range(teachers)]

    def _head(self, kind: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
        hidden = normal((self.T, self.H), self.device, seed=seed).to(kind)
        weight = (normal((self.V, self.H), self.device, seed=seed + 1) * (3 / self.H**0.5)).to(kind)  # logits of size 3
        return hidden, weight

    def cross_entropy(self, compile_rival: bool) -> Workload:
        whole = self.T * self.V * (DTYPES[self.dtype].itemsize + 8)

        def rival(make: Callable[[], Callable[..., Tensor]]) -> Start:
            def start() -> Callable[[], Outputs]:
                loss = make()
                return lambda: self._gradients(loss(self.hidden, self.weight, self.targets, self.eps))

            return start

        rivals = [
            Candidate("eager torch", rival(lambda: _eager_cross_entropy), needs_bytes=whole),
            Candidate("torch linear_cross_entropy, chunked", rival(lambda: torch_linear_cross_entropy(self.eps))),
            Candidate(LIGER, rival(lambda: liger_cross_entropy(self.device))),
        ]
        if compile_rival:
            start = rival(lambda: compiled(_eager_cross_entropy, self.device))
            rivals.append(Candidate(TORCH_COMPILE, start, compiles=True, needs_bytes=whole))
        return self._workload(self._our_cross_entropy, rivals)

    def distillation(self, compile_rival: bool) -> Workload:
        whole = self.T * self.V * (DTYPES[self.dtype].itemsize + 8) * (1 + min(1, self.C))

        def rival(make: Callable[[], Callable[..., Tensor]]) -> Start:
            def start() -> Callable[[], Outputs]:
                loss = make()
                heads = [x for head in self.teachers for x in head]
                return lambda: self._gradients(loss(self.hidden, self.weight, self.targets, self.shares, *heads))

            return start

        rivals = [Candidate("eager torch, unfused", rival(lambda: _eager_distillation), needs_bytes=whole)]
        if compile_rival:
            start = rival(lambda: compiled(_eager_distillation, self.device))
            rivals.append(Candidate(TORCH_COMPILE, start, compiles=True, needs_bytes=whole))
            if self.C == 1:
                rivals.append(Candidate(f"{LIGER}, chunked", self._liger_chunked, compiles=True))
        if self.C == 1:
            rivals.append(Candidate(f"{LIGER}, Triton, and its cross-entropy", self._liger_triton))
        return self._workload(self._our_distillation, rivals)

    def _workload(self, ours: Start, rivals: list[Candidate]) -> Workload:
        return Workload([Candidate(OURS, ours), *rivals], self.truth, _TOLERANCE[self.dtype])

    def _gradients(self, loss: Tensor) -> Outputs:
        d_hidden, d_weight = torch.autograd.grad(loss, (self.hidden, self.weight))
        return {"loss": loss.detach(), "d_hidden": d_hidden, "d_weight": d_weight}

    def _our_cross_entropy(self) -> Callable[[], Outputs]:
        from ..kernels.ops.linear_cross_entropy import linear_cross_entropy

        arguments: Any = (self.hidden, self.weight, self.targets, self.scale, self.segments, self.eps)
        return lambda: self._gradients(linear_cross_entropy(*arguments)[0])

    def _our_distillation(self) -> Callable[[], Outputs]:
        from ..kernels.ops.linear_distillation import HiddenTeacher, linear_distillation

        teachers = [HiddenTeacher(hidden, weight) for hidden, weight in self.teachers]
        table = [self.shares] * TASKS
        arguments: Any = (self.hidden, self.weight, self.targets, self.scale, self.segments, teachers, table, STUDENT_SHARE)
        options: Any = {"label_smoothing": self.eps}
        return lambda: self._gradients(linear_distillation(*arguments, **options).total)

    def _liger_chunked(self) -> Callable[[], Outputs]:
        """Without label smoothing, which it does not know: compared with a truth of its own."""
        loss, (t_hidden, t_weight) = liger_chunked(self.device, STUDENT_SHARE, 1 - STUDENT_SHARE), self.teachers[0]

        def call() -> Outputs:
            found = self._gradients(loss(self.hidden, self.weight, t_hidden, t_weight, self.targets))
            return {f"unsmoothed {name}": found[name] for name in ("d_hidden", "d_weight")}

        return call

    def _liger_triton(self) -> Callable[[], Outputs]:
        """Two fused losses, each with its own product for the student's logits; a KL lacks the teacher's entropy, so its
        value is another, its gradient the same."""
        kl, nll = liger_jsd(self.device), liger_cross_entropy(self.device)
        t_hidden, t_weight = self.teachers[0]

        def call() -> Outputs:
            hard = nll(self.hidden, self.weight, self.targets, self.eps)
            soft = kl(self.hidden, self.weight, t_hidden, t_weight)
            found = self._gradients(STUDENT_SHARE * hard + (1 - STUDENT_SHARE) * soft)
            return {name: found[name] for name in ("d_hidden", "d_weight")}

        return call

    @torch.no_grad()
    def truth(self) -> Outputs:
        """Loss and gradients in fp64, a few tokens at a time; also those of the loss without label smoothing."""
        student = STUDENT_SHARE if self.C else 1.0
        weight, teachers = self.weight.double(), [(h, w.double()) for h, w in self.teachers]
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        d_hidden = torch.empty(self.T, self.H, dtype=torch.float64, device=self.device)
        d_weight = torch.zeros(self.V, self.H, dtype=torch.float64, device=self.device)
        for a in range(0, self.T, _TRUTH_TOKENS):
            part = slice(a, min(a + _TRUTH_TOKENS, self.T))
            h = self.hidden[part].double()
            log_p = torch.log_softmax(h @ weight.T, dim=1)
            target = torch.full_like(log_p, student * self.eps / self.V)
            target.scatter_add_(1, self.targets[part, None], torch.full_like(h[:, :1], student * (1 - self.eps)))
            for share, (t_hidden, t_weight) in zip(self.shares, teachers, strict=True):
                target.add_(torch.softmax(t_hidden[part].double() @ t_weight.T, dim=1), alpha=share)
            loss -= (target * log_p).sum() / self.T
            dz = log_p.exp_().sub_(target).div_(self.T)
            d_hidden[part] = dz @ weight
            d_weight.addmm_(dz.T, h)
        truth = {"loss": loss, "d_hidden": d_hidden, "d_weight": d_weight}
        if self.C == 1:
            truth |= self._unsmoothed(d_hidden, d_weight, weight, student * self.eps)
        return truth

    def _unsmoothed(self, d_hidden: Tensor, d_weight: Tensor, weight: Tensor, mass: float) -> Outputs:
        """Gradients with the mass of the smoothing put on the targets: a correction of rank one, and of one row a token."""
        h, y = self.hidden.double(), self.targets
        mean_weight, sum_hidden = weight.mean(dim=0), h.sum(dim=0) / self.V
        other_hidden = d_hidden + mass / self.T * (mean_weight - weight[y])
        other_weight = (d_weight + mass / self.T * sum_hidden).index_add_(0, y, h, alpha=-mass / self.T)
        return {"unsmoothed d_hidden": other_hidden, "unsmoothed d_weight": other_weight}


def _eager_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, eps: float) -> Tensor:
    return F.cross_entropy((hidden @ weight.t()).float(), targets, label_smoothing=eps)


def _eager_distillation(hidden: Tensor, weight: Tensor, targets: Tensor, shares: list[float], *heads: Tensor) -> Tensor:
    log_p = torch.log_softmax((hidden @ weight.t()).float(), dim=1)
    nll = F.nll_loss(log_p, targets)
    loss = STUDENT_SHARE * ((1 - LABEL_SMOOTHING) * nll - LABEL_SMOOTHING * log_p.mean())
    for share, t_hidden, t_weight in zip(shares, heads[0::2], heads[1::2], strict=True):
        with torch.no_grad():
            q = torch.softmax((t_hidden @ t_weight.t()).float(), dim=1)
        loss = loss - share * (q * log_p).sum() / hidden.shape[0]
    return loss
