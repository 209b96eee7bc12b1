"""A run as a Hugging Face directory: ``M2M100ForConditionalGeneration``, a fast tokenizer, generation settings.

Everything is written as JSON and safetensors by ourselves; transformers only reads it back for the parity check.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.packing import FRAME
from ..errors import MnmtError
from ..model.weights import to_hf
from ..runs import OpenedRun
from . import parity
from .hf_card import card
from .hf_tokenizer import piece_scores, set_template, single_source, write_tokenizer

WEIGHTS_NAME = "model.safetensors"
_DIFFERING_SHARE = 0.01
"""Share of lines whose ids may differ from ours, ties left out (stacked accents, decomposed Hangul); see hf_tokenizer."""
_TIE = 1e-3
"""Segmentations whose log-probabilities are closer than this: SentencePiece adds them up in fp32, ``tokenizers`` in fp64."""


def write_hf(run: OpenedRun, directory: Path) -> None:
    """Writes the directory.

    Raises:
        MnmtError: E701 when the class or the fast tokenizer cannot hold the model (post-norm, odd tokenizers).
    """
    state = {name: tensor.contiguous() for name, tensor in to_hf(run.model.state_dict(), run.model_config).items()}
    save_file(state, directory / WEIGHTS_NAME, metadata={"format": "pt"})
    _write_json(directory / "config.json", model_config(run))
    _write_json(directory / "generation_config.json", generation_config(run))
    write_tokenizer(run.tokenizer, run.tasks, run.model_config.max_positions, directory)
    run.tokenizer.save(directory)
    (directory / "README.md").write_text(card(run, single_source(run.tasks)), encoding="utf-8")


def model_config(run: OpenedRun) -> dict[str, Any]:
    """``config.json``."""
    config, tokenizer = run.model_config, run.tokenizer
    return {
        "architectures": ["M2M100ForConditionalGeneration"],
        "model_type": "m2m_100",
        "is_encoder_decoder": True,
        "vocab_size": tokenizer.vocabulary_size,
        "d_model": config.d_model,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.d_ffn,
        "decoder_ffn_dim": config.d_ffn,
        "activation_function": config.activation,
        "max_position_embeddings": config.max_positions,
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "bos_token_id": tokenizer.bos,
        "pad_token_id": tokenizer.pad,
        "eos_token_id": tokenizer.eos,
        "decoder_start_token_id": tokenizer.eos,
        "use_cache": True,
        "dtype": "float32",
        "language_tags": {language: tokenizer.tag_id(language) for language in tokenizer.languages},
        "directions": run.tasks.names,
    }


def generation_config(run: OpenedRun) -> dict[str, Any]:
    """``generation_config.json``: the run's own decoding settings; a single target language is forced."""
    tokenizer = run.tokenizer
    config = {
        "bos_token_id": tokenizer.bos,
        "pad_token_id": tokenizer.pad,
        "eos_token_id": tokenizer.eos,
        "decoder_start_token_id": tokenizer.eos,
        "num_beams": run.evaluation.beam,
        "max_length": run.model_config.max_positions,
        "suppress_tokens": parity.forbidden(tokenizer).tolist(),
    }
    if run.evaluation.beam > 1:
        config["length_penalty"] = run.evaluation.length_penalty
    targets = {task.target for task in run.tasks}
    if len(targets) == 1:
        config["forced_bos_token_id"] = tokenizer.tag_id(targets.pop())
    return config


