"""A step through every kind of layer of ``segmented_wgrad``: embedding, norm, linear and the output tied to the embedding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.reference.linear_cross_entropy import linear_cross_entropy as unfused
from .kernel_case import DTYPES, OURS, Candidate, Case, Cost, Outputs, Workload
from .kernel_data import normal

_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
_RIVALS = {"fp32": 2e-2, "bf16": 0.2}
"""torch sums the weight gradient of a layer norm in bf16 on CPU, and the Gram of long rows in fp32 without blocks."""
_EPS = 1e-5

Parameters = dict[str, Tensor]


def segmented_step_case(tasks: int, tokens: int, vocabulary_size: int, width: int, dtype: str) -> Case:
    """``logits = (W norm(table[ids])) table^T``, L_k the mean loss of task k; the gradients of sum_k L_k, and the Gram."""
    name = f"step through all layers, K={tasks}, T={tokens}, V={vocabulary_size // 1000}k, H={width}, {dtype}"
    shape = {"K": tasks, "T": tokens, "V": vocabulary_size, "H": width, "dtype": dtype}
    peak = "product fp32" if dtype == "fp32" else "product bf16"
    cost = Cost(6 * tokens * width * (vocabulary_size + width), "6 T H (V + H) FLOPs", peak)
    input_bytes = (vocabulary_size + width + 2) * width * DTYPES[dtype].itemsize

    def build(place: torch.device) -> Workload:
        step = _Step(tasks, tokens, vocabulary_size, width, dtype, place)
        candidates = [
            Candidate(OURS, lambda: step.segmented),
            Candidate("plain layers, no Gram", lambda: step.plain, _RIVALS[dtype]),
            Candidate("eager, a pass a task", lambda: step.per_task, _RIVALS[dtype]),
        ]
        return Workload(candidates, step.truth, _TOLERANCE[dtype])

    return Case("segmented_wgrad", name, shape, cost, input_bytes, build)


class _Step:
    def __init__(self, tasks: int, tokens: int, vocabulary_size: int, width: int, dtype: str, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(5)
        self.K, self.device = tasks, device
        self.ids, self.targets = (torch.randint(vocabulary_size, (tokens,), generator=generator).to(device) for _ in "ab")
        self.offsets = tuple(tokens * k // tasks for k in range(tasks + 1))
        counts = torch.tensor(self.offsets).diff()
        self.scale = (1 / counts.double()).repeat_interleave(counts).float().to(device)
        drawn = {
            "table": normal((vocabulary_size, width), device, seed=1) / width**0.5,
            "norm": 1 + normal(width, device, seed=2) / 10,
            "linear": normal((width, width), device, seed=3) / width**0.5,
        }
        self.parameters = {name: value.to(DTYPES[dtype]).requires_grad_(True) for name, value in drawn.items()}

    def segmented(self) -> Outputs:
        from ..kernels.ops.segmented_output import segmented_linear_cross_entropy
        from ..kernels.ops.segmented_wgrad import segmented_embedding, segmented_layer_norm, segmented_linear
        from ..kernels.ops.task_tape import TaskTape
        from ..kernels.segments import Segments

        s, tape, p = Segments.of(self.offsets), TaskTape(self.K), self.parameters
        x = segmented_embedding(self.ids, p["table"], s, tape, "table")
        x = segmented_layer_norm(x, p["norm"], None, _EPS, s, tape, "norm")
        x = segmented_linear(x, p["linear"], None, s, tape, "linear")
        total, *_ = segmented_linear_cross_entropy(
            x, p["table"], self.targets, self.scale, s, tape, "output", embedding_ids=self.ids, name="table"
        )
        return self._gradients(total, p) | {"gram": tape.gram}

    def plain(self) -> Outputs:
        from ..kernels.ops.linear_cross_entropy import linear_cross_entropy

        total = self._total(linear_cross_entropy, self.parameters, slice(None), self.offsets)
        return self._gradients(total, self.parameters)

    def per_task(self) -> Outputs:
        from ..kernels.ops.linear_cross_entropy import linear_cross_entropy

        return self._by_task(linear_cross_entropy, self.parameters)

    def truth(self) -> Outputs:
        wide = {name: value.detach().double().requires_grad_(True) for name, value in self.parameters.items()}
        return self._by_task(unfused, wide)

    def _by_task(self, loss: Callable, parameters: Parameters) -> Outputs:
        rows = []
        for a, b in pairwise(self.offsets):
            found = self._gradients(self._total(loss, parameters, slice(a, b), (0, b - a)), parameters)
            rows.append(torch.cat([g.reshape(-1) for g in found.values()]))
        jacobian = torch.stack(rows)
        parts = jacobian.sum(dim=0).split([p.numel() for p in parameters.values()])
        return {f"d_{name}": part for name, part in zip(parameters, parts)} | {"gram": jacobian @ jacobian.T}

    def _total(self, loss: Callable, p: Parameters, rows: slice, segments: tuple[int, ...]) -> Tensor:
        x = F.layer_norm(F.embedding(self.ids[rows], p["table"]), p["norm"].shape, p["norm"], None, _EPS)
        x = F.linear(x, p["linear"])
        return loss(
            x, p["table"], self.targets[rows], self.scale[rows].to(torch.promote_types(x.dtype, torch.float32)), segments
        )[0]

    def _gradients(self, total: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        found = torch.autograd.grad(total, list(parameters.values()))
        return {f"d_{name}": gradient for name, gradient in zip(parameters, found)}
