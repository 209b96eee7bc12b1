"""What an export is held against: the same sentences through the model that was trained.

Shape legend: B sentences, S longest source, U target tokens of a sentence, V vocabulary.

Logits must agree within 1e-4; greedy output must be the same, except where the two best tokens are closer than that (a tie,
counted). Positions of padding are never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from ..data.packing import FRAME, pack_batch
from ..data.store import TokenStore
from ..data.tokenizer import Tokenizer
from ..errors import MnmtError
from ..model.incremental import Decoder, DecodingState
from ..model.transformer import Transformer
from ..runs import OpenedRun
from ..settings import user_path
from ..tasks import Task, TaskSet

TOLERANCE = 1e-4
LINES = 100
LIMIT_TOKENS = 32
"""Tokens of greedy output that are compared; long enough for caches and positions, short enough for large models."""
_BATCH = 25

ODD_LINES = (
    "  Two spaces   and more ; punctuation !?... ",
    "Tel.: +27 (0)12 345-6789, 3.14 \u00d7 10\u207b\u2075, \u00bd \u20ac, \ufb01ne \uff26\uff35\uff2c\uff2c",
    "emoji \U0001f642\U0001f469\u200d\U0001f467 and <s> <unk> </s> <pad> <0x41> as text",
    "\u0646\u064f\u0634\u0650\u0631\u064e\t\u00a0\u3000 e\u0301 \u2581 \u200b.",
    "__init__(self)",
    "x",
    "",
    "   ",
)
"""Lines on which tokenizers fall apart, beside those in which a tag stands as text."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sentence to translate: text ids without tag and end."""

    task: Task
    source: list[int]


@dataclass(frozen=True, slots=True)
class ParityData:
    """Sentences ordered by task, and lines of text for the tokenizer."""

    samples: list[Sample]
    text: list[str]


