"""Where ZeRO keeps the fp32 weights: one view of DeepSpeed's three layouts.

Every rank owns flat fp32 *master* partitions. A ``Fragment`` says which elements of which parameter lie where in them.
ZeRO-1 and 2 cut the concatenation of all parameters at rank borders, ZeRO-3 cuts every parameter; both pad. Written in
fragments, the state of any (stage, rank count) can be read by any other, and padding is never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn

_BUCKET_ELEMENTS = 1 << 25


@dataclass(frozen=True, slots=True)
class Fragment:
    """Elements [start, start + length) of the flattened parameter ``name`` lie at ``offset`` of partition ``group``."""

    name: str
    start: int
    length: int
    group: int
    offset: int


class Shards:
    """This rank's share of the weights.

    Attributes:
        masters: flat fp32 partitions, one per group; live tensors, what the optimizer updates.
        fragments: what lies in them, padding left out.
        shapes: full shape of every parameter, in the order of ``named_parameters``.
    """

    def __init__(self, optimizer: Any, named: dict[str, nn.Parameter], shapes: dict[str, torch.Size]) -> None:
        self.shapes = shapes
        self._optimizer = optimizer
        kind = type(optimizer).__name__
        self._partitioned = kind == "DeepSpeedZeroOptimizer_Stage3"
        names = {id(p): n for n, p in named.items()}
        if self._partitioned:
            self.masters: list[Tensor] = list(optimizer.fp32_partitioned_groups_flat)
            self.fragments = list(_partitioned_fragments(optimizer, names))
        else:
            bf16 = kind == "BF16_Optimizer"
            masters = optimizer.fp32_groups_flat_partition if bf16 else optimizer.single_partition_of_fp32_groups
            self.masters = list(masters)
            groups = optimizer.bf16_groups if bf16 else optimizer.bit16_groups
            self.fragments = list(_mapped_fragments(groups, names))

    def views(self, flats: list[Tensor]) -> Iterator[tuple[Fragment, Tensor]]:
        """Each fragment with its slice of ``flats`` (laid out like ``masters``)."""
        for f in self.fragments:
            yield f, flats[f.group].detach().narrow(0, f.offset, f.length)

    def optimizer_state(self) -> list[dict[str, Any]]:
        """The torch optimizer's live state of each partition; empty dictionaries before the first update."""
        state = self._optimizer.optimizer.state
        return [state.get(m, {}) for m in self.masters]

    def set_optimizer_state(self, group: int, state: dict[str, Any]) -> None:
        """Replaces the torch optimizer's state of one partition."""
        self._optimizer.optimizer.state[self.masters[group]] = state

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes the weights that the model computes with equal to the masters. Collective."""
        opt = self._optimizer
        if not self._partitioned:
            opt.update_lp_params()
            return
        opt._partition_all_parameters()
        for i in range(len(self.masters)):
            opt._reassign_or_swap_out_partitioned_parameters(i)
        if opt.persistent_parameters:
            opt.persistent_parameters[0].all_gather(opt.persistent_parameters)

    @torch.no_grad()
    def set_from_full(self, full: dict[str, Tensor]) -> None:
        """Writes this rank's part of full fp32 parameters into the masters; call ``refresh`` afterwards."""
        for f, view in self.views(self.masters):
            view.copy_(full[f.name].reshape(-1).narrow(0, f.start, f.length))

    @torch.no_grad()
    def gather(self, flats: list[Tensor]) -> dict[str, Tensor]:
        """Full fp32 parameters on the host of rank 0, ``{}`` elsewhere. Collective; works through buckets of 128 MiB
        (or the largest parameter), so no rank holds more than that beside what it keeps."""
        device = flats[0].device if td.get_backend() != "nccl" else torch.device("cuda", torch.cuda.current_device())
        mine: dict[str, list[tuple[Fragment, Tensor]]] = {}
        for f, view in self.views(flats):
            mine.setdefault(f.name, []).append((f, view))
        first = td.get_rank() == 0
        out: dict[str, Tensor] = {}
        for bucket in _buckets(self.shapes):
            total = torch.zeros(sum(self.shapes[n].numel() for n in bucket), device=device)
            begins, begin = {}, 0
            for name in bucket:
                begins[name] = begin
                for f, view in mine.get(name, ()):
                    total.narrow(0, begin + f.start, f.length).copy_(view)
                begin += self.shapes[name].numel()
            if td.get_world_size() > 1:
                td.reduce(total, dst=0)  # each element is written by one rank, the others add zero: exact
            if first:
                for name in bucket:
                    part = total.narrow(0, begins[name], self.shapes[name].numel())
                    out[name] = part.view(self.shapes[name]).cpu().clone()
        return out


def _mapped_fragments(groups: list[list[nn.Parameter]], names: dict[int, str]) -> Iterator[Fragment]:
    for group, parameters in enumerate(groups):
        for p in parameters:
            mapping = p._hp_mapping
            if mapping is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Fragment(names[id(p)], here.start, here.numel, group, there.start)


def _partitioned_fragments(optimizer: Any, names: dict[int, str]) -> Iterator[Fragment]:
    rank = td.get_rank()
    for group, parameters in enumerate(optimizer.fp16_groups):
        offset = 0
        for p in parameters:
            share = p.partition_numel()
            start = rank * share
            length = min(share, p.ds_numel - start)
            if length > 0:
                yield Fragment(names[id(p)], start, length, group, offset)
            offset += share


def _buckets(shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    bucket: list[str] = []
    elements = 0
    for name, shape in shapes.items():
        if bucket and elements + shape.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(name)
        elements += shape.numel()
    if bucket:
        yield bucket
