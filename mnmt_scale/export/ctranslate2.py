"""A run as a CTranslate2 model, filled straight from the weights: pre-norm and post-norm, no Hugging Face in between.

The model takes ``translate_batch([["__fr__", pieces..., "</s>"]], target_prefix=[["__en__"]])``; the pieces are those of the
SentencePiece model that lies beside it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.packing import FRAME
from ..data.tokenizer import MODEL_NAME, Tokenizer
from ..errors import MnmtError
from ..runs import OpenedRun
from . import parity

QUANTIZATIONS = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")
LAYER_NORM_EPSILON = 1e-5
_SHIFT_TOLERANCE = 0.1
"""Nats per token that quantization may take off the mean log-likelihood of the model's own greedy output."""


def write_ctranslate2(run: OpenedRun, directory: Path, quantization: str | None = None) -> None:
    """Writes ``model.bin``, ``config.json``, ``shared_vocabulary.json`` and the tokenizer's files.

    Raises:
        MnmtError: E701 when CTranslate2 cannot hold the model.
    """
    spec = build_spec(run)
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(directory))
    run.tokenizer.save(directory)


def build_spec(run: OpenedRun) -> Any:
    """A ``ctranslate2.specs.TransformerSpec`` with the run's weights, fp32."""
    from ctranslate2.specs import TransformerSpec
    from ctranslate2.specs.common_spec import Activation

    config, tokenizer, pieces = run.model_config, run.tokenizer, run.tokenizer.pieces()
    if len(set(pieces)) != len(pieces):
        raise MnmtError("E701", "its vocabulary holds a piece twice, CTranslate2 names pieces by text", where=str(run.path))
    activation = {"relu": Activation.RELU, "gelu": Activation.GELU, "silu": Activation.SWISH}[config.activation]
    layers = (config.encoder_layers, config.decoder_layers)
    spec = TransformerSpec.from_config(layers, config.heads, pre_norm=config.norm == "pre", activation=activation)
    # copies: CTranslate2 quantizes tensors in place
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in run.model.state_dict().items()}
    positions = run.model.positions[run.model.pad_id + 1 :].float().contiguous()
    _fill_stack(spec.encoder, state, "encoder", config, positions, spec.encoder.embeddings[0])
    _fill_stack(spec.decoder, state, "decoder", config, positions, spec.decoder.embeddings)
    spec.decoder.projection.weight = state["shared.weight"]
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.bos_token = pieces[tokenizer.bos]
    spec.config.eos_token = pieces[tokenizer.eos]
    spec.config.unk_token = pieces[tokenizer.unk]
    spec.config.decoder_start_token = pieces[tokenizer.eos]
    spec.config.layer_norm_epsilon = LAYER_NORM_EPSILON
    return spec


def _fill_stack(stack: Any, state: dict[str, Tensor], name: str, config: Any, positions: Tensor, embeddings: Any) -> None:
    embeddings.weight = state["shared.weight"]
    stack.scale_embeddings = math.sqrt(config.d_model)
    stack.position_encodings.encodings = positions
    if config.norm == "pre":
        _fill_norm(stack.layer_norm, state, f"{name}.layer_norm", config.d_model)
    for i, layer in enumerate(stack.layer):
        at = f"{name}.layers.{i}"
        _fill_attention(layer.self_attention, state, f"{at}.self_attn", fused=("q_proj", "k_proj", "v_proj"))
        _fill_norm(layer.self_attention.layer_norm, state, f"{at}.self_attn_layer_norm", config.d_model)
        if name == "decoder":
            _fill_attention(layer.attention, state, f"{at}.encoder_attn", fused=("q_proj",))
            _fill_norm(layer.attention.layer_norm, state, f"{at}.encoder_attn_layer_norm", config.d_model)
        _fill_linear(layer.ffn.linear_0, state, [f"{at}.fc1"])
        _fill_linear(layer.ffn.linear_1, state, [f"{at}.fc2"])
        _fill_norm(layer.ffn.layer_norm, state, f"{at}.final_layer_norm", config.d_model)


def _fill_attention(attention: Any, state: dict[str, Tensor], name: str, fused: Sequence[str]) -> None:
    """``fused``: projections in the first linear layer; cross-attention has keys and values in a second one."""
    _fill_linear(attention.linear[0], state, [f"{name}.{part}" for part in fused])
    if len(fused) == 1:
        _fill_linear(attention.linear[1], state, [f"{name}.k_proj", f"{name}.v_proj"])
    _fill_linear(attention.linear[-1], state, [f"{name}.out_proj"])


def _fill_linear(linear: Any, state: dict[str, Tensor], names: Sequence[str]) -> None:
    linear.weight = torch.cat([state[f"{name}.weight"] for name in names])
    linear.bias = torch.cat([state[f"{name}.bias"] for name in names])


