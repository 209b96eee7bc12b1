"""Cases over parameters: ``task_gram`` and ``fisher_accumulate``, flat or cut into 300 fragments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernel_case import DTYPES, OURS, Candidate, Case, Cost, Outputs, Workload
from .kernel_data import fragment_sizes, fragments, normal, readable
from .kernel_rivals import TORCH_COMPILE, TORCHJD, compiled, torchjd_gramian

BLOCK = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Columns that a blocked product takes at a time: on CPU they fill 2 MB with K = 8 in fp32."""
SCALE = 0.25
_ROUNDED = 0.1  # rivals that sum in the gradients' own type, bf16 too; the error is in the table
_OP_BANDWIDTH = {"cpu": "read", "cuda": "copy"}


def task_gram_case(
    tasks: int, d: int, dtype: str, device: str, *, ragged: bool = False, variant: str = "", compile_rival: bool = False
) -> Case:
    """Gram matrix of K gradients. ``variant``: "" plain, "diagonal" weighted, "combination" with sum_k a_k g_k."""
    K, width = tasks, DTYPES[dtype].itemsize
    amount, formula = K * d * width, f"K d {width}"
    if variant == "diagonal":
        amount, formula = amount + 4 * d, f"(K {width} + 4) d"
    elif variant == "combination":
        amount, formula = amount + width * d, f"(K + 1) d {width}"
    cut = "300 fragments" if ragged else "flat"
    name = ", ".join([f"K={K}", f"d={readable(d)}", dtype, cut, *([variant] if variant else [])])
    shape = {"K": K, "d": d, "dtype": dtype, "cut": cut, "variant": variant or "plain"}
    cost = Cost(amount, formula + " bytes", _OP_BANDWIDTH[device])
    build = _RaggedGram if ragged else _FlatGram
    return Case(
        "task_gram", name, shape, cost, amount, lambda place: build(K, d, DTYPES[dtype], place, variant).workload(compile_rival)
    )


class _Gram:
    """What the flat and the ragged case share: our call, the truth, and how rivals put theirs together."""

    gradients: Any

    def __init__(self, tasks: int, d: int, dtype: torch.dtype, device: torch.device, variant: str) -> None:
        self.device, self.dtype, self.variant = device, dtype, variant
        self.coefficients = [0.5 + 0.1 * k for k in range(tasks)]
        self.diagonal: Any = None

    def workload(self, compile_rival: bool) -> Workload:
        candidates = [Candidate(OURS, self.ours)]
        candidates += [Candidate(name, start, _ROUNDED) for name, start in self.rivals().items()]
        if compile_rival:
            candidates.append(Candidate(TORCH_COMPILE, self.compiled, _ROUNDED, compiles=True))
        tolerance = 5e-3 if self.variant == "combination" and self.dtype != torch.float32 else 1e-5
        return Workload(candidates, self.truth, tolerance, repeatable=True)

    def ours(self) -> Callable[[], Outputs]:
        from ..kernels.ops.task_gram import task_gram, task_gram_combine

        if self.variant != "combination":
            return lambda: {"gram": task_gram(self.gradients, diagonal=self.diagonal)}

        def call() -> Outputs:
            gram, combination = task_gram_combine(self.gradients, self.coefficients)
            return {"gram": gram, "combination": combination}

        return call

    def columns(self) -> list[Sequence[Tensor]]:
        """K flat pieces for each of a few cuts of the parameters, with the diagonal's piece at the end where there is one."""
        raise NotImplementedError

    def rivals(self) -> dict[str, Callable[[], Callable[[], Outputs]]]:
        raise NotImplementedError

    def compiled(self) -> Callable[[], Outputs]:
        raise NotImplementedError

    def truth(self) -> Outputs:
        K = len(self.coefficients)
        gram = torch.zeros(K, K, dtype=torch.float64, device=self.device)
        weights = torch.tensor(self.coefficients, dtype=torch.float64, device=self.device)
        combination = []
        for pieces in self.columns():
            for parts in zip(*(p.split(1 << 20) for p in pieces), strict=True):
                block = torch.stack(parts[:K]).double()
                gram += (block * parts[K].double() if len(parts) > K else block) @ block.T
                if self.variant == "combination":
                    combination.append(weights @ block)
        return {"gram": gram} | ({"combination": torch.cat(combination)} if combination else {})


class _FlatGram(_Gram):
    """One matrix [K, d]."""

    def __init__(self, tasks: int, d: int, dtype: torch.dtype, device: torch.device, variant: str) -> None:
        super().__init__(tasks, d, dtype, device, variant)
        self.gradients = normal((tasks, d), device, dtype)
        if variant == "diagonal":
            self.diagonal = normal(d, device, seed=1).abs_()

    def columns(self) -> list[Sequence[Tensor]]:
        return [[*self.gradients, *([self.diagonal] if self.diagonal is not None else [])]]

    def rivals(self) -> dict[str, Callable[[], Callable[[], Outputs]]]:
        rivals = {"eager G @ G.T": lambda: self._eager, "blocked G @ G.T": lambda: self._blocked}
        if not self.variant:
            rivals[TORCHJD] = self._torchjd
        return rivals

    def compiled(self) -> Callable[[], Outputs]:
        call = compiled(lambda g, w: self._product(g.float(), w), self.device)
        return lambda: self._with_combination(call(self.gradients, self.diagonal))

    def _eager(self) -> Outputs:
        return self._with_combination(self._product(self.gradients, self.diagonal))

    def _blocked(self) -> Outputs:
        (K, d), width = self.gradients.shape, BLOCK[self.device.type]
        gram = torch.zeros(K, K, dtype=torch.float64, device=self.device)
        for a in range(0, d, width):
            block = self.gradients[:, a : a + width].float()
            gram += self._product(block, None if self.diagonal is None else self.diagonal[a : a + width]).double()
        return self._with_combination(gram)

    def _torchjd(self) -> Callable[[], Outputs]:
        gramian = torchjd_gramian()
        return lambda: {"gram": gramian(self.gradients)}

    @staticmethod
    def _product(g: Tensor, diagonal: Tensor | None) -> Tensor:
        return (g if diagonal is None else g * diagonal.to(g.dtype)) @ g.T

    def _with_combination(self, gram: Tensor) -> Outputs:
        if self.variant != "combination":
            return {"gram": gram}
        weights = torch.tensor(self.coefficients, dtype=self.dtype, device=self.device)
        return {"gram": gram, "combination": weights @ self.gradients}


