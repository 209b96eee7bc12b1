"""A tiny model and hand-made steps: a task's sentences shared out over ranks and micro-batches as a test likes."""

from __future__ import annotations

import numpy as np

from mnmt_scale.data.packing import pack_batch
from mnmt_scale.flow import TaskBatch
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.tasks import TaskSet

VOCABULARY = 61
TASKS = TaskSet([("de", "en"), ("fr", "en"), ("ru", "en")])
LANGUAGES = ("de", "en", "fr", "ru")


class TinyTokenizer:
    """Only what packing asks of a tokenizer: specials 0-3, then one tag per language."""

    bos, pad, eos, unk = 0, 1, 2, 3
    vocabulary_size = VOCABULARY

    def tag_id(self, language: str) -> int:
        return 4 + LANGUAGES.index(language)


def tiny_config(**changes) -> ModelConfig:
    """1 + 1 layers, width 16: small enough for hundreds of steps in a test."""
    sizes = dict(encoder_layers=1, decoder_layers=1, d_model=16, d_ffn=32, heads=2, max_positions=64, dropout=0.0)
    return ModelConfig(**{**sizes, **changes})


def sentences(seed: int, counts: tuple[int, ...], longest: int = 9) -> list[tuple[int, list[int], list[int]]]:
    """(slot, source ids, target ids): ``counts[k]`` sentences of task k; the target is the source shifted, so that there
    is something to learn."""
    rng = np.random.default_rng(seed)
    out = []
    for slot, count in enumerate(counts):
        for _ in range(count):
            source = rng.integers(8, VOCABULARY, rng.integers(1, longest)).tolist()
            out.append((slot, source, [8 + (x - 7 + slot) % (VOCABULARY - 8) for x in source]))
    return out


def share_out(rows: list[tuple[int, list[int], list[int]]], parts: list[list[int]], step: int) -> list[TaskBatch]:
    """One batch per entry of ``parts``, which lists the rows that it holds; all know the step's token counts."""
    tokens = [0] * len(TASKS)
    for slot, _, target in rows:
        tokens[slot] += len(target) + 1
    out = []
    for micro, part in enumerate(parts):
        chosen = sorted(part, key=lambda i: rows[i][0])
        out.append(
            pack_batch(
                [rows[i][1] for i in chosen],
                [rows[i][2] for i in chosen],
                [rows[i][0] for i in chosen],
                list(TASKS),
                TinyTokenizer(),
                step=step,
                micro=micro,
                rows=chosen,
                step_tokens=tokens,
            )
        )
    return out


def token_mean(batch: TaskBatch) -> tuple[float, ...]:
    """Scales of the plain mean over the step's target tokens."""
    return tuple(1.0 / sum(batch.step_tokens) for _ in batch.tasks)


def planned(step: int, ranks: int, accumulation: int, split: str = "even") -> list[list[TaskBatch]]:
    """[ranks][accumulation] batches of one step; the sentences depend on ``step`` alone.

    ``even`` deals the sentences round; ``1:9`` gives every tenth sentence of each task to rank 0, the rest to the last
    rank; ``empty`` leaves rank 0 without any.
    """
    rows = sentences(step, (4, 3, 1) if split != "1:9" else (10, 10, 10))
    cells: list[list[int]] = [[] for _ in range(ranks * accumulation)]
    seen = [0] * len(TASKS)
    for i, (slot, _, _) in enumerate(rows):
        if split == "even":
            cells[i % len(cells)].append(i)
        elif split == "1:9":
            cells[0 if seen[slot] % 10 == 0 else -1].append(i)
        else:
            cells[accumulation + i % (len(cells) - accumulation)].append(i)
        seen[slot] += 1
    batches = share_out(rows, cells, step)
    return [batches[r * accumulation : (r + 1) * accumulation] for r in range(ranks)]
