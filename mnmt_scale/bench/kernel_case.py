"""What ``mnmt bench kernels`` measures: a case is one op at one shape, with its cost by formula and its candidates.

A case is light until it is built: shapes, bytes and FLOPs can be listed and checked without allocating anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OURS = "mnmt_scale"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Outputs = Mapping[str, Any]
"""Name -> tensor, array, number or a list of tensors (fragments); the same names as in the truth, or some of them."""


class Unavailable(Exception):
    """A candidate cannot run here; the message says why and becomes its row."""


@dataclass(frozen=True)
class Cost:
    """The least work that the op's definition allows, by ``formula``; ``peak`` (a key of ``Peaks.rates``) is what bounds it.

    ``amount`` is in bytes, or in FLOPs where the peak is a matrix product.
    """

    amount: int
    formula: str
    peak: str

    @property
    def unit(self) -> tuple[str, float]:
        return ("TFLOP/s", 1e12) if self.peak.startswith("product") else ("GB/s", 1e9)


@dataclass(frozen=True)
class Candidate:
    """One way to compute the case.

    Attributes:
        name: ``mnmt_scale`` or the rival's.
        start: makes ready (imports, its own layout of the inputs; not timed) and gives the call that is measured.
            Raises ``Unavailable`` where it cannot run.
        tolerance: largest relative error, None: the workload's; rivals that round to bf16 on the way get more.
        compiles: the first call compiles; its time is reported.
        needs_bytes: more memory than this is surely taken; asked for on CPU before it runs, where running out kills.
    """

    name: str
    start: Callable[[], Callable[[], Outputs]]
    tolerance: float | None = None
    compiles: bool = False
    needs_bytes: int = 0


@dataclass(frozen=True)
class Workload:
    """A case with its inputs in memory.

    Attributes:
        candidates: ours first.
        truth: fp64 outputs, computed once.
        tolerance: relative to the largest absolute value of each output; 0: equal.
        repeatable: ours promises the same bits on every run.
        reset: restores what candidates change in place, before each call and untimed; then outputs are not new memory.
    """

    candidates: list[Candidate]
    truth: Callable[[], Outputs]
    tolerance: float
    repeatable: bool = False
    reset: Callable[[], None] | None = None


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        op: name under which ``--ops`` selects it.
        name: the shape, for people.
        shape: the same for machines, goes into every row's settings.
        input_bytes: what ``build`` allocates, so that a case too large for the machine is a row and not a crash.
    """

    op: str
    name: str
    shape: dict[str, Any]
    cost: Cost
    input_bytes: int
    build: Callable[[torch.device], Workload] = field(repr=False)

    @property
    def title(self) -> str:
        return f"{self.op}, {self.name}"


def errors(outputs: Outputs, truth: Outputs) -> tuple[float, float]:
    """Largest absolute error, and largest error relative to the largest value of its output; NaN where an output has one."""
    assert outputs, "a candidate gave nothing to compare"
    worst_absolute = worst_relative = 0.0
    for name, value in outputs.items():
        found, right = _flat(value), _flat(truth[name])
        if found.numel() != right.numel():
            return float("inf"), float("inf")
        parts = zip(found.split(1 << 24), right.split(1 << 24), strict=True)
        gap = 0.0
        for a, b in parts:
            gap = _worse(gap, _largest(a.double() - b.to(a.device).double()))
        worst_absolute = _worse(worst_absolute, gap)
        worst_relative = _worse(worst_relative, gap / (_largest(right) or 1.0))
    return worst_absolute, worst_relative


def same_bits(a: Outputs, b: Outputs) -> bool:
    """Whether two runs gave the same, bit for bit."""
    return all(torch.equal(_flat(a[name]).view(torch.uint8), _flat(b[name]).view(torch.uint8)) for name in a)


def kept(outputs: Outputs) -> dict[str, Tensor]:
    """Copies, for outputs that the next call overwrites."""
    return {name: _flat(value).clone() for name, value in outputs.items()}


def output_bytes(outputs: Outputs) -> int:
    """Memory of the tensors among the outputs."""
    parts = [part for value in outputs.values() for part in (value if isinstance(value, list | tuple) else [value])]
    return sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, Tensor))


def _flat(value: Any) -> Tensor:
    if isinstance(value, list | tuple):
        return torch.cat([part.detach().reshape(-1) for part in value])
    return torch.as_tensor(value).detach().reshape(-1).contiguous()


def _largest(x: Tensor) -> float:
    """Largest absolute value; NaN where there is one."""
    return max(abs(float(x.max())), abs(float(x.min()))) if x.numel() else 0.0


def _worse(a: float, b: float) -> float:
    """The larger; NaN is the worst of all."""
    return b if b != b or b > a else a