class _RaggedGram(_Gram):
    """K lists of 300 tensors; plain only."""

    def __init__(self, tasks: int, d: int, dtype: torch.dtype, device: torch.device, variant: str) -> None:
        assert not variant, "measured flat"
        super().__init__(tasks, d, dtype, device, variant)
        self.gradients = [fragments(fragment_sizes(d), device, dtype, seed=k) for k in range(tasks)]

    def columns(self) -> list[Sequence[Tensor]]:
        return list(zip(*self.gradients, strict=True))

    def rivals(self) -> dict[str, Callable[[], Callable[[], Outputs]]]:
        return {
            "eager cat, G @ G.T": lambda: self._eager,
            "eager, per fragment": lambda: self._per_fragment,
            TORCHJD: self._torchjd,
        }

    def compiled(self) -> Callable[[], Outputs]:
        product = compiled(lambda *parts: (g := torch.stack(parts).float()) @ g.T, self.device, dynamic=True)
        return lambda: {"gram": sum(product(*parts) for parts in self.columns())}

    def _eager(self) -> Outputs:
        g = torch.stack([torch.cat(task) for task in self.gradients])
        return {"gram": g @ g.T}

    def _per_fragment(self) -> Outputs:
        K = len(self.gradients)
        gram = torch.zeros(K, K, dtype=torch.float64, device=self.device)
        for parts in self.columns():
            g = torch.stack(parts).float()
            gram += (g @ g.T).double()
        return {"gram": gram}

    def _torchjd(self) -> Callable[[], Outputs]:
        gramian = torchjd_gramian()
        jacobians = [torch.stack(parts) for parts in self.columns()]  # as its own backward pass leaves them
        return lambda: {"gram": sum(gramian(j) for j in jacobians)}


def fisher_accumulate_case(d: int, dtype: str, device: str, *, ragged: bool, compile_rival: bool = False) -> Case:
    """F += s g^2 with fp32 F."""
    width = DTYPES[dtype].itemsize
    cut = "300 fragments" if ragged else "flat"
    peak = {"cpu": "update", "cuda": "copy"}[device]
    cost = Cost(d * (width + 8), f"d ({width} + 8) bytes", peak)

    def build(place: torch.device) -> Workload:
        sizes = fragment_sizes(d) if ragged else [d]
        gradients = fragments(sizes, place, DTYPES[dtype])
        fisher = [torch.empty(n, device=place) for n in sizes]

        def reset() -> None:
            for f in fisher:
                f.fill_(0.5)

        def truth() -> Outputs:
            return {"fisher": torch.cat([0.5 + SCALE * g.double() ** 2 for g in gradients])}

        rivals = _fisher_rivals(fisher, gradients, place, compile_rival)
        return Workload([Candidate(OURS, lambda: _our_fisher(fisher, gradients)), *rivals], truth, 1e-6, True, reset)

    name = f"d={readable(d)}, {dtype}, {cut}"
    return Case("fisher_accumulate", name, {"d": d, "dtype": dtype, "cut": cut}, cost, d * (width + 4), build)


def _our_fisher(fisher: list[Tensor], gradients: list[Tensor]) -> Callable[[], Outputs]:
    from ..kernels.ops.fisher_accumulate import fisher_accumulate

    def call() -> Outputs:
        fisher_accumulate(fisher, gradients, SCALE)
        return {"fisher": fisher}

    return call


def _fisher_rivals(fisher: list[Tensor], gradients: list[Tensor], device: torch.device, compile_rival: bool) -> list[Candidate]:
    def eager() -> Outputs:
        for f, g in zip(fisher, gradients, strict=True):
            f += SCALE * g.float() ** 2
        return {"fisher": fisher}

    def foreach() -> Outputs:
        wide = [g.float() for g in gradients]
        torch._foreach_addcmul_(fisher, wide, wide, value=SCALE)
        return {"fisher": fisher}

    def start_compiled() -> Callable[[], Outputs]:
        update = compiled(lambda f, g: f.add_(SCALE * g.float() ** 2), device, dynamic=len(fisher) > 1)

        def call() -> Outputs:
            for f, g in zip(fisher, gradients, strict=True):
                update(f, g)
            return {"fisher": fisher}

        return call

    rivals = [Candidate("eager F += s g.float()**2", lambda: eager), Candidate("foreach addcmul_", lambda: foreach)]
    if compile_rival:
        rivals.append(Candidate(TORCH_COMPILE, start_compiled, compiles=True))
    return rivals
