"""``mnmt import``: an M2M100 or NLLB directory of Hugging Face as a run with one checkpoint.

Its files are read as data: JSON, safetensors, SentencePiece. Pickles are refused and code that ``config.json`` names
(``auto_map``) is never looked at. The run appears under its name only after its logits were those of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..data.config import DataConfig
from ..data.tokenizer import Tokenizer
from ..engine.checkpoint import write_weights
from ..errors import MnmtError
from ..model.config import ModelConfig
from ..model.weights import from_hf
from ..runs import build_model
from ..tasks import Task, TaskSet, parse_direction
from . import parity
from .export import require_packages
from .hf import WEIGHTS_NAME, padded_logits, quiet_transformers
from .hf_vocabulary import import_tokenizer, read_json
from .publish import written_aside

INDEX_NAME = "model.safetensors.index.json"
RECORD_NAME = "import.json"
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}
_SIZES = ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
          "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings")  # fmt: skip
_DEFAULTS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "scale_embedding": True,
             "tie_word_embeddings": True, "activation_function": "relu"}  # fmt: skip
"""What ``M2M100Config`` assumes where config.json is silent."""


@dataclass(frozen=True, slots=True)
class _Ids:
    """What packing asks of a tokenizer, for a model that came without one."""

    eos: int
    pad: int
    vocabulary_size: int

    def tag_id(self, language: str) -> int:
        return self.vocabulary_size - 1


def import_run(source: Path, run: Path, *, directions: Sequence[str] | None = None, force: bool = False) -> dict[str, Any]:
    """Makes the run directory ``run`` from the Hugging Face directory ``source``.

    Args:
        directions: ``data.tasks`` of the run; by default those that an export of ours lists, else all of its languages.
        force: replace an earlier run.

    Returns:
        Sizes, languages, what the parity check found, and what training settings of the source were left out.

    Raises:
        MnmtError: E703 the directory is not such a model (with the differences), E408 it has pickled weights only, E702 its
            logits differ from those of transformers, E704 ``run`` is taken, E801 transformers is missing.
    """
    require_packages("hf")
    source = Path(source)
    config = read_config(source)
    model_config = to_model_config(config, source)
    with written_aside(run, marker="config.toml", force=force) as aside:
        state = from_hf(load_state(source), model_config)
        rows = state["shared.weight"].shape[0]
        if rows != config["vocab_size"]:
            what = f"shared.weight has {rows} rows, vocab_size is {config['vocab_size']}"
            raise MnmtError("E703", what, where=str(source))
        state = {name: tensor.float() for name, tensor in state.items()}
        tokenizer = import_tokenizer(source, aside, config)
        error = check_logits(source, config, model_config, state)
        tasks = _directions(config, tokenizer, directions)
        _write_settings(aside, Path(run).name, model_config, tasks)
        fingerprints = {"tokenizer": tokenizer.fingerprint} if tokenizer is not None else {}
        write_weights(aside, state, fingerprints=fingerprints)
        record = {
            "source": source.resolve().name,
            "parameters": sum(t.numel() for t in state.values()),
            "vocabulary_size": rows,
            "languages": tokenizer.languages if tokenizer is not None else None,
            "directions": len(tasks),
            "parity": {"logits_max_error": error},
            "left_out": {k: config[k] for k in ("encoder_layerdrop", "decoder_layerdrop") if config.get(k)},
        }
        (aside / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return {"path": str(run), **record}


def read_config(source: Path) -> dict[str, Any]:
    """``config.json`` with the defaults of ``M2M100Config``; E703 when it is not of that kind."""
    if not (source / "config.json").is_file():
        raise MnmtError("E703", "no config.json here", where=str(source), remedy="give a directory saved by save_pretrained")
    table = read_json(source / "config.json")
    if not isinstance(table, dict) or table.get("model_type") != "m2m_100":
        kind = table.get("model_type") if isinstance(table, dict) else None
        what = f"model_type is {kind!r}, only m2m_100 (M2M100, dense NLLB) can be imported"
        raise MnmtError("E703", what, where=str(source / "config.json"))
    config = {**_DEFAULTS, **{k: v for k, v in table.items() if v is not None}}
    wrong = [name for name in _SIZES if not isinstance(config.get(name), int) or config[name] <= 0]
    if wrong:
        raise MnmtError("E703", f"{wrong[0]} = {config.get(wrong[0])!r} is not a size", where=str(source / "config.json"))
    return config


def to_model_config(config: Mapping[str, Any], source: Path) -> ModelConfig:
    """Settings of an equal ``Transformer``; E703 lists everything that it has no place for."""
    problems = [
        f"{a} {config[a]} is not {b} {config[b]}"
        for a, b in (
            ("encoder_attention_heads", "decoder_attention_heads"),
            ("encoder_ffn_dim", "decoder_ffn_dim"),
            ("decoder_start_token_id", "eos_token_id"),
        )
        if config[a] != config[b]
    ]
    problems += [f"{name} is not true" for name in ("scale_embedding", "tie_word_embeddings") if config[name] is not True]
    if config["activation_function"] not in _ACTIVATIONS:
        problems.append(f"activation_function {config['activation_function']!r} is unknown")
    ids = [f"{name}_token_id" for name in ("bos", "pad", "eos")]
    problems += [
        f"{name} {config[name]!r} is not a token id"
        for name in ids
        if not isinstance(config[name], int) or not 0 <= config[name] < config["vocab_size"]
    ]
    if problems:
        raise MnmtError("E703", "; ".join(problems), where=str(source / "config.json"))
    rates = {k: config[k] for k in ("dropout", "attention_dropout", "activation_dropout") if k in config}
    try:
        return ModelConfig(
            encoder_layers=config["encoder_layers"],
            decoder_layers=config["decoder_layers"],
            d_model=config["d_model"],
            d_ffn=config["encoder_ffn_dim"],
            heads=config["encoder_attention_heads"],
            activation=_ACTIVATIONS[config["activation_function"]],
            max_positions=config["max_position_embeddings"],
            **{k: float(v) for k, v in rates.items()},
        )
    except (ValidationError, TypeError, ValueError) as error:
        text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise MnmtError("E703", text, where=str(source / "config.json")) from None


def load_state(source: Path) -> dict[str, Tensor]:
    """Tensors of ``model.safetensors`` or of the shards that its index names.

    Raises:
        MnmtError: E408 when there are only pickles, E703 when files are missing, damaged or outside the directory.
    """
    if (source / WEIGHTS_NAME).is_file():
        return _read_tensors(source / WEIGHTS_NAME)
    if not (source / INDEX_NAME).is_file():
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in source.glob(pattern))
        if pickles:
            raise MnmtError(
                "E408",
                f"{pickles[0]} is a pickle, which can run code; it was not opened",
                where=str(source),
                remedy="where you trust it: M2M100ForConditionalGeneration.from_pretrained(...).save_pretrained(...)",
            )
        raise MnmtError("E703", f"no {WEIGHTS_NAME} here", where=str(source))
    table = read_json(source / INDEX_NAME)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not names:
        raise MnmtError("E703", "the index has no weight_map", where=str(source / INDEX_NAME))
    state: dict[str, Tensor] = {}
    for name in sorted({str(n) for n in names.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise MnmtError("E703", f"the index names {name!r}, no safetensors file of this directory", where=str(source))
        state |= _read_tensors(source / name)
    missing = sorted(set(names) - set(state))
    if missing:
        raise MnmtError("E703", f"weight {missing[0]} is in the index but in no shard", where=str(source))
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise MnmtError("E703", f"cannot be read: {error}", where=str(path)) from None


def check_logits(source: Path, config: Mapping[str, Any], model_config: ModelConfig, state: dict[str, Tensor]) -> float:
    """Largest difference of logits to ``M2M100ForConditionalGeneration`` on a padded batch of random ids."""
    ids = _Ids(config["eos_token_id"], config["pad_token_id"], config["vocab_size"])
    model = build_model(model_config, ids.vocabulary_size, ids.pad, state, where=str(source)).eval()
    rng = np.random.default_rng(0)
    longest = min(32, model_config.max_positions - 2)
    allowed = np.setdiff1d(np.arange(ids.vocabulary_size), [ids.pad, ids.eos, config["bos_token_id"]])
    draw = [rng.choice(allowed, rng.integers(1, longest + 1)).tolist() for _ in range(16)]
    samples = [parity.Sample(Task("xx", "yy", 0), row) for row in draw[:8]]
    with quiet_transformers():
        from transformers import M2M100ForConditionalGeneration

        theirs = M2M100ForConditionalGeneration.from_pretrained(
            source, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        return parity.check_logits(model, ids, samples, draw[8:], padded_logits(theirs), str(source))


def _directions(config: Mapping[str, Any], tokenizer: Tokenizer | None, chosen: Sequence[str] | None) -> list[str]:
    if tokenizer is None:
        return list(chosen or [])
    if chosen is None and isinstance(config.get("directions"), list):
        chosen = [str(name) for name in config["directions"]]
    if chosen is None:
        return [f"{a}-{b}" for a in tokenizer.languages for b in tokenizer.languages if a != b]
    tasks = TaskSet(parse_direction(name) for name in chosen)
    for language in tasks.languages:
        tokenizer.tag_id(language)
    return tasks.names


def _write_settings(run: Path, name: str, model: ModelConfig, tasks: list[str]) -> None:
    data = DataConfig(tasks=tasks, max_tokens=min(DataConfig().max_tokens, model.max_positions))
    table = {
        "name": name,
        "data": data.model_dump(mode="json", exclude_none=True),
        "model": model.model_dump(mode="json", exclude_none=True),
    }
    (run / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
