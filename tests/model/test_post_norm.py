"""Post-norm against torch's own Transformer layers, which are the original ones."""

import math

import torch
from torch import nn

from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.transformer import Transformer, sinusoids
from tests.support.batches import batch_of, padded, random_lengths, unpadded

V, D = 60, 32


def test_equals_torch_post_norm_layers():
    sizes = dict(encoder_layers=2, decoder_layers=2, d_model=D, d_ffn=48, heads=4, dropout=0.0, norm="post")
    torch.manual_seed(0)
    model = Transformer(ModelConfig.model_validate(sizes), V).double()
    theirs = nn.Transformer(D, 4, 2, 2, 48, dropout=0.0, batch_first=True, norm_first=False).double()
    theirs.encoder.norm = theirs.decoder.norm = None
    for mine, other in zip(model.encoder.layers, theirs.encoder.layers, strict=True):
        _copy_layer(mine, other)
    for mine, other in zip(model.decoder.layers, theirs.decoder.layers, strict=True):
        _copy_layer(mine, other)
        _copy_attention(mine.encoder_attn, other.multihead_attn)
        other.norm2.load_state_dict(mine.encoder_attn_layer_norm.state_dict())
    batch = batch_of(random_lengths(7, seed=5), vocabulary=V)
    model.positions = sinusoids(model.positions.shape[0], D).double()
    inputs = padded(batch)

    def embed(ids):
        return model.shared(ids) * math.sqrt(D) + model.positions[2 : 2 + ids.shape[1]]

    hidden = theirs(
        embed(inputs["input_ids"]),
        embed(inputs["decoder_input_ids"]),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(batch.max_target, dtype=torch.float64),
        src_key_padding_mask=torch.log(inputs["attention_mask"].double()),
        memory_key_padding_mask=torch.log(inputs["attention_mask"].double()),
        tgt_is_causal=True,
    )
    torch.testing.assert_close(model.hidden(batch), unpadded(hidden, batch.target_offsets), rtol=1e-9, atol=1e-9)


def _copy_layer(mine, other):
    _copy_attention(mine.self_attn, other.self_attn)
    last = "norm3" if hasattr(other, "norm3") else "norm2"
    for a, b in (("fc1", "linear1"), ("fc2", "linear2"), ("self_attn_layer_norm", "norm1"), ("final_layer_norm", last)):
        getattr(other, b).load_state_dict(getattr(mine, a).state_dict())


def _copy_attention(mine, other):
    parts = (mine.q_proj, mine.k_proj, mine.v_proj)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        other.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
    other.out_proj.load_state_dict(mine.out_proj.state_dict())
