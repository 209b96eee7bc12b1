"""Cases of ``segmented_wgrad``: one linear layer, forward and backward, with the Gram of its tasks' weight gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel_case import DTYPES, OURS, Candidate, Case, Cost, Outputs, Workload
from .kernel_data import normal
from .kernel_rivals import TORCHJD, torchjd_engine

_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}


def segmented_linear_case(tasks: int, tokens: int, inputs: int, outputs: int, dtype: str) -> Case:
    """L_k = <y_k, dy_k> over the rows of task k; the gradients of x, weight and bias of sum_k L_k, and the Gram."""
    name = f"linear {inputs} -> {outputs}, K={tasks}, T={tokens}, {dtype}"
    shape = {"K": tasks, "T": tokens, "inputs": inputs, "outputs": outputs, "dtype": dtype}
    peak = "product fp32" if dtype == "fp32" else "product bf16"
    cost = Cost(6 * tokens * inputs * outputs, "6 T in out FLOPs", peak)
    input_bytes = (tokens * (inputs + outputs) + inputs * outputs) * DTYPES[dtype].itemsize

    def build(place: torch.device) -> Workload:
        return _Linear(tasks, tokens, inputs, outputs, dtype, place).workload()

    return Case("segmented_wgrad", name, shape, cost, input_bytes, build)


class _Linear:
    """One layer's input, parameters and output gradient, the rows of each task together."""

    def __init__(self, tasks: int, tokens: int, inputs: int, outputs: int, dtype: str, device: torch.device) -> None:
        kind = DTYPES[dtype]
        self.K, self.dtype, self.device = tasks, dtype, device
        self.x = normal((tokens, inputs), device, seed=1).to(kind).requires_grad_(True)
        self.weight = (normal((outputs, inputs), device, seed=2) / inputs**0.5).to(kind).requires_grad_(True)
        self.bias = normal(outputs, device, seed=3).to(kind).requires_grad_(True)
        self.dy = normal((tokens, outputs), device, seed=4).to(kind)
        self.offsets = [tokens * k // tasks for k in range(tasks + 1)]
        self.parts = [slice(a, b) for a, b in pairwise(self.offsets)]

    def workload(self) -> Workload:
        candidates = [
            Candidate(OURS, self.ours),
            Candidate("plain layer, no Gram", lambda: self.plain),
            Candidate("eager, a pass a task", lambda: self.per_task),
            Candidate(f"{TORCHJD} autogram", self.torchjd),
        ]
        return Workload(candidates, self.truth, _TOLERANCE[self.dtype])

    def ours(self) -> Callable[[], Outputs]:
        from ..kernels.ops.segmented_wgrad import segmented_linear
        from ..kernels.ops.task_tape import TaskTape
        from ..kernels.segments import Segments

        segments = Segments(tuple(self.offsets), tuple(range(self.K)))

        def call() -> Outputs:
            tape = TaskTape(self.K)
            y = segmented_linear(self.x, self.weight, self.bias, segments, tape, "layer")
            found = self._gradients(y)
            return found | {"gram": tape.gram}

        return call

    def plain(self) -> Outputs:
        return self._gradients(F.linear(self.x, self.weight, self.bias))

    def per_task(self) -> Outputs:
        flat, d_x = [], []
        for part in self.parts:
            x = self.x[part].detach().requires_grad_(True)
            y = F.linear(x, self.weight, self.bias)
            dx, dw, db = torch.autograd.grad(y, (x, self.weight, self.bias), self.dy[part])
            d_x.append(dx)
            flat.append(torch.cat((dw.reshape(-1), db)))
        jacobian = torch.stack(flat)
        total, n = jacobian.sum(dim=0), self.weight.numel()
        return {"d_x": torch.cat(d_x), "d_weight": total[:n], "d_bias": total[n:], "gram": jacobian @ jacobian.T}

    def torchjd(self) -> Callable[[], Outputs]:
        layer = torch.nn.Linear(self.x.shape[1], self.weight.shape[0])
        layer.weight, layer.bias = torch.nn.Parameter(self.weight.detach()), torch.nn.Parameter(self.bias.detach())
        engine = torchjd_engine(layer)

        def call() -> Outputs:
            y = layer(self.x)
            losses = torch.stack([(y[part] * self.dy[part]).sum() for part in self.parts])
            gram = engine.compute_gramian(losses)
            d_x, d_weight, d_bias = torch.autograd.grad(losses.sum(), (self.x, layer.weight, layer.bias))
            return {"d_x": d_x, "d_weight": d_weight, "d_bias": d_bias, "gram": gram}

        return call

    @torch.no_grad()
    def truth(self) -> Outputs:
        x, weight, dy = self.x.double(), self.weight.double(), self.dy.double()
        flat = torch.stack([torch.cat(((dy[p].T @ x[p]).reshape(-1), dy[p].sum(dim=0))) for p in self.parts])
        total, n = flat.sum(dim=0), weight.numel()
        return {"d_x": dy @ weight, "d_weight": total[:n], "d_bias": total[n:], "gram": flat @ flat.T}

    def _gradients(self, y: Tensor) -> dict[str, Tensor]:
        d_x, d_weight, d_bias = torch.autograd.grad(y, (self.x, self.weight, self.bias), self.dy)
        return {"d_x": d_x, "d_weight": d_weight, "d_bias": d_bias}
