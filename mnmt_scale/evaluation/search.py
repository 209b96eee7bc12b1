"""Beam search and greedy search: bookkeeping over scores alone; no model, no text.

Shape legend: B sentences, G beam, V vocabulary, T generated tokens (the forced language tag included).

The semantics are those of Hugging Face ``generate`` (transformers 5, ``num_beams=G``, ``forced_bos_token_id=tag``): at
every step the 2G best continuations of a sentence are looked at; those of the first G that end in ``</s>`` become
finished hypotheses with score ``log-probability / length^length_penalty``, and the first G that do not end go on.
``length`` counts all generated tokens: the tag, the words and ``</s>``. A sentence is done when it has G finished
hypotheses and, unless ``early_stopping``, the best running one could not beat the worst of them if it ended now; or at
its length limit, where hypotheses count as they are. Sentences do not depend on each other, so those that are done can
leave the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MnmtError

BLOCK = 64
"""Columns whose maximum is taken first when the best of a row are sought; log-probabilities are padded to a multiple."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished translation. ``tokens``: without tag and ``</s>``. ``score``: as it was ranked, nan for greedy."""

    tokens: list[int]
    score: float


def best_continuations(log_probs: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best continuations of each sentence, best first.

    Looks at blocks of columns first: the ``count`` best entries lie in the ``count`` blocks with the highest maxima, so
    the full rows are read once, for their maxima, and never copied or sorted.

    Args:
        log_probs: [B, g, V] of the next token, -inf where forbidden.
        scores: [B, g] log-probability of each running hypothesis.
        count: how many; filled up with -inf where there are fewer.

    Returns:
        Scores, parents (0..g-1) and tokens, each [B, count].
    """
    size, running, width = log_probs.shape
    flat = log_probs.reshape(size, running * width)
    if width % BLOCK or running * width <= 4 * count * BLOCK:
        sums = (log_probs + scores[:, :, None]).reshape(size, -1)
        best, index = sums.topk(min(count, running * width), dim=1)
    else:
        per_row = width // BLOCK
        maxima = log_probs.unflatten(2, (per_row, BLOCK)).amax(3) + scores[:, :, None]
        block = maxima.flatten(1).topk(count, dim=1).indices
        columns = block[:, :, None] * BLOCK + torch.arange(BLOCK, device=flat.device)
        inside = flat.gather(1, columns.flatten(1)).view(size, count, BLOCK)
        inside = inside + scores.gather(1, block // per_row)[:, :, None]
        best, within = inside.flatten(1).topk(count, dim=1)
        index = columns.flatten(1).gather(1, within)
    if best.shape[1] < count:
        missing = count - best.shape[1]
        best = torch.cat([best, best.new_full((size, missing), -math.inf)], 1)
        index = torch.cat([index, index.new_zeros(size, missing)], 1)
    return best, index // width, index % width


class BeamSearch:
    """The running and the finished hypotheses of one batch.

    Args:
        limits: [B] most tokens that may be generated, tag included.
        beam: G, 2 or more.
        eos: id of ``</s>``.
        length_penalty: exponent of the length.
        early_stopping: done as soon as G hypotheses are finished.
    """

    def __init__(self, limits: Tensor, beam: int, *, eos: int, length_penalty: float, early_stopping: bool = False):
        device, size = limits.device, limits.shape[0]
        self.beam, self.eos = beam, eos
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.limits = limits
        self.length = 1  # the tag
        self.scores = torch.zeros(size, 1, device=device)
        self.tokens = torch.zeros(size, beam, 0, dtype=torch.long, device=device)
        self.finished = torch.full((size, beam), -math.inf, device=device)
        self.best_tokens = torch.zeros(size, 0, dtype=torch.long, device=device)
        self.best_length = torch.zeros(size, dtype=torch.long, device=device)
        self.done = torch.zeros(size, dtype=torch.bool, device=device)
        self.failed = torch.zeros(1, dtype=torch.bool, device=device)

    def advance(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Takes log-probabilities of the next token, [B, 1, V] at first and [B, G, V] then (-inf: forbidden).

        Returns:
            tokens [B, G] that the running hypotheses now end with, and parents [B, G], the hypotheses they continue.
        """
        scores, parents, tokens = best_continuations(log_probs, self.scores, 2 * self.beam)
        self.failed = self.failed | scores[:, 0].isnan().any()
        self.length += 1
        ends = (tokens == self.eos) | (self.length >= self.limits)[:, None]
        self._finish(scores, parents, tokens, ends)
        # the first G that go on; where fewer than G do, ended ones fill up with -inf
        order = torch.sort(ends.to(torch.int8), dim=1, stable=True).indices[:, : self.beam]
        self.scores = scores.masked_fill(ends, -math.inf).gather(1, order)
        parents, tokens = parents.gather(1, order), tokens.gather(1, order)
        history = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        self.tokens = torch.cat([history, tokens[:, :, None]], 2)
        self._check_done()
        return tokens, parents

    def _finish(self, scores: Tensor, parents: Tensor, tokens: Tensor, ends: Tensor) -> None:
        """Enters those of the first G candidates that end, into the G best finished of each sentence."""
        top = slice(0, self.beam)
        allowed = ends[:, top] & ~self.done[:, None]
        ranked = (scores[:, top] / self.length**self.length_penalty).masked_fill(~allowed, -math.inf)
        best, place = ranked.max(1)
        better = best > self.finished[:, 0]
        place = place[:, None]
        history = self.tokens.gather(1, parents.gather(1, place)[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        candidate = torch.cat([history[:, 0], tokens.gather(1, place)], 1)
        kept = torch.nn.functional.pad(self.best_tokens, (0, 1))
        self.best_tokens = torch.where(better[:, None], candidate, kept)
        self.best_length = torch.where(better, self.length - 1, self.best_length)
        self.finished = torch.cat([self.finished, ranked], 1).topk(self.beam, dim=1).values

    def _check_done(self) -> None:
        full = self.finished[:, -1] > -math.inf
        if not self.early_stopping:
            possible = self.scores[:, 0] / self.length**self.length_penalty
            full = full & (possible <= self.finished[:, -1])
        self.done = self.done | full | (self.length >= self.limits)

    def keep(self, rows: Tensor) -> None:
        """Leaves only the sentences ``rows`` in the batch."""
        for name in ("limits", "scores", "tokens", "finished", "best_tokens", "best_length", "done"):
            setattr(self, name, getattr(self, name).index_select(0, rows))

    def finished_now(self) -> Tensor:
        """[B] which sentences are done, on the CPU; E501 where a score was not a number."""
        return _done(self.done, self.failed)

    def results(self, rows: Tensor) -> list[Hypothesis]:
        """The best finished hypotheses of the sentences ``rows``, which are done."""
        found = (x.index_select(0, rows).tolist() for x in (self.best_tokens, self.best_length, self.finished[:, 0]))
        return [
            Hypothesis(tokens[: length - 1] if length and tokens[length - 1] == self.eos else tokens[:length], score)
            for tokens, length, score in zip(*found, strict=True)
        ]


class GreedySearch:
    """The most probable token at every step: what ``BeamSearch`` is at G = 1, without scores.

    Takes logits or log-probabilities [B, 1, V]; otherwise used like ``BeamSearch``.
    """

    def __init__(self, limits: Tensor, *, eos: int) -> None:
        self.limits, self.eos, self.length = limits, eos, 1
        self.tokens = torch.zeros(limits.shape[0], 0, dtype=torch.long, device=limits.device)
        self.done = torch.zeros(limits.shape[0], dtype=torch.bool, device=limits.device)
        self.failed = torch.zeros(1, dtype=torch.bool, device=limits.device)

    def advance(self, logits: Tensor) -> tuple[Tensor, None]:
        """[B, 1, V] -> tokens [B, 1]; there are no parents."""
        best, token = _row_max(logits[:, 0])
        self.failed = self.failed | best.isnan().any()
        self.length += 1
        token = torch.where(self.done, self.eos, token)
        self.tokens = torch.cat([self.tokens, token[:, None]], 1)
        self.done = self.done | (token == self.eos) | (self.length >= self.limits)
        return token[:, None], None

    def keep(self, rows: Tensor) -> None:
        """Leaves only the sentences ``rows`` in the batch."""
        for name in ("limits", "tokens", "done"):
            setattr(self, name, getattr(self, name).index_select(0, rows))

    def finished_now(self) -> Tensor:
        """[B] which sentences are done, on the CPU; E501 where a logit was not a number."""
        return _done(self.done, self.failed)

    def results(self, rows: Tensor) -> list[Hypothesis]:
        """The translations of the sentences ``rows``, which are done."""
        return [
            Hypothesis(tokens[: tokens.index(self.eos)] if self.eos in tokens else tokens, math.nan)
            for tokens in self.tokens.index_select(0, rows).tolist()
        ]


def _done(done: Tensor, failed: Tensor) -> Tensor:
    """Both in one transfer: a GPU is waited for once a step."""
    flags = torch.cat([done, failed]).cpu()
    if bool(flags[-1]):
        raise MnmtError("E501", "the model's output is not finite", remedy="translate with an earlier checkpoint")
    return flags[:-1]


def _row_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest entry of each row and its column, the first of equals; by blocks, as torch's argmax is slow on CPU."""
    if x.shape[1] % BLOCK:
        return x.max(1)
    blocks = x.unflatten(1, (-1, BLOCK))
    block = blocks.amax(2).argmax(1)
    best, within = blocks[torch.arange(x.shape[0], device=x.device), block].max(1)
    return best, block * BLOCK + within
