"""Directories as Hugging Face has them: a random M2M100 with the tokenizer files of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

from mnmt_scale.export import hf
from tests.support.hf_model import random_m2m100
from tests.support.random_run import train_tiny_tokenizer


def saved_with_m2m100_tokenizer(directory: Path) -> None:
    """What facebook/m2m100_418M looks like: vocab.json in an order of its own, 100 tags behind it, 8 unused rows."""
    directory.mkdir()
    sentencepiece = train_tiny_tokenizer(directory, ["fr", "ru"], vocabulary_size=380)
    pieces = [p for p in sentencepiece.pieces() if not p.startswith("__")][4:]
    pieces = pieces[::-1]
    names = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    (directory / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(names)}), encoding="utf-8")
    (directory / "tokenizer.model").rename(directory / "sentencepiece.bpe.model")
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "M2M100Tokenizer"}))
    with hf.quiet_transformers():
        random_m2m100(len(names) + 108).save_pretrained(directory)
