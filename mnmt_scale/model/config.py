"""Sizes and variants of the Transformer, with the presets of the papers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..settings import Section

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]

PRESETS: dict[str, dict[str, int]] = {
    # name: layers (encoder, decoder), width, inner width, heads
    "tiny": dict(encoder_layers=2, decoder_layers=2, d_model=128, d_ffn=512, heads=4),
    "bilingual": dict(encoder_layers=2, decoder_layers=2, d_model=256, d_ffn=1024, heads=4),
    "ted4": dict(encoder_layers=4, decoder_layers=4, d_model=512, d_ffn=1024, heads=4),
    "ted": dict(encoder_layers=6, decoder_layers=6, d_model=512, d_ffn=1024, heads=4),
    "base": dict(encoder_layers=6, decoder_layers=6, d_model=512, d_ffn=2048, heads=8),
    "big": dict(encoder_layers=6, decoder_layers=6, d_model=1024, d_ffn=4096, heads=16),
    "m2m418": dict(encoder_layers=12, decoder_layers=12, d_model=1024, d_ffn=4096, heads=16),
}


class ModelConfig(Section):
    """Encoder-decoder Transformer; the defaults are an M2M100 weight for weight. A preset sets the sizes; sizes given
    beside it go over it."""

    preset: Literal["tiny", "bilingual", "ted4", "ted", "base", "big", "m2m418"] | None = None
    encoder_layers: Positive = 6
    decoder_layers: Positive = 6
    d_model: Positive = 512
    d_ffn: Positive = 2048
    heads: Positive = 8
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each block (M2M100) or after it (the original Transformer)."""
    norm_affine: bool = True
    """False: layer norms without weight and bias (CATS' "-LN")."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.0
    """Dropout on attention probabilities; refused with packed attention, which has none."""
    activation_dropout: Rate = 0.0
    attention: Literal["auto", "packed", "bucketed"] = "auto"
    """``packed``: variable-length attention over packed sentences (GPU); ``bucketed``: padded blocks of similar length;
    ``auto``: packed where the device has it."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    max_positions: Positive = 1024

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, table: Any):
        if isinstance(table, dict) and table.get("preset") in PRESETS:
            return {**PRESETS[table["preset"]], **table}
        return table

    @model_validator(mode="after")
    def _consistent(self):
        if self.d_model % (2 * self.heads):
            raise ValueError(f"d_model {self.d_model} must be an even multiple of heads {self.heads}")
        if self.attention == "packed" and self.attention_dropout:
            raise ValueError("attention_dropout is not possible with packed attention; set one of them")
        return self
