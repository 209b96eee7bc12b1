"""Random micro-batches, packed by the stream's own packer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch

from mnmt_scale.data.packing import FRAME, pack_batch
from mnmt_scale.flow import IGNORE, TaskBatch
from mnmt_scale.tasks import TaskSet

PAD, EOS, FIRST_TAG = 1, 2, 4
SOURCES = ("af", "de", "fr", "nl", "xh", "zu")


def batch_of(
    lengths: Sequence[tuple[int, int, int]],
    *,
    tasks: int = 1,
    vocabulary: int = 60,
    seed: int = 0,
    bucketed: bool = True,
    max_waste: float = 0.3,
) -> TaskBatch:
    """A batch of random ids.

    Args:
        lengths: per sentence (source tokens, target tokens, task), tag and end included (so at least 2), in any order.
        tasks: K; tasks that no sentence names are empty.
        bucketed, max_waste: see ``pack_batch``.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = sorted(lengths, key=lambda item: item[2])
    first_word = FIRST_TAG + len(SOURCES) + 1
    tokenizer = SimpleNamespace(eos=EOS, vocabulary_size=vocabulary, tag_id=_tag)

    def words(length: int) -> list[int]:
        return torch.randint(first_word, vocabulary, (length - FRAME,), generator=generator).tolist()

    return pack_batch(
        [words(s) for s, _, _ in lengths],
        [words(u) for _, u, _ in lengths],
        [k for _, _, k in lengths],
        list(TaskSet([(source, "en") for source in SOURCES[:tasks]])),
        tokenizer,
        max_waste=max_waste,
        bucketed=bucketed,
    )


def random_lengths(sentences: int, *, tasks: int = 1, longest: int = 14, seed: int = 0) -> list[tuple[int, int, int]]:
    """``sentences`` times (source tokens, target tokens, task), each side 2 .. ``longest``."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, longest + 1, (sentences, 2), generator=generator).tolist()
    slots = torch.randint(0, tasks, (sentences,), generator=generator).tolist()
    return [(s, u, k) for (s, u), k in zip(sizes, slots, strict=True)]


def padded(batch: TaskBatch) -> dict[str, torch.Tensor]:
    """The same sentences as Hugging Face models want them: [B, longest] ids, mask, decoder ids and labels."""
    B = batch.num_sentences
    out = {
        "input_ids": torch.full((B, batch.max_source), PAD),
        "attention_mask": torch.zeros(B, batch.max_source, dtype=torch.long),
        "decoder_input_ids": torch.full((B, batch.max_target), PAD),
        "labels": torch.full((B, batch.max_target), IGNORE),
    }
    for i in range(B):
        a, b = batch.source_offsets[i : i + 2].tolist()
        out["input_ids"][i, : b - a] = batch.source_ids[a:b]
        out["attention_mask"][i, : b - a] = 1
        a, b = batch.target_offsets[i : i + 2].tolist()
        out["decoder_input_ids"][i, : b - a] = batch.target_in[a:b]
        out["labels"][i, : b - a] = batch.target_out[a:b]
    return out


def unpadded(matrix: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """[B, longest, ...] -> [tokens, ...]: the rows that are not padding, one sentence after another."""
    return torch.cat([matrix[i, :n] for i, n in enumerate(offsets.diff().tolist())])


def _tag(language: str) -> int:
    return FIRST_TAG + (len(SOURCES) if language not in SOURCES else SOURCES.index(language))
