"""Weights under Hugging Face's names: an M2M100 state dict in and out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MnmtError, nearest
from .config import ModelConfig
from .transformer import Transformer

PREFIX = "model."
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
"""Copies of ``shared.weight`` that some files hold."""


def to_hf(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """State dict of ``M2M100ForConditionalGeneration`` (tied copies left out) from one of ``Transformer``; norms without
    parameters get weight 1 and bias 0.

    Raises:
        MnmtError: E701 for a post-norm model, which the class cannot hold; E405 for weights that are not this model's.
    """
    if config.norm != "pre":
        raise MnmtError(
            "E701",
            "the M2M100 class of Hugging Face is pre-norm, this model is post-norm",
            remedy="export to ctranslate2 or safetensors",
        )
    _require(state, _shapes(config, state), "E405", "these weights")
    out = {PREFIX + name: tensor for name, tensor in state.items()}
    like = state["shared.weight"]
    for name in _norm_names(config) if not config.norm_affine else ():
        fill = torch.ones if name.endswith("weight") else torch.zeros
        out[PREFIX + name] = fill(config.d_model, dtype=like.dtype, device=like.device)
    return out


def from_hf(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """State dict of ``Transformer`` from one of ``M2M100ForConditionalGeneration``, with or without the tied copies and
    the ``model.`` prefix.

    Raises:
        MnmtError: E703 when a weight is missing, unknown or of another shape, when embeddings and output are not tied,
            or when norms have parameters that ``norm_affine = false`` cannot hold.
    """
    found = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    found = {name: tensor for name, tensor in found.items() if not name.endswith("embed_positions.weights")}
    copies = {name: found.pop(name) for name in TIED if name in found}
    if "shared.weight" not in found and copies:
        found["shared.weight"] = next(iter(copies.values()))
    for name, tensor in copies.items():
        if not torch.equal(tensor, found["shared.weight"]):
            raise MnmtError("E703", f"{name} differs from shared.weight", remedy="only tied embeddings can be imported")
    for name in _norm_names(config) if not config.norm_affine else ():
        tensor = found.pop(name, None)
        if tensor is not None and not torch.all(tensor == (1 if name.endswith("weight") else 0)):
            raise MnmtError("E703", f"{name} is not trivial", remedy="import with model.norm_affine = true")
    _require(found, _shapes(config, found), "E703", "the directory")
    return found


def _shapes(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, torch.Size]:
    vocabulary_size = state["shared.weight"].shape[0] if "shared.weight" in state else 1
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Transformer(config, vocabulary_size).state_dict().items()}


def _norm_names(config: ModelConfig) -> list[str]:
    with torch.device("meta"):
        model = Transformer(config.model_copy(update={"norm_affine": True}), 1)
    return [name for name in model.state_dict() if "layer_norm" in name]


def _require(state: dict[str, Tensor], shapes: dict[str, torch.Size], code: str, where: str) -> None:
    for name in sorted(shapes.keys() - state.keys()):
        raise MnmtError(code, f"weight {name} is missing", where=where)
    for name in sorted(state.keys() - shapes.keys()):
        raise MnmtError(code, f"weight {name} is unknown to this model", where=where, remedy=nearest(name, shapes))
    for name, shape in shapes.items():
        if state[name].shape != shape:
            have, want = tuple(state[name].shape), tuple(shape)
            raise MnmtError(code, f"weight {name} is {have} where the settings ask for {want}", where=where)
