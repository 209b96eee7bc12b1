"""Hessian-vector products of one task's mean token loss, for models in training under any ZeRO stage.

What is differentiated is the negative log-likelihood per target token of given sentences in evaluation mode: dropout off
and no label smoothing, so that the Hessian is a fixed matrix (under dropout every product would be of another one).

Two ways. ``ReplicatedHessian``: a second backward pass through the gradient, on whole fp32 weights on every rank; the ops
run as their references, since the fast kernels and torch's fused attention are differentiable once. ``DifferencedHessian``:
central differences of sharded gradients, for weights that no rank holds whole:

    Hv = (g(w + e v) - g(w - e v)) / 2e + O(e^2),    |e v| = relative_step |w|

whose rounding error falls and whose truncation error rises with e. Vectors over the parameters are cut over the ranks in
both (``Pieces``), so both can be driven by the same Lanczos and need the same memory for its basis.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...dist import all_sum, any_rank
from ...errors import MnmtError
from ...flow import TaskBatch
from ...kernels.backend import forced
from .lanczos import Product, local_inner


@dataclass(frozen=True, slots=True)
class Span:
    """This rank's elements [start, start + length) of a flattened parameter; ``offset``: where they lie in a vector."""

    start: int
    length: int
    offset: int


class Pieces:
    """How a vector over all parameters is cut: of a parameter with n elements rank r of R holds the r-th ceil(n / R), the
    last ranks less or nothing. That is DeepSpeed's cut at ZeRO-3, so vectors and weights of a rank lie together.

    Attributes:
        spans: this rank's part of each parameter, in order; ``length``: elements of this rank; ``total``: of all.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], rank: int, size: int, device: torch.device) -> None:
        self.shapes, self.device = dict(shapes), device
        self.spans: dict[str, Span] = {}
        self.length = self.total = 0
        for name, shape in self.shapes.items():
            n = shape.numel()
            share = -(-n // size)
            start = min(rank * share, n)
            self.spans[name] = Span(start, min(share, n - start), self.length)
            self.length += self.spans[name].length
            self.total += n

    def views(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, this rank's elements of that parameter) of a vector [length]."""
        for name, span in self.spans.items():
            yield name, vector.narrow(0, span.offset, span.length)

    def normal(self, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[length] of N(0, 1); a whole vector that depends on the seed alone, not on the ranks."""
        return self._drawn(seed, dtype, lambda shape, generator: torch.randn(shape, generator=generator))

    def signs(self, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[length] of +1 and -1 with equal probability; as ``normal``."""
        return self._drawn(seed, dtype, lambda shape, generator: torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0)

    def whole(self, vector: Tensor) -> dict[str, Tensor]:
        """Full parameters from the pieces of all ranks. Collective; each element is written by one rank, so it is exact."""
        flat = torch.zeros(self.total, dtype=vector.dtype, device=vector.device)
        full = self._split(flat)
        for name, view in self.views(vector):
            full[name].view(-1).narrow(0, self.spans[name].start, view.shape[0]).copy_(view)
        all_sum(flat)
        return full

    def summed(self, full: Mapping[str, Tensor]) -> Tensor:
        """[length] this rank's pieces of the sum over ranks of full tensors. Collective."""
        flat = torch.cat([full[name].reshape(-1) for name in self.shapes])
        all_sum(flat)
        whole = self._split(flat)
        return torch.cat([whole[name].view(-1).narrow(0, s.start, s.length) for name, s in self.spans.items()])

    def inner(self, rows: Sequence[Tensor], vector: Tensor) -> Tensor:
        """``lanczos.Inner`` over the pieces of all ranks. Collective."""
        return all_sum(local_inner(rows, vector))

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def _drawn(self, seed: int, dtype: torch.dtype, draw: Callable[..., Tensor]) -> Tensor:
        """Parameter by parameter, so that at most one of them exists whole."""
        out = torch.empty(self.length, dtype=dtype, device=self.device)
        for index, (name, view) in enumerate(self.views(out)):
            state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
            span = self.spans[name]
            view.copy_(draw((self.shapes[name].numel(),), generator).narrow(0, span.start, span.length))
        return out


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within the block every op of this process can be differentiated twice: the kernels' references and plain attention."""
    with forced("reference"), sdpa_kernel(SDPBackend.MATH):
        yield


def gradient_and_product(
    model: nn.Module, batches: Sequence[TaskBatch], tokens: int, direction: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Hv of the batches' summed token losses divided by ``tokens``, as full tensors by name; of this process alone.

    Args:
        model: in evaluation mode, every parameter requires a gradient.
        direction: v by name, in the shapes and dtype of the parameters.
    """
    named = dict(model.named_parameters())
    out = {name: torch.zeros_like(p) for name, p in named.items()}
    with twice_differentiable(), torch.enable_grad():
        for batch in batches:
            total = model(batch, tuple(1.0 / tokens for _ in batch.tasks)).total
            gradients = torch.autograd.grad(total, list(named.values()), create_graph=True, materialize_grads=True)
            along = torch.stack([(g * direction[n]).sum() for n, g in zip(named, gradients, strict=True)]).sum()
            parts = torch.autograd.grad(along, list(named.values()), materialize_grads=True)
            for name, part in zip(named, parts, strict=True):
                out[name] += part
    return out


class ReplicatedHessian:
    """Exact products (up to fp32 rounding) on whole weights. The sentences are dealt over the ranks and Hv is summed.

    Memory on every rank: the weights (shared with the engine at ZeRO-1 and 2 in fp32, else a copy), v, gradient and Hv,
    and the activations of two backward passes over one micro-batch.

    Args:
        model: evaluation mode, fp32 or fp64, the same on all ranks.
    """

    kind = "replicated"

    def __init__(self, model: nn.Module, rank: int, size: int) -> None:
        parameters = dict(model.named_parameters())
        assert not model.training
        device = next(iter(parameters.values())).device
        self.model = model
        self.pieces = Pieces({n: p.shape for n, p in parameters.items()}, rank, size, device)

    @classmethod
    def of_engine(cls, engine: Any) -> ReplicatedHessian:
        """Over a model beside the engine's own. Collective at ZeRO-3 and in bf16, where the fp32 weights are gathered."""
        return cls(plain_model(engine), engine.world.rank, engine.world.size)

    def of(self, batches: Sequence[TaskBatch], tokens: int) -> Product:
        """v -> Hv over this rank's ``batches``; ``tokens``: predicted ones of all ranks. Every product is collective."""
        mine = [b for b in batches if b.num_sentences]

        def product(vector: Tensor) -> Tensor:
            return self.pieces.summed(gradient_and_product(self.model, mine, tokens, self.pieces.whole(vector)))

        return product

    def close(self, *, failed: bool = False) -> None:
        """Nothing was changed."""


class DifferencedHessian:
    """Central differences of the sharded gradients of a model in training, two gradients a product.

    While this is open the weights move; ``close`` puts them back bit for bit. Costs one copy of this rank's fp32 masters.

    Args:
        gradient: (this rank's batches, scales) -> this rank's piece of each parameter's global gradient, in evaluation mode,
            cut as ``Pieces`` has it. Collective.
        relative_step: length of the step either way over the norm of all weights.

    Raises:
        MnmtError: E507 in bf16, whose gradients are too coarse to be subtracted.
    """

    kind = "differences"

    def __init__(
        self,
        engine: Any,
        gradient: Callable[[Sequence[TaskBatch], tuple[float, ...]], Mapping[str, Tensor]],
        relative_step: float,
    ) -> None:
        if engine.dtype is not torch.float32:
            raise MnmtError(
                "E507",
                f"gradients in {str(engine.dtype).removeprefix('torch.')} are too coarse for differences",
                where="probe.product",
                remedy="set probe.product = 'replicated' (whole fp32 weights on every rank) or engine.dtype = 'fp32'",
            )
        self.shards, self.gradient = engine.shards, gradient
        self.pieces = Pieces(engine.shards.shapes, engine.world.rank, engine.world.size, engine.device)
        spans = self.pieces.spans
        together = all(f.start == spans[f.name].start and f.length == spans[f.name].length for f in self.shards.fragments)
        self._apart = any_rank(not together)  # ZeRO-1 and 2 cut the concatenation of all parameters
        self._kept = [m.detach().clone() for m in self.shards.masters]
        squares = sum(float(view.double().square().sum()) for _, view in self.shards.views(self._kept))
        self.step = relative_step * float(all_sum(torch.tensor([squares], dtype=torch.float64)).sqrt())

    def of(self, batches: Sequence[TaskBatch], tokens: int) -> Product:
        """As ``ReplicatedHessian.of``; at ZeRO-3 every rank has equally many batches, some of them empty."""
        scales = tuple(1.0 / tokens for _ in batches[0].tasks)

        def product(vector: Tensor) -> Tensor:
            length = float(self.pieces.inner([vector], vector)[0].sqrt())
            step = self.step / length
            self._move(vector, step)
            ahead = self._flat(self.gradient(batches, scales))
            self._move(vector, -step)
            behind = self._flat(self.gradient(batches, scales))
            return ahead.sub_(behind).div_(2 * step)

        return product

    def close(self, *, failed: bool = False) -> None:
        """The weights as they were. Collective unless ``failed``, when other ranks may be elsewhere."""
        with torch.no_grad():
            for master, kept in zip(self.shards.masters, self._kept, strict=True):
                master.copy_(kept)
        if not failed:
            self.shards.refresh()

    @torch.no_grad()
    def _move(self, vector: Tensor, step: float) -> None:
        """Weights + step * vector, from the kept ones. Collective."""
        for master, kept in zip(self.shards.masters, self._kept, strict=True):
            master.copy_(kept)
        whole = self.pieces.whole(vector) if self._apart else {}
        own = dict(self.pieces.views(vector))
        for f, view in self.shards.views(self.shards.masters):
            part = whole[f.name].view(-1).narrow(0, f.start, f.length) if self._apart else own[f.name]
            view.add_(part.to(view.device), alpha=step)
        self.shards.refresh()

    def _flat(self, gradient: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([gradient[name] for name in self.pieces.shapes])


def plain_model(engine: Any) -> nn.Module:
    """The engine's model without DeepSpeed: evaluation mode, fp32, dropout-free twice differentiable when run within
    ``twice_differentiable``. Shares the weights where they lie whole in fp32, else holds a copy of the masters. Collective."""
    module, shapes = engine.module, engine.shards.shapes
    with torch.device("meta"):
        model = type(module)(module.config, shapes["shared.weight"][0], pad_id=module.pad_id)
    if engine.config.zero_stage < 3 and engine.dtype is torch.float32:
        weights = {name: p.detach() for name, p in module.named_parameters()}
    else:
        weights = _everywhere(engine)
    model.load_state_dict(weights, assign=True)
    model.positions = module.positions.float()
    return model.requires_grad_(True).eval()


def _everywhere(engine: Any) -> dict[str, Tensor]:
    """Full fp32 masters on every rank's device."""
    first = engine.weights()
    out = {}
    for name, shape in engine.shards.shapes.items():
        mine = first.pop(name).to(engine.device) if first else torch.zeros(shape, device=engine.device)
        out[name] = all_sum(mine)
    return out
