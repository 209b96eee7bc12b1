"""A small encoder-decoder whose layers are plain or segmented, and the truth about its tasks by one backward pass each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mnmt_scale.flow import IGNORE
from mnmt_scale.kernels.ops.segmented_output import segmented_linear_cross_entropy
from mnmt_scale.kernels.ops.segmented_wgrad import segmented_embedding, segmented_layer_norm, segmented_linear
from mnmt_scale.kernels.segments import Segments

V, D, FFN = 37, 8, 12


def make_parameters(dtype=torch.float64, seed=0) -> dict[str, Tensor]:
    """Leaves, reproducible; the narrow types hold rounded values of the wide ones."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"shared.weight": (V, D), "encoder.weight": (FFN, D), "encoder.bias": (FFN,), "norm.weight": (FFN,),
              "norm.bias": (FFN,), "memory.weight": (D, FFN), "decoder.weight": (D, D), "decoder.bias": (D,),
              "last.weight": (D,), "last.bias": (D,)}  # fmt: skip
    return {
        name: (torch.randn(shape, generator=g, dtype=torch.float64) * 0.5 + (name in ("norm.weight", "last.weight")))
        .to(dtype)
        .requires_grad_()
        for name, shape in shapes.items()
    }


class Batch:
    """Per task ``source`` and ``target`` token counts; ids repeat within and across tasks."""

    def __init__(self, source: list[int], target: list[int], seed=0, ignored=0.2) -> None:
        g = torch.Generator().manual_seed(seed)
        self.source, self.target = source, target
        self.ids = torch.randint(V // 2, (sum(source) + sum(target),), generator=g)  # half of the rows stay without E_k
        self.targets = torch.randint(V, (sum(target),), generator=g)
        self.targets[torch.rand(sum(target), generator=g) < ignored] = IGNORE
        self.source_segments, self.target_segments = (
            Segments.of([sum(n[:k]) for k in range(len(n) + 1)]) for n in (source, target)
        )
        counts = [max(1, int((y != IGNORE).sum())) for y in self.targets.split(target)]
        self.scale = torch.tensor([1 / n for n in counts], dtype=torch.float64).repeat_interleave(torch.tensor(target))

    @property
    def num_tasks(self) -> int:
        return len(self.source)


class Plain:
    """torch's layers."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.p = parameters

    def linear(self, x, name, segments):
        return F.linear(x, self.p[f"{name}.weight"], self.p.get(f"{name}.bias"))

    def norm(self, x, name, segments):
        return F.layer_norm(x, x.shape[1:], self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def embed(self, ids, name, segments):
        return F.embedding(ids, self.p[f"{name}.weight"])


class Segmented(Plain):
    """The layers under test; ``groups`` maps a layer's name to its group."""

    def __init__(self, parameters: dict[str, Tensor], tape, groups=None) -> None:
        super().__init__(parameters)
        self.tape, self.groups = tape, groups or {}

    def _to(self, name):
        return self.tape, self.groups.get(name, name), name

    def linear(self, x, name, segments):
        return segmented_linear(x, self.p[f"{name}.weight"], self.p.get(f"{name}.bias"), segments, *self._to(name))

    def norm(self, x, name, segments):
        return segmented_layer_norm(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"], 1e-5, segments, *self._to(name))

    def embed(self, ids, name, segments):
        return segmented_embedding(ids, self.p[f"{name}.weight"], segments, *self._to(name))


def hidden_states(layers: Plain, batch: Batch, dropout=0.0) -> Tensor:
    """[sum(target), D] decoder states; a target token sees all source tokens of its task."""
    s, t = batch.source_segments, batch.target_segments
    source, target = layers.embed(batch.ids, "shared", Segments.joined(s, t)).split((s.rows, t.rows))
    x = torch.relu(layers.norm(layers.linear(source, "encoder", s), "norm", s))
    x = layers.linear(F.dropout(x, dropout), "memory", s)
    seen = [part.sum(dim=0, keepdim=True) / max(1, len(part)) for part in x.split(batch.source)]
    target = target + torch.cat([m.expand(n, -1) for m, n in zip(seen, batch.target, strict=True)])
    return layers.norm(torch.tanh(layers.linear(target, "decoder", t)), "last", t)


def plain_losses(parameters, batch: Batch, eps=0.1, dropout=0.0) -> list[Tensor]:
    """The L_k, each with a graph."""
    logits = hidden_states(Plain(parameters), batch, dropout) @ parameters["shared.weight"].t()
    losses = F.cross_entropy(logits, batch.targets, label_smoothing=eps, ignore_index=IGNORE, reduction="none")
    return [part.sum() for part in (losses * batch.scale.to(losses.dtype)).split(batch.target)]


def truth(parameters, batch: Batch, eps=0.1, dropout=0.0) -> dict[str, Tensor]:
    """name -> [K, ...] gradients of the L_k in the parameters' dtype, by one ``autograd.grad`` a task."""
    losses = plain_losses(parameters, batch, eps, dropout)
    rows = [torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True) for loss in losses]
    zeros = [torch.zeros_like(p) for p in parameters.values()]
    per_task = [[z if g is None else g for g, z in zip(row, zeros, strict=True)] for row in rows]
    return {name: torch.stack(g) for name, g in zip(parameters, zip(*per_task, strict=True), strict=True)}


def gram_of(gradients: dict[str, Tensor], names=None, diagonal=None) -> Tensor:
    """[K, K] fp64 over the named parameters (all)."""
    total = 0
    for name in names or gradients:
        g = gradients[name].double().flatten(1)
        total = total + (g if diagonal is None else g * diagonal[name].double().flatten()) @ g.t()
    return total


def segmented_loss(hidden, weight, batch: Batch, tape, eps=0.1, group="output", name=None, tied=True) -> Tensor:
    """The total that goes backward, from the output layer under test."""
    ids = batch.ids if tied else None
    of_batch = (batch.targets, batch.scale, batch.target_segments)
    return segmented_linear_cross_entropy(hidden, weight, *of_batch, tape, group, eps, embedding_ids=ids, name=name)[0]


def segmented_pass(parameters, batch: Batch, tape, eps=0.1, dropout=0.0, groups=None) -> dict[str, Tensor]:
    """One backward pass with the layers under test; the parameters' gradients."""
    layers = Segmented(parameters, tape, groups)
    hidden = hidden_states(layers, batch, dropout)
    total = segmented_loss(
        hidden, parameters["shared.weight"], batch, tape, eps, layers.groups.get("output", "output"), "shared"
    )
    return dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