def parity_data(run: OpenedRun, count: int = LINES) -> ParityData:
    """``count`` sentences over at most 24 directions, spread evenly, each with its opposite where the model has it.

    They are lines of the dev sets in the run's token store where it is there; without it, and for every fourth sentence
    anyway, they are random sequences of pieces, which are in the scripts that the vocabulary knows.
    """
    tasks = _chosen_tasks(run.tasks)
    longest = min(run.data.max_tokens, run.model_config.max_positions) - FRAME
    dev = _dev_lines(run, tasks, count)
    random = _random_sources(run.tokenizer, longest)
    samples, text = [], []
    for number, task in zip(range(count), cycle(tasks), strict=False):
        lines = dev.get(task.index, [])
        source = next(random)
        if lines and number % 4 < 3:
            line = lines[(number // len(tasks)) % len(lines)]
            source = run.tokenizer.encode([line])[0][:longest] or source
        else:
            line = run.tokenizer.decode([source])[0]
        samples.append(Sample(task, source))
        text.append(line)
    samples.sort(key=lambda s: s.task.index)
    tags = [run.tokenizer.pieces()[run.tokenizer.tag_id(t)] for t in run.tasks.languages[:10]]
    return ParityData(samples, [*text, *ODD_LINES, *(f"say {tag}, {tag}{tags[0]}" for tag in tags)])


def _chosen_tasks(tasks: TaskSet, most: int = 12) -> list[Task]:
    if not len(tasks):
        raise MnmtError("E701", "the run has no directions", remedy="list them in data.tasks of its config.toml")
    names = set(tasks.names)
    picked = {tasks[round(i)] for i in np.linspace(0, len(tasks) - 1, min(most, len(tasks)))}
    for task in list(picked):
        opposite = f"{task.target}-{task.source}"
        if opposite in names:
            picked.add(tasks.by_name(opposite))
    return sorted(picked, key=lambda t: t.index)


def _dev_lines(run: OpenedRun, tasks: Sequence[Task], count: int) -> dict[int, list[str]]:
    """Lines by task index; tasks without a dev set, or whose store is gone, are left out."""
    try:
        store = TokenStore.open(user_path(run.data.store))
    except MnmtError:
        return {}
    found = {}
    for task in tasks:
        if store.has(task.pair, "dev"):
            lines = store.text(task.pair, "dev", task.source)[:count]
            found[task.index] = [line for line in lines if line.strip()]
    return found


def _random_sources(tokenizer: Tokenizer, longest: int) -> Iterator[list[int]]:
    rng = np.random.default_rng(0)
    special = {tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk}
    special |= {tokenizer.tag_id(language) for language in tokenizer.languages}
    plain = [i for i, p in enumerate(tokenizer.pieces()) if i not in special and not p.startswith(("<0x", "madeupword"))]
    ids = np.array(plain or sorted(set(range(tokenizer.vocabulary_size)) - special))
    while True:
        yield rng.choice(ids, rng.integers(1, min(30, longest) + 1)).tolist()


def framed_sources(samples: Sequence[Sample], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """[B, S] ``__src__ text </s>`` padded with the pad id, and [B] lengths."""
    rows = [[tokenizer.tag_id(s.task.source), *s.source, tokenizer.eos] for s in samples]
    lengths = torch.tensor([len(r) for r in rows])
    padded = torch.full((len(rows), int(lengths.max())), tokenizer.pad)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return padded, lengths


@torch.inference_mode()
def greedy(model: Transformer, tokenizer: Tokenizer, samples: Sequence[Sample], limit: int = LIMIT_TOKENS) -> list[list[int]]:
    """Most probable token at every step, ``forbidden`` left out: the tokens after the tag, ``</s>`` at the end if reached."""
    decoder, out = Decoder(model), []
    blocked = forbidden(tokenizer)
    limit = min(limit, model.config.max_positions - FRAME)
    for start in range(0, len(samples), _BATCH):
        part = samples[start : start + _BATCH]
        state = DecodingState(decoder, *framed_sources(part, tokenizer), beam=1)
        tags = [tokenizer.tag_id(s.task.target) for s in part]
        logits = state.begin(torch.tensor([[tokenizer.eos, tag] for tag in tags]))
        rows: list[list[int]] = [[] for _ in part]
        for _ in range(limit):
            token = logits.index_fill(1, blocked, -torch.inf).argmax(1)
            for row, t in zip(rows, token.tolist(), strict=True):
                if not row or row[-1] != tokenizer.eos:
                    row.append(t)
            if all(row[-1] == tokenizer.eos for row in rows):
                break
            logits = state.step(token[:, None])
        out += rows
    return out


def forbidden(tokenizer: Tokenizer) -> Tensor:
    """Ids that are never generated: ``<s>``, ``<pad>``, ``<unk>``."""
    return torch.tensor(sorted((tokenizer.bos, tokenizer.pad, tokenizer.unk)))


@torch.inference_mode()
def reference_logits(
    model: Transformer, tokenizer: Tokenizer, samples: Sequence[Sample], targets: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Per sentence [U, V] logits of the forward pass that training uses, for decoder input ``</s> __tgt__ targets``.

    Args:
        targets: text ids; U = len + 2, the last row predicts what comes after the last of them.
    """
    tasks = sorted({s.task for s in samples}, key=lambda t: t.index)
    slots = [tasks.index(s.task) for s in samples]
    batch = pack_batch([s.source for s in samples], list(targets), slots, tasks, tokenizer)
    hidden = model.hidden(batch)
    parts = hidden.split([len(t) + FRAME for t in targets])
    return [part @ model.shared.weight.T for part in parts]


def check_logits(
    model: Transformer,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    targets: Sequence[Sequence[int]],
    theirs: Callable[[Tensor, Tensor, Tensor], Tensor],
    where: str,
) -> float:
    """Largest absolute difference of logits on one padded batch; E702 when beyond the tolerance.

    Args:
        theirs: ``(source_ids [B, S], lengths [B], decoder_ids [B, longest U])`` -> logits [B, longest U, V].
    """
    ours = reference_logits(model, tokenizer, samples, targets)
    prefix = [[tokenizer.eos, tokenizer.tag_id(s.task.target), *t] for s, t in zip(samples, targets, strict=True)]
    decoder_ids = torch.full((len(prefix), max(map(len, prefix))), tokenizer.pad)
    for row, ids in zip(decoder_ids, prefix, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    with torch.inference_mode():
        found = theirs(*framed_sources(samples, tokenizer), decoder_ids)
    error = max(float((a - b[: len(a)]).abs().max()) for a, b in zip(ours, found, strict=True))
    if not error <= TOLERANCE:
        what = f"logits differ by {error:.2e} from those of the trained model (allowed {TOLERANCE:.0e})"
        raise MnmtError("E702", what, where=where)
    return error


def check_greedy(
    run: OpenedRun, samples: Sequence[Sample], ours: Sequence[list[int]], theirs: Sequence[list[int]], where: str
) -> int:
    """Number of sentences that differ only by a tie; E702 when one differs by more."""
    ties = 0
    for sample, a, b in zip(samples, ours, theirs, strict=True):
        if a == b:
            continue
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        if at < min(len(a), len(b)):
            logits = reference_logits(run.model, run.tokenizer, [sample], [a[:at]])[0][-1]
            if abs(float(logits[a[at]] - logits[b[at]])) <= 2 * TOLERANCE:
                ties += 1
                continue
        what = f"greedy output of a {sample.task} sentence differs at token {at + 1}: {b[at : at + 3]} for {a[at : at + 3]}"
        raise MnmtError("E702", what, where=where)
    return ties
