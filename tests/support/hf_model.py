"""A small random M2M100 of transformers, and the same weights as the inference decoder sees them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mnmt_scale.model.config import ModelConfig

EOS, PAD = 2, 1


def random_m2m100(vocabulary: int = 70, *, seed: int = 0, spread: float = 0.35, layers: int = 2, width: int = 32):
    """An ``M2M100ForConditionalGeneration`` whose logits are spread enough that ``</s>`` is sometimes chosen."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    model = transformers.M2M100ForConditionalGeneration(
        transformers.M2M100Config(
            vocab_size=vocabulary,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=2 * width,
            decoder_ffn_dim=2 * width,
            max_position_embeddings=128,
            bos_token_id=0,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=EOS,
            scale_embedding=True,
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, spread if "shared" in name else 2.5 * width**-0.5)
            elif "norm" not in name:
                weight.normal_(0.0, 0.1)
        model.model.shared.weight[EOS] *= 2.5  # chosen, or far from it, in many states
    return model


def as_transformer(model):
    """What ``Decoder`` reads of a ``Transformer``, over the weights of the transformers model."""
    c = model.config
    config = ModelConfig(
        encoder_layers=c.encoder_layers,
        decoder_layers=c.decoder_layers,
        d_model=c.d_model,
        d_ffn=c.encoder_ffn_dim,
        heads=c.encoder_attention_heads,
        max_positions=c.max_position_embeddings,
    )
    inner = model.model
    positions = inner.decoder.embed_positions.weights
    return SimpleNamespace(
        config=config,
        pad_id=PAD,
        shared=inner.shared,
        encoder=inner.encoder,
        decoder=inner.decoder,
        positions=positions[: c.max_position_embeddings + 2],
    )


def _suppressor(forbidden: list[int]):
    """``suppress_tokens`` from the second token on: transformers refuses the forced tag among the suppressed ids."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class Suppress(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores if input_ids.shape[1] < 2 else scores.index_fill(1, torch.tensor(forbidden), -torch.inf)

    return LogitsProcessorList([Suppress()])


def generate(model, sources: list[list[int]], tag: int, limit: int, forbidden: list[int], **options) -> list[list[int]]:
    """``generate`` on one padded batch: the tokens after the tag, without ``</s>`` and padding."""
    longest = max(len(s) for s in sources)
    ids = torch.tensor([s + [PAD] * (longest - len(s)) for s in sources])
    out = model.generate(
        input_ids=ids,
        attention_mask=(ids != PAD).long(),
        forced_bos_token_id=tag,
        max_new_tokens=limit,
        logits_processor=_suppressor(forbidden),
        do_sample=False,
        **{"length_penalty": 1.0, **options},
    )
    found = []
    for row in out.tolist():
        assert row[:2] == [EOS, tag]
        tokens = [t for t in row[2:] if t != PAD]
        found.append(tokens[: tokens.index(EOS)] if EOS in tokens else tokens)
    return found
