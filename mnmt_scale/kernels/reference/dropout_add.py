"""What ``dropout_add`` means: torch's dropout, then the residual connection."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dropout_add(residual: Tensor | None, x: Tensor, p: float) -> Tensor:
    """``residual + dropout(x)`` in training; ``residual`` None leaves the sum out."""
    y = F.dropout(x, p)
    return y if residual is None else residual + y