def check_hf(run: OpenedRun, directory: Path) -> dict[str, Any]:
    """Loads the directory as a user would and holds it against the run; E702 at the first difference."""
    with quiet_transformers():
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        wrong = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info.get(kind, [])]
        if wrong:
            raise MnmtError("E702", f"transformers does not take weight {wrong[0]}", where=str(directory))
        model = model.eval()
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        data = parity.parity_data(run)
        ours = parity.greedy(run.model, run.tokenizer, data.samples)
        longest = sorted(range(len(ours)), key=lambda i: len(data.samples[i].source))[:: max(1, len(ours) // 12)]
        chosen = sorted(longest)
        targets = [[t for t in ours[i] if t != run.tokenizer.eos] for i in chosen]
        error = parity.check_logits(
            run.model, run.tokenizer, [data.samples[i] for i in chosen], targets, padded_logits(model), str(directory)
        )
        theirs = generate(model, run, data.samples)
        ties = parity.check_greedy(run, data.samples, ours, theirs, str(directory))
        tokens = check_tokenizer(run, tokenizer, data.text, str(directory))
    return {
        "logits_max_error": error,
        "greedy_lines": len(ours),
        "greedy_ties": ties,
        **tokens,
    }


def padded_logits(model: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What ``parity.check_logits`` calls, over a model of transformers."""

    def call(source: Tensor, lengths: Tensor, decoder_ids: Tensor) -> Tensor:
        mask = (torch.arange(source.shape[1]) < lengths[:, None]).long()
        return model(input_ids=source, attention_mask=mask, decoder_input_ids=decoder_ids).logits

    return call


@torch.inference_mode()
def generate(model: Any, run: OpenedRun, samples: Sequence[parity.Sample], limit: int = parity.LIMIT_TOKENS) -> list[list[int]]:
    """Greedy output of ``model.generate``, cut as ``parity.greedy`` cuts it."""
    tokenizer, out = run.tokenizer, []
    limit = min(limit, run.model_config.max_positions - FRAME)
    for part in _by_target(samples):
        source, lengths = parity.framed_sources(part, tokenizer)
        rows = model.generate(
            input_ids=source,
            attention_mask=(torch.arange(source.shape[1]) < lengths[:, None]).long(),
            forced_bos_token_id=tokenizer.tag_id(part[0].task.target),
            suppress_tokens=parity.forbidden(tokenizer).tolist(),
            num_beams=1,
            do_sample=False,
            max_new_tokens=limit + 1,
        )
        for row in rows[:, 2:].tolist():  # behind </s> and the tag
            out.append(row[: row.index(tokenizer.eos) + 1] if tokenizer.eos in row else row)
    return out


def _by_target(samples: Sequence[parity.Sample], most: int = 25) -> Iterator[Sequence[parity.Sample]]:
    """Runs of samples with one target language, in order."""
    start = 0
    for end in range(1, len(samples) + 1):
        if end == len(samples) or end - start == most or samples[end].task.target != samples[start].task.target:
            yield samples[start:end]
            start = end


def check_tokenizer(run: OpenedRun, fast: Any, lines: Sequence[str], where: str) -> dict[str, int]:
    """Ids of every line against ours, and text back from ours, which must be the same for all.

    Returns:
        How many lines were looked at; how many differ by a segmentation of equal probability; how many differ otherwise (at
        most one in a hundred may).

    Raises:
        MnmtError: E702.
    """
    tokenizer, scores = run.tokenizer, piece_scores(run.tokenizer)
    source, differing, ties = single_source(run.tasks), [], 0
    languages = sorted({task.source for task in run.tasks})
    for number, (line, ids) in enumerate(zip(lines, tokenizer.encode(list(lines)), strict=True)):
        language = languages[number % len(languages)]
        if source is None:
            set_template(fast.backend_tokenizer, tokenizer, language)
        found = fast(line, split_special_tokens=True)["input_ids"]
        wanted = [tokenizer.tag_id(language), *ids, tokenizer.eos]
        if found != wanted:
            gap = sum(scores[i] for i in found) - sum(scores[i] for i in wanted)
            if abs(gap) < _TIE and fast.decode(found) == fast.decode(wanted):
                ties += 1
            else:
                differing.append(line)
        text = fast.decode(wanted, skip_special_tokens=True)
        if text != tokenizer.decode([ids])[0]:
            raise MnmtError("E702", f"the fast tokenizer decodes {line!r} as {text!r}", where=where)
    if source is None:
        set_template(fast.backend_tokenizer, tokenizer, None)
    if len(differing) > _DIFFERING_SHARE * len(lines):
        what = f"the fast tokenizer splits {len(differing)} of {len(lines)} lines in another way, first {differing[0]!r}"
        raise MnmtError("E702", what, where=where)
    return {"tokenizer_lines": len(lines), "tokenizer_ties": ties, "tokenizer_differing": len(differing)}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
