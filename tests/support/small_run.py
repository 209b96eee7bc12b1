"""Runs that were never trained: one opened in memory over random corpora, one on disk over a prepared store."""

from __future__ import annotations

from pathlib import Path

import tomli_w
import torch

from mnmt_scale.data.build import prepare
from mnmt_scale.data.config import DataConfig
from mnmt_scale.data.tokenizer import Tokenizer
from mnmt_scale.engine.checkpoint import write_weights
from mnmt_scale.evaluation.config import EvaluationConfig
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.runs import OpenedRun
from mnmt_scale.tasks import TaskSet
from tests.support.corpora import settings_for, write_tree
from tests.support.memory_store import MemoryStore
from tests.support.random_run import random_weights


def small_opened_run(path: Path, store: MemoryStore, directions: list[tuple[str, str]], **evaluation) -> OpenedRun:
    """Model of 2 + 2 layers over the store's vocabulary, with 32 positions; ``evaluation``: settings."""
    torch.manual_seed(1)
    config = ModelConfig(encoder_layers=2, decoder_layers=2, d_model=32, d_ffn=64, heads=4, max_positions=32)
    model = Transformer(config, store.tokenizer.vocabulary_size).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.mul_(2.0)
    settings = EvaluationConfig(**{"beam": 2, "max_ratio": 1.0, "max_extra": 4, **evaluation})
    return OpenedRun(path, "small", model, store.tokenizer, TaskSet(directions), DataConfig(max_tokens=32), config, settings)


def prepared_run(
    directory: Path, name: str = "run", *, seed: int = 0, zero_shot: tuple[str, ...] = (), vocabulary_size: int = 400
) -> Path:
    """A run directory with random weights over a prepared store of three pairs, one of them without a test set.

    Directions de-en, fr-en, it-en, en-de; a second run of another ``name`` shares the store.
    """
    tree, store = directory / "corpus", directory / "store"
    if not store.exists():
        write_tree(tree, {"de-en": 120, "en-fr": 60, "en-it": 60}, held_out=8)
        for file in (tree / "supervised" / "en-it").glob("*-test.*"):
            file.unlink()
        prepare(settings_for(tree, store, vocabulary_size=vocabulary_size), log=lambda line: None)
    tokenizer = Tokenizer.load(store)
    config = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=32, d_ffn=32, heads=2, max_positions=64)
    data = settings_for(tree, store, tasks=["de-en", "fr-en", "it-en", "en-de"], max_tokens=60)
    table = {
        "name": name,
        "data": data.model_dump(mode="json", exclude_none=True),
        "model": config.model_dump(mode="json", exclude_none=True),
        "evaluation": {"beam": 2, "max_ratio": 1.0, "bootstrap_samples": 50, "zero_shot": list(zero_shot)},
    }
    run = directory / name
    run.mkdir()
    (run / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    tokenizer.save(run)
    write_weights(run, random_weights(config, tokenizer.vocabulary_size, seed))
    return run
