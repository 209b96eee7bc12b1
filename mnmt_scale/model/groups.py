"""Groups of parameters by what they do, for norms and cosines of gradients per group (CATS, Fig. 3)."""

from __future__ import annotations

GROUPS = ("E.SA", "E.FC", "E.LN", "D.SA", "D.EA", "D.FC", "D.LN", "embeddings")
"""Encoder and decoder (E, D): self-attention, feed-forward network, layer norms; attention to the encoder (EA)."""

OTHER = "other"
"""Of parameters that the Transformer of this package has not."""

_PARTS = {"self_attn": "SA", "encoder_attn": "EA", "fc1": "FC", "fc2": "FC"}


def parameter_group(name: str) -> str:
    """The group of a weight by its name: "encoder.layers.0.fc1.weight" is in "E.FC". The final norms of encoder and decoder
    count among the norms; the table that embedding and output share is "embeddings"."""
    side, *parts = name.split(".")
    if side == "shared":
        return "embeddings"
    if side not in ("encoder", "decoder"):
        return OTHER
    if any(part.endswith("layer_norm") for part in parts):
        return f"{side[0].upper()}.LN"
    found = next((_PARTS[part] for part in parts if part in _PARTS), None)
    return f"{side[0].upper()}.{found}" if found else OTHER
