"""Adam's preconditioner in the cut of the gradients, read from wherever ZeRO keeps the second moments.

``w = 1 / (sqrt(v / (1 - beta2^t)) + eps)``, what Adam multiplies a gradient by (beside the learning rate), so that
``sum_p w_p g_ip g_jp`` is how far a step along one task's gradient moves the loss of another. All 1 before the first update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import OptimizerConfig
from .gradient_cut import GradientCut
from .shards import Fragment, Shards


class AdamWeights:
    """The weights as they are now: they change with each update.

    Args:
        shards: where the moments are; ZeRO-1 and 2 cut the concatenation of all parameters, not each of them, so a
            parameter's weights are put together by the same reduce-scatter as its gradient.
    """

    def __init__(self, shards: Shards, config: OptimizerConfig, cut: GradientCut) -> None:
        self._shapes, self._cut, self._eps = shards.shapes, cut, config.epsilon
        states = shards.optimizer_state()
        self._moments: dict[str, list[tuple[Fragment, Tensor]]] = {}
        self._correction = 1.0
        self._started = all("exp_avg_sq" in state for state in states)
        if self._started:
            self._correction = 1.0 - config.beta2 ** max(1.0, float(states[0]["step"]))
            for fragment, view in shards.views([state["exp_avg_sq"] for state in states]):
                self._moments.setdefault(fragment.name, []).append((fragment, view))

    def __call__(self, name: str, rows: Tensor | None = None) -> Tensor:
        """[m] fp32 weights of the piece that this rank keeps of parameter ``name``, or of these rows of it. Collective."""
        shape = self._shapes[name]
        elements = shape.numel() if rows is None else rows.shape[0] * shape[1]
        a, b = self._cut.span(elements)
        if not self._started:
            return torch.ones(b - a, device=self._cut.device)
        weights = torch.zeros(shape.numel(), device=self._cut.device)
        for fragment, v in self._moments.get(name, ()):
            corrected = (v.to(weights.device) / self._correction).sqrt_().add_(self._eps)
            weights.narrow(0, fragment.start, fragment.length).copy_(corrected.reciprocal_())
        if rows is not None:
            weights = weights.view(shape)[rows].reshape(-1)
        return self._cut.sums(weights[None])[0]  # each element is of one rank, the others add zero: exact
