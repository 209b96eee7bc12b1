"""Weights, sizes and tokenizer as plain files: safetensors, JSON, SentencePiece."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..data.tokenizer import MODEL_NAME, SPECIALS, Tokenizer
from ..errors import MnmtError
from ..runs import OpenedRun

WEIGHTS_NAME = "model.safetensors"


def write_plain(run: OpenedRun, directory: Path) -> None:
    """Writes ``model.safetensors`` (names of ``Transformer.state_dict``), ``config.json`` and the tokenizer's files."""
    state = {name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}
    save_file(state, directory / WEIGHTS_NAME, metadata={"format": "pt"})
    tokenizer = run.tokenizer
    config = {
        "model": run.model_config.model_dump(mode="json"),
        "vocabulary_size": tokenizer.vocabulary_size,
        "specials": {name: getattr(tokenizer, name) for name in SPECIALS},
        "tags": {language: tokenizer.tag_id(language) for language in tokenizer.languages},
        "directions": run.tasks.names,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(directory)


def check_plain(run: OpenedRun, directory: Path) -> dict:
    """Reads everything back: weights bitwise equal, the same tokenizer. E702 names the first difference."""
    written = load_file(directory / WEIGHTS_NAME)
    state = run.model.state_dict()
    for name in sorted(state.keys() | written.keys()):
        if name not in written or name not in state or not torch.equal(written[name], state[name]):
            raise MnmtError("E702", f"weight {name} was not written as it is", where=str(directory))
    if Tokenizer.load(directory / MODEL_NAME).fingerprint != run.tokenizer.fingerprint:
        raise MnmtError("E702", "tokenizer was not written as it is", where=str(directory))
    return {"weights_equal": len(state)}
