"""Sentences -> ``TaskBatch``: tags and ends added, tokens packed without padding, and the padded layout for attention.

Everything is done on whole arrays: the cost is that of a few passes over the tokens, never of a loop over sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import MnmtError
from ..flow import IGNORE, TaskBatch
from ..tasks import Task
from .buckets import make_buckets

FRAME = 2
"""Tokens that each side gets beside its text: the language tag and the end of the sentence."""

Ints = NDArray[np.int64]


def pack_batch(
    sources: Sequence[Any],
    targets: Sequence[Any],
    slots: Sequence[int],
    tasks: Sequence[Task],
    tokenizer: Any,
    *,
    step: int = 0,
    micro: int = 0,
    rows: Sequence[int] | None = None,
    step_tokens: Sequence[int] | None = None,
    max_waste: float = 0.15,
    bucketed: bool = True,
) -> TaskBatch:
    """A batch from sentences given one by one (the training stream reads the token store without such lists).

    Args:
        sources, targets: text ids of each sentence (lists or arrays), without tag and end.
        slots: place in ``tasks`` of each sentence, never decreasing.
        tasks: the K tasks of the step.
        tokenizer: of it are used ``eos``, ``tag_id(language)`` and ``vocabulary_size``.
        rows: sentence numbers for the record; 0 .. B-1 by default.
        step_tokens: [K] predicted tokens of the whole step; those of this batch by default.
        bucketed: make ``buckets``.

    Raises:
        MnmtError: E307 for an id beyond the vocabulary.
    """
    slot_of = np.asarray(slots, dtype=np.int64)
    assert len(sources) == len(targets) == len(slot_of)
    assert bool((np.diff(slot_of) >= 0).all())
    flat = [_concatenated(side) for side in (sources, targets)]
    bounds = np.searchsorted(slot_of, np.arange(len(tasks) + 1)).tolist()
    return assemble(
        [[tokens] * len(tasks) for tokens, _, _ in flat],
        [starts for _, starts, _ in flat],
        [lengths for _, _, lengths in flat],
        bounds,
        tasks,
        tokenizer,
        step=step,
        micro=micro,
        rows=np.arange(len(slot_of)) if rows is None else np.asarray(rows, dtype=np.int64),
        step_tokens=None if step_tokens is None else tuple(step_tokens),
        max_waste=max_waste if bucketed else None,
    )


def assemble(
    tokens: Sequence[Sequence[NDArray[Any]]],
    starts: Sequence[Ints],
    lengths: Sequence[Ints],
    bounds: Sequence[int],
    tasks: Sequence[Task],
    tokenizer: Any,
    *,
    step: int,
    micro: int,
    rows: Ints,
    step_tokens: tuple[int, ...] | None,
    max_waste: float | None,
) -> TaskBatch:
    """A batch from stretches of token arrays; ``tokens``, ``starts`` and ``lengths`` are (source, target).

    Args:
        tokens: per side and task the array that holds its text ids.
        starts, lengths: per side [B] where each sentence's text begins in the array of its task, and how long it is.
        bounds: [K+1] sentences of each task, ``bounds[k]`` to ``bounds[k + 1]``.
        rows: [B] row numbers.
        max_waste: see ``make_buckets``; None leaves the buckets out.
    """
    framed = []
    for side, languages in enumerate(([t.source for t in tasks], [t.target for t in tasks])):
        tags = [tokenizer.tag_id(language) for language in languages]
        ids, offsets = _framed(tokens[side], starts[side], lengths[side], bounds, tags, tokenizer.eos)
        _check_ids(ids, offsets, tokenizer.vocabulary_size, bounds, tasks, rows, languages)
        framed.append((ids, offsets))
    (source_ids, source_offsets), (target_out, target_offsets) = framed
    target_in = np.empty_like(target_out)
    target_in[:1] = tokenizer.eos
    target_in[1:] = target_out[:-1]  # each sentence's end is the next one's first decoder input
    target_out[target_offsets[:-1]] = IGNORE
    counts = np.diff(np.asarray(bounds))
    target_segments = target_offsets[bounds].tolist()
    if step_tokens is None:
        step_tokens = tuple((np.diff(target_segments) - counts).tolist())
    widths = (lengths[0] + FRAME, lengths[1] + FRAME)
    return TaskBatch(
        step=step,
        micro=micro,
        tasks=tuple(t.index for t in tasks),
        source_ids=torch.from_numpy(source_ids),
        target_in=torch.from_numpy(target_in),
        target_out=torch.from_numpy(target_out),
        source_offsets=torch.from_numpy(source_offsets.astype(np.int32)),
        target_offsets=torch.from_numpy(target_offsets.astype(np.int32)),
        source_segments=tuple(source_offsets[bounds].tolist()),
        target_segments=tuple(target_segments),
        sentence_task=torch.from_numpy(np.repeat(np.arange(len(tasks)), counts)),
        rows=torch.from_numpy(np.ascontiguousarray(rows)),
        step_tokens=step_tokens,
        max_source=int(widths[0].max(initial=0)),
        max_target=int(widths[1].max(initial=0)),
        buckets=None if max_waste is None else make_buckets(*widths, max_waste),
    )


def only(batch: TaskBatch, slot: int, max_waste: float = 0.15) -> TaskBatch:
    """The sentences of one task of a batch as a batch of its own: K = 1, ``step_tokens`` the task's; empty where this rank
    has none of them. In buckets of its own (``make_buckets``) where the batch has some."""
    device, batch = batch.source_ids.device, batch.to("cpu")
    first, last = torch.searchsorted(batch.sentence_task, torch.tensor((slot, slot + 1))).tolist()
    (s, s_end), (u, u_end) = (x[slot : slot + 2] for x in (batch.source_segments, batch.target_segments))
    offsets = [x[first : last + 1] - x[first] for x in (batch.source_offsets, batch.target_offsets)]
    widths = [x.diff().numpy() for x in offsets]
    return replace(
        batch,
        tasks=(batch.tasks[slot],),
        source_ids=batch.source_ids[s:s_end],
        target_in=batch.target_in[u:u_end],
        target_out=batch.target_out[u:u_end],
        source_offsets=offsets[0],
        target_offsets=offsets[1],
        source_segments=(0, s_end - s),
        target_segments=(0, u_end - u),
        sentence_task=torch.zeros_like(batch.sentence_task[first:last]),
        rows=batch.rows[first:last],
        step_tokens=(batch.step_tokens[slot],),
        max_source=int(widths[0].max(initial=0)),
        max_target=int(widths[1].max(initial=0)),
        buckets=None if batch.buckets is None else make_buckets(*widths, max_waste),
    ).to(device)


def _framed(
    tokens: Sequence[NDArray[Any]], starts: Ints, lengths: Ints, bounds: Sequence[int], tags: Sequence[int], eos: int
) -> tuple[Ints, Ints]:
    """``tag text eos`` of each sentence, one after another [tokens], and their offsets [B+1]."""
    widths = lengths + FRAME
    offsets = np.zeros(len(widths) + 1, dtype=np.int64)
    np.cumsum(widths, out=offsets[1:])
    read = np.arange(offsets[-1])
    read += np.repeat(starts - 1 - offsets[:-1], widths)  # the two cells around the text are read too, then replaced
    ids = np.empty(len(read), dtype=np.int64)
    edges = offsets[bounds].tolist()
    texts = [
        array.take(read[a:b], mode="clip") if len(array) else np.zeros(b - a, dtype=np.int64)
        for array, (a, b) in zip(tokens, pairwise(edges), strict=True)
        if a < b
    ]
    if texts:
        np.concatenate(texts, out=ids)
    ids[offsets[:-1]] = np.repeat(np.asarray(tags, dtype=np.int64), np.diff(bounds))
    ids[offsets[1:] - 1] = eos
    return ids, offsets


def _check_ids(
    ids: Ints,
    offsets: Ints,
    size: int,
    bounds: Sequence[int],
    tasks: Sequence[Task],
    rows: Ints,
    languages: Sequence[str],
) -> None:
    if not len(ids) or int(ids.max()) < size:
        return
    place = int(np.argmax(ids >= size))
    sentence = int(np.searchsorted(offsets, place, side="right")) - 1
    slot = int(np.searchsorted(bounds, sentence, side="right")) - 1
    raise MnmtError(
        "E307",
        f"token id {int(ids[place])} is beyond the vocabulary of {size}",
        where=f"pair {tasks[slot].pair}, side {languages[slot]}, sentence {int(rows[sentence])}",
        remedy="prepare the data again with this tokenizer",
    )


def _concatenated(sentences: Sequence[Any]) -> tuple[NDArray[Any], Ints, Ints]:
    arrays = [np.asarray(s, dtype=np.int64) for s in sentences]
    lengths = np.array([len(a) for a in arrays], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return (np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)), starts, lengths
