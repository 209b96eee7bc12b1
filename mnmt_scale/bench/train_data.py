"""Sentences for ``mnmt bench train``: real text in training batches, the same sentences padded for rivals, equal lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from ..data.config import BatchConfig, CorpusConfig, DataConfig, SamplingConfig
from ..data.packing import pack_batch
from ..flow import IGNORE, TaskBatch
from ..tasks import TaskSet, parse_direction

PAD = 1
CONSTRUCTED = "constructed"


@dataclass(frozen=True)
class Padded:
    """A padded batch as Hugging Face's models take it: ids, mask, decoder ids and labels, each [B, longest]; ``tokens``
    are its predicted target tokens."""

    inputs: dict[str, torch.Tensor]
    tokens: int


def kind_of(corpus: Path) -> str:
    """``constructed`` where ``corpus``, or the folder that it is in, has this name, else ``real``: no text of its own can be
    told from its numbers."""
    return CONSTRUCTED if CONSTRUCTED in (corpus.name, corpus.parent.name) else "real"


def constructed(place: Path) -> Path:
    """The constructed languages by default, in ``place / "constructed"``; written once."""
    from ..data.synthetic import SyntheticConfig, generate

    corpus = place / CONSTRUCTED
    if not corpus.exists():
        generate(SyntheticConfig(), corpus)
    return corpus


def prepared(corpus: Path, work: Path, vocabulary_size: int, store: Path | None = None) -> DataConfig:
    """Settings of an OPUS-100 tree, many to one, whose token store is in ``work``; prepared once.

    Args:
        store: a token store that is there: it is used as it is, with its own directions, and nothing else of the arguments.

    Raises:
        MnmtError: E303 where ``store`` is none, and what else ``TokenStore.open`` and ``prepare`` raise.
    """
    from ..data.build import prepare
    from ..data.store import TokenStore, is_store

    if store is not None:
        report = TokenStore.open(store).report
        return DataConfig(store=str(store), tasks=report["tasks"], max_tokens=report["max_tokens"])
    data = DataConfig.model_validate(
        {
            "store": str(work / f"store-{vocabulary_size}"),
            "corpora": [CorpusConfig(path=str(corpus)).model_dump()],
            "tokenizer": {"vocabulary_size": vocabulary_size, "sample_lines": 40000},
        }
    )
    if not is_store(Path(data.store)):
        prepare(data, log=lambda *_: None)
    return data


def real_batches(data: DataConfig, budget: int, count: int, seed: int = 1) -> list[TaskBatch]:
    """``count`` training batches of ``budget`` tokens from a token store that is there: all its directions, temperature 5,
    as trained on; with buckets."""
    from ..data.store import TokenStore
    from ..data.stream import BatchStream

    store = TokenStore.open(Path(data.store))
    tasks = TaskSet(parse_direction(name) for name in store.report["tasks"])
    batch = BatchConfig(batch_tokens=budget, prefetch=False)
    stream = BatchStream(store, tasks, SamplingConfig(), batch, max_tokens=data.max_tokens, seed=seed)
    return [stream.next()[0] for _ in range(count)]


def equal_batches(vocabulary_size: int, budget: int, length: int, count: int) -> list[TaskBatch]:
    """``count`` batches of random sentences of ``length`` tokens on both sides: nothing to pad."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = SimpleNamespace(eos=2, vocabulary_size=vocabulary_size, tag_id=lambda language: 4 + (language == "en"))
    tasks = list(TaskSet([("fr", "en")]))
    sentences = max(1, budget // length)

    def side() -> list[list[int]]:
        return torch.randint(6, vocabulary_size, (sentences, length - 2), generator=generator).tolist()

    return [pack_batch(side(), side(), [0] * sentences, tasks, tokenizer) for _ in range(count)]


def sentences_of(batches: Sequence[TaskBatch]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(source ids, decoder input, labels) of every sentence."""
    found = []
    for batch in batches:
        sources = batch.source_ids.split(batch.source_offsets.diff().tolist())
        lengths = batch.target_offsets.diff().tolist()
        found += zip(sources, batch.target_in.split(lengths), batch.target_out.split(lengths), strict=True)
    return found


def pad(sentences: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Padded:
    """Sentences padded to the longest of them."""
    from torch.nn.utils.rnn import pad_sequence

    sources, inputs, labels = zip(*sentences, strict=True)
    source = pad_sequence(list(sources), batch_first=True, padding_value=PAD)
    mask = pad_sequence([torch.ones_like(s) for s in sources], batch_first=True, padding_value=0)
    target = pad_sequence(list(inputs), batch_first=True, padding_value=PAD)
    label = pad_sequence(list(labels), batch_first=True, padding_value=IGNORE)
    named = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target, "labels": label}
    return Padded(named, int((label != IGNORE).sum()))


def padded_as_drawn(batches: Sequence[TaskBatch]) -> list[Padded]:
    """Each batch's sentences padded together: no sorting by length."""
    return [pad(sentences_of([batch])) for batch in batches]


def padded_by_length(batches: Sequence[TaskBatch], budget: int) -> list[Padded]:
    """All sentences of the batches sorted by length and cut into batches of at most ``budget`` padded tokens on the longer
    side: the least padding that batches can have."""
    order = sorted(sentences_of(batches), key=lambda s: (max(len(s[0]), len(s[1])), len(s[1])))
    cut: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = [[]]
    for sentence in order:
        longest = max(len(sentence[0]), len(sentence[1]))
        if cut[-1] and (len(cut[-1]) + 1) * longest > budget:
            cut.append([])
        cut[-1].append(sentence)
    return [pad(part) for part in cut]


def joeynmt_batches(batches: Sequence[TaskBatch], budget: int, seed: int = 0) -> list[list[tuple[list[int], list[int]]]]:
    """The sentences in random order, cut by JoeyNMT's own rule (``TokenBatchSampler``: a batch is full once its sentences
    times the longest side reach the budget); as (source, target) words without end and target tag."""
    sentences = sentences_of(batches)
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(seed)).tolist()
    cut: list[list[tuple[list[int], list[int]]]] = [[]]
    longest = 0
    for i in order:
        source, _, labels = sentences[i]
        cut[-1].append((source[:-1].tolist(), labels[1:-1].tolist()))
        longest = max(longest, len(source), len(labels))
        if longest * len(cut[-1]) >= budget:
            cut.append([])
            longest = 0
    return [part for part in cut if part]


def as_words(padded: Sequence[Padded]) -> list[list[tuple[list[int], list[int]]]]:
    """Padded batches as (source, target) words without end and target tag."""
    out = []
    for batch in padded:
        lengths = batch.inputs["attention_mask"].sum(1).tolist()
        rows = zip(batch.inputs["input_ids"], lengths, batch.inputs["labels"], strict=True)
        out.append([(ids[: n - 1].tolist(), labels[labels != IGNORE][:-1].tolist()) for ids, n, labels in rows])
    return out
