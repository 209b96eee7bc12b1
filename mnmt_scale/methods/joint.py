"""The baseline: one model for all directions, the loss is the mean over the step's target tokens.

Also the worked example for a new method: it needs to know nothing but the batch.
"""

from __future__ import annotations

from ..flow import TaskBatch
from .spec import Method, token_mean


class Joint(Method):
    """alpha_k = N_k / N, so that sum_k alpha_k L_k with L_k = (task sum) / N_k is the plain token mean."""

    def scales(self, batch: TaskBatch) -> tuple[float, ...]:
        """[K], all equal: 1 / N with N the predicted tokens of the whole step."""
        return token_mean(batch)
