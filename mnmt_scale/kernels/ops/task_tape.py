"""The record of one backward pass that measures the tasks: their Gram matrix, and how their gradients combine.

What goes backward is the *unweighted* sum of the task losses L_k. Tasks never share a token, so each layer can form its
K weight gradients from its rows alone (``segmented_wgrad``, ``segmented_output``); it hands them to the tape, which adds
their inner products to the Gram and returns ``sum_k alpha_k grad L_k``, exactly the gradient of the weighted loss. The
Gram is that of CATS (alpha = 0 included), of every method that needs only a Gram, and per group of layers at once.

A tape belongs to one backward pass and is passed to the layers as an argument, never found in a global: two engines share
a process. It covers the parameters that require a gradient, whether ``autograd.grad`` was asked for them or not.
If a multiple s of the sum goes backward (a loss scale), the Gram is s^2 times as large.

Several processes. The gradients of a task are sums over ranks, so their inner products are taken after a reduction, which
the engine provides:

``reduce(name, stacked, rows) -> kept``. ``stacked`` [K, n] are this rank's K gradients of parameter ``name``, flat; the
result [K, m] is what this rank keeps of their sum over ranks (a reduce-scatter). Over all ranks the kept pieces must make
up the n columns exactly once; m may differ by rank and may be 0. ``rows`` None: n is the whole parameter. Otherwise
``rows`` [r] are sorted rows of a table, n = r * D, and calls with the same rows must be cut the same way; it need not
be the cut of the whole table. ``reduce`` is called on every rank for every parameter, in the order of the backward pass
(the output layer's calls come in its forward pass), with zeros for tasks that have no tokens there.
``shared_ids(ids) -> ids``: the sorted union over ranks of sorted unique ids.
``diagonal(name, rows) -> w``: fp32 weights of the elements that ``reduce`` keeps.

``gram`` and ``groups`` are then this rank's share, to be summed over ranks; the combinations are of the rank's *own*
gradients and are reduced by the engine in its ordinary way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..arguments import check_like
from .task_gram import combine_made, task_gram, task_gram_combine

Reduce = Callable[[str, Tensor, Tensor | None], Tensor]
Diagonal = Callable[[str, Tensor | None], Tensor]


class TaskTape:
    """Gram and combination of K tasks' gradients over one backward pass.

    Args:
        num_tasks: K.
        alpha: K finite weights of the combination, kept in fp32; None: all 1.
        reduce, shared_ids: see above; None: one process.
        diagonal: weights w of the inner product ``sum_p w_p g_ip g_jp`` (Adam's preconditioner, say), fp32; a mapping
            from the parameter's name to a tensor of its shape, or a function, which sharded parameters need; None: 1.

    Attributes:
        groups: [K, K] fp64 Gram of each group of parameters, on the gradients' device.
    """

    def __init__(
        self,
        num_tasks: int,
        alpha: Sequence[float] | Tensor | None = None,
        *,
        reduce: Reduce | None = None,
        shared_ids: Callable[[Tensor], Tensor] | None = None,
        diagonal: Mapping[str, Tensor] | Diagonal | None = None,
    ) -> None:
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be 1 or more, but is {num_tasks}")
        alpha = [1.0] * num_tasks if alpha is None else torch.as_tensor(alpha, dtype=torch.float32).tolist()
        if len(alpha) != num_tasks:
            raise ValueError(f"alpha has {len(alpha)} weights, but num_tasks is {num_tasks}")
        for a in alpha:
            if not math.isfinite(a):
                raise ValueError(f"alpha must be finite, but holds {a}")
        if (reduce is None) != (shared_ids is None):
            raise ValueError("reduce and shared_ids go together, but only one is given")
        if reduce is not None and isinstance(diagonal, Mapping):
            raise ValueError("diagonal is a mapping, but with reduce it must be a function of what is kept")
        self.num_tasks, self.alpha = num_tasks, alpha
        self.reduce, self.shared_ids, self.diagonal = reduce, shared_ids, diagonal
        self.groups: dict[str, Tensor] = {}
        self._users: dict[int, tuple[Tensor, str]] = {}
        self._tied: dict[int, tuple[Tensor, Sequence[Tensor]]] = {}

    @property
    def gram(self) -> Tensor:
        """[K, K] fp64 ``<grad L_i, grad L_j>`` over all groups so far.

        Raises:
            ValueError: the output layer waits for an embedding whose backward pass has not run: inner products are missing.
        """
        if self._tied:
            raise ValueError(
                f"gram lacks inner products: {len(self._tied)} output layer got embedding_ids, but 0 backward passes of "
                "segmented_embedding with the same weight have run since"
            )
        if not self.groups:
            return torch.zeros(self.num_tasks, self.num_tasks, dtype=torch.float64)
        return torch.stack(list(self.groups.values())).sum(dim=0)

    def add(self, group: str, gram: Tensor) -> None:
        """Adds [K, K] to a group."""
        self.groups[group] = self.groups[group] + gram if group in self.groups else gram

    def claim(self, parameter: Tensor, name: str) -> None:
        """Notes that a gradient of ``parameter`` is about to be measured.

        Raises:
            ValueError: this pass measured one before. Its inner products with this one would be missing; to have them,
                the first use's K gradients would have to live until the last use. (The tied output layer and embedding
                are such a pair, and keep only the rows that meet.)
        """
        if id(parameter) in self._users:
            raise ValueError(
                f"{name} gets a second gradient on this tape, the first was for {self._users[id(parameter)][1]}: a tape "
                "measures one backward pass and one use of each parameter (tied: embedding_ids in the output layer)"
            )
        self._users[id(parameter)] = (parameter, name)  # the tensor too: an id is unique only while it lives

    def measure(
        self,
        gradients: Mapping[str, Tensor | Sequence[Tensor]],
        rows: Tensor | None = None,
        beside: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Gram of some parameters' gradients and their combinations.

        Args:
            gradients: name -> [K, ...] contiguous, of one dtype; with ``rows``: name -> [K, r, D], rows of a table. Without
                ``reduce`` K tensors do as well as one.
            rows: [r] which ones.
            beside: K of [m], another part of the same rows' gradients, as ``reduce`` kept it, whose own inner products
                are counted already: the Gram gets those of the sum less those of ``beside``.

        Returns:
            Gram [K, K] fp64 and ``sum_k alpha_k g_k`` for each parameter, in the gradients' dtype and shape.
        """
        stacks = list(gradients.values())
        if self.reduce is None:
            kept = [[g.flatten() for g in s] for s in stacks]
        else:
            kept = [list(self._reduced(name, s, rows)) for name, s in gradients.items()]
        weights = [self._weights(name, rows, s[0]) for name, s in zip(gradients, kept, strict=True)] if self.diagonal else None
        alpha = self.alpha
        tasks = [list(fragments) for fragments in zip(*kept, strict=True)]
        if beside is not None:
            alpha = [0.0] * self.num_tasks + alpha
            tasks = [[x] for x in beside] + tasks
        if self.reduce is None:
            gram, combined = combine_made(tasks, alpha, weights or [])
        else:  # the local gradients are combined, the reduced ones measured
            gram = task_gram(tasks, diagonal=weights)
            combined = task_gram_combine([list(own) for own in zip(*stacks, strict=True)], self.alpha)[1]
        if beside is not None:
            old, new = slice(0, self.num_tasks), slice(self.num_tasks, None)
            gram = gram[old, new] + gram[new, old] + gram[new, new]
        return gram, [c.view(s[0].shape) for c, s in zip(combined, stacks, strict=True)]

    def combine(self, group: str, gradients: Mapping[str, Tensor]) -> list[Tensor]:
        """``measure``, with the Gram added to the group."""
        gram, combined = self.measure(gradients)
        self.add(group, gram)
        return combined

    def ids_of(self, ids: Tensor) -> Tensor:
        """[r] sorted unique ids of the batch, of all ranks' parts of it."""
        unique = torch.unique(ids)
        return unique if self.shared_ids is None else self.shared_ids(unique)

    def kept_rows(self, name: str, gradients: Tensor | list[Tensor], rows: Tensor) -> list[Tensor]:
        """What this rank keeps of rows [r] of K gradients [V, D], flat. Without ``reduce`` they are a list, which is emptied on
        the way: no more than one task's rows are there twice."""
        if self.reduce is not None:
            return list(self._reduced(name, gradients[:, rows], rows))
        return [gradients.pop(0)[rows].flatten() for _ in range(self.num_tasks)]

    def tie(self, weight: Tensor, ids: Tensor, kept: Sequence[Tensor]) -> None:
        """Keeps the output layer's K gradients [m] of rows ``ids`` for the embedding that shares ``weight``."""
        self._tied[id(weight)] = (ids, kept)

    def untie(self, weight: Tensor) -> tuple[Tensor, Sequence[Tensor]] | tuple[None, None]:
        """Takes out what ``tie`` kept: ids and gradients, or None and None."""
        return self._tied.pop(id(weight), (None, None))

    def _reduced(self, name: str, stacked: Tensor, rows: Tensor | None) -> Tensor:
        kept = self.reduce(name, stacked.flatten(1), rows)
        if kept.dim() != 2 or kept.shape[0] != self.num_tasks:
            raise ValueError(f"reduce({name!r}) returned shape {list(kept.shape)}, but num_tasks is {self.num_tasks}")
        return kept

    def _weights(self, name: str, rows: Tensor | None, kept: Tensor) -> Tensor:
        if isinstance(self.diagonal, Mapping):
            if name not in self.diagonal:
                raise ValueError(f"diagonal has no entry for {name}, but for {', '.join(self.diagonal)}")
            weights = self.diagonal[name] if rows is None else self.diagonal[name][rows]
        else:
            weights = self.diagonal(name, rows)
        if weights.numel() != kept.numel():
            raise ValueError(f"diagonal of {name} has {weights.numel()} elements, but {kept.numel()} are measured")
        check_like(f"diagonal of {name}", weights, "its gradient", kept, dtype=False)
        return weights.reshape(-1).float()
