"""When an op may be called as the Python function that it is, past torch's machinery for operators.

That machinery (dispatch, autograd's key, aliasing checks) is the larger part of a small op's time on the host. A backward pass
that measures the tasks calls three ops a layer, and on a GPU its layers end sooner than the host could launch the next.
"""

from __future__ import annotations

import torch
from torch import Tensor


def eager(x: Tensor) -> bool:
    """Whether nobody traces what happens to ``x``: it is no fake or traced tensor, and no graph is being compiled."""
    return type(x) is Tensor and not torch.compiler.is_compiling()