def _fill_norm(norm: Any, state: dict[str, Tensor], name: str, width: int) -> None:
    """A norm without parameters (``norm_affine = false``) gets weight 1 and bias 0."""
    norm.gamma = state.get(f"{name}.weight", torch.ones(width))
    norm.beta = state.get(f"{name}.bias", torch.zeros(width))


def check_ctranslate2(run: OpenedRun, directory: Path, quantization: str | None = None) -> dict[str, Any]:
    """Translates with the directory and holds it against the run.

    Unquantized: log-likelihoods within 1e-4 and equal greedy output. Quantized: the mean
    log-likelihood of a token moves by 0.1 nats at most; how many greedy outputs are equal is reported.

    Raises:
        MnmtError: E702 at the first difference.
    """
    import ctranslate2

    if Tokenizer.load(directory / MODEL_NAME).fingerprint != run.tokenizer.fingerprint:
        raise MnmtError("E702", "tokenizer was not written as it is", where=str(directory))
    with _quiet():
        translator = ctranslate2.Translator(str(directory), device="cpu", intra_threads=torch.get_num_threads())
    data = parity.parity_data(run)
    ours = parity.greedy(run.model, run.tokenizer, data.samples)
    errors = _score_errors(translator, run, data.samples, ours)
    theirs = translate(translator, run, data.samples)
    largest, shift = float(errors.abs().max()), float(errors.mean())
    if quantization not in (None, "float32"):
        if not abs(shift) <= _SHIFT_TOLERANCE:
            what = f"{quantization} moves log-likelihoods by {shift:.3f} nats per token (allowed {_SHIFT_TOLERANCE})"
            raise MnmtError("E702", what, where=str(directory), remedy="export without --quantization")
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
        return {"score_shift": shift, "score_max_error": largest, "greedy_lines": len(ours), "greedy_equal": equal}
    if not largest <= parity.TOLERANCE:
        what = f"log-likelihoods differ by {largest:.2e} from those of the trained model (allowed {parity.TOLERANCE:.0e})"
        raise MnmtError("E702", what, where=str(directory))
    ties = parity.check_greedy(run, data.samples, ours, theirs, str(directory))
    return {"score_max_error": largest, "greedy_lines": len(ours), "greedy_ties": ties}


def translate(
    translator: Any, run: OpenedRun, samples: Sequence[parity.Sample], limit: int = parity.LIMIT_TOKENS
) -> list[list[int]]:
    """Greedy output, cut as ``parity.greedy`` cuts it."""
    tokenizer, pieces = run.tokenizer, run.tokenizer.pieces()
    limit = min(limit, run.model_config.max_positions - FRAME)
    ids = {piece: i for i, piece in enumerate(pieces)}
    results = translator.translate_batch(
        [_source_pieces(s, tokenizer, pieces) for s in samples],
        target_prefix=[[pieces[tokenizer.tag_id(s.task.target)]] for s in samples],
        beam_size=1,
        max_decoding_length=limit + 1,
        max_input_length=0,
        suppress_sequences=[[pieces[i]] for i in parity.forbidden(tokenizer).tolist()],
        return_end_token=True,
        max_batch_size=25,
    )
    return [[ids[piece] for piece in result.hypotheses[0]][1:] for result in results]


def _score_errors(translator: Any, run: OpenedRun, samples: Sequence[parity.Sample], outputs: Sequence[list[int]]) -> Tensor:
    """Log-likelihood of each token of teacher-forced ``outputs``, theirs less ours."""
    tokenizer, pieces = run.tokenizer, run.tokenizer.pieces()
    targets = [[t for t in row if t != tokenizer.eos] for row in outputs]
    scored = translator.score_batch(
        [_source_pieces(s, tokenizer, pieces) for s in samples],
        [[pieces[i] for i in (tokenizer.tag_id(s.task.target), *t)] for s, t in zip(samples, targets, strict=True)],
        max_input_length=0,
        max_batch_size=25,
    )
    logits = parity.reference_logits(run.model, tokenizer, samples, targets)
    errors = []
    for sample, target, rows, score in zip(samples, targets, logits, scored, strict=True):
        labels = torch.tensor([tokenizer.tag_id(sample.task.target), *target, tokenizer.eos])
        ours = rows.log_softmax(1).gather(1, labels[:, None])[:, 0]
        errors.append(torch.tensor(score.log_probs) - ours)
    return torch.cat(errors)


def _source_pieces(sample: parity.Sample, tokenizer: Tokenizer, pieces: list[str]) -> list[str]:
    return [pieces[i] for i in (tokenizer.tag_id(sample.task.source), *sample.source, tokenizer.eos)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that this machine computes in another type than the one that is stored."""
    import ctranslate2

    level = ctranslate2.get_log_level()
    ctranslate2.set_log_level(logging.ERROR)
    try:
        yield
    finally:
        ctranslate2.set_log_level(level)
