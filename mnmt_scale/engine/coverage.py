"""Whether one backward pass can measure all parameters of a model: each must be used through a measured layer alone."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from ..flow import TaskBatch
from ..kernels.ops.task_tape import TaskTape


def uncovered(module: nn.Module, device: torch.device) -> str | None:
    """What keeps ``module`` from being measured in one backward pass, naming the first parameter; None: nothing does.

    A pass over a batch without sentences tells: the graph of its loss says how often each parameter is used, a tape how
    often through a measured layer. Under ZeRO-3 this is collective.
    """
    if not hasattr(module, "measured_parameters"):
        return "the model takes no tape"
    declared = module.measured_parameters()
    named = dict(module.named_parameters())
    for name in named:
        if name not in declared:
            return f"parameter {name} is not in a measured layer"
    tape = _CountingTape(1)
    with torch.enable_grad():
        total = module(_no_sentences(device), (0.0,), tape).total
    uses = _uses(total)
    torch.autograd.grad(total, table_weights(module))
    for name, p in named.items():
        measured = tape.measured[id(p)] + tape.joined[id(p)]
        if tape.measured[id(p)] != 1 or measured != uses[id(p)]:
            return f"parameter {name} is used {uses[id(p)]} times, but measured {measured} times"
    return None


def table_weights(module: nn.Module) -> list[nn.Parameter]:
    """The embeddings' weights: every other layer lies on the way from the loss to them, so that asking ``autograd.grad`` for
    their gradients alone runs the backward pass of all layers, without the hooks on the other parameters."""
    weights = {id(m.weight): m.weight for m in module.modules() if isinstance(m, nn.Embedding)}
    assert weights, "a model without an embedding"
    return list(weights.values())


class _CountingTape(TaskTape):
    """Counts the uses of parameters instead of refusing a second one.

    Attributes:
        measured: by id of the parameter, how often a layer measured it.
        joined: how often the embedding found what the output layer had left for it.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.measured: Counter[int] = Counter()
        self.joined: Counter[int] = Counter()

    def claim(self, parameter: Tensor, name: str) -> None:
        self.measured[id(parameter)] += 1

    def untie(self, weight: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        kept = super().untie(weight)
        self.joined[id(weight)] += kept[0] is not None
        return kept


def _uses(total: Tensor) -> Counter[int]:
    """How many operations of the graph of ``total`` read each leaf, by its id."""
    uses: Counter[int] = Counter()
    waiting, seen = [total.grad_fn], {total.grad_fn}
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if hasattr(node, "variable"):
                uses[id(node.variable)] += 1
            elif node is not None and node not in seen:
                seen.add(node)
                waiting.append(node)
    return uses


def _no_sentences(device: torch.device) -> TaskBatch:
    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    return TaskBatch(
        step=0,
        micro=0,
        tasks=(0,),
        source_ids=empty(0),
        target_in=empty(0),
        target_out=empty(0),
        source_offsets=empty(1, dtype=torch.int32),
        target_offsets=empty(1, dtype=torch.int32),
        source_segments=(0, 0),
        target_segments=(0, 0),
        sentence_task=empty(0),
        rows=empty(0),
        step_tokens=(0,),
        max_source=0,
        max_target=0,
    )
