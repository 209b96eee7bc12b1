"""Names and shapes of Hugging Face's M2M100, in and out."""

import pytest
import torch

from mnmt_scale.errors import MnmtError
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.model.weights import from_hf, to_hf

V = 17


def config(**settings) -> ModelConfig:
    sizes = dict(encoder_layers=1, decoder_layers=2, d_model=16, d_ffn=24, heads=2)
    return ModelConfig.model_validate(sizes | settings)


def test_names_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.M2M100ForConditionalGeneration(
        transformers.M2M100Config(
            vocab_size=V,
            d_model=16,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
        )
    ).state_dict()
    mine = to_hf(Transformer(config(), V).state_dict(), config())
    tied = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    assert mine.keys() == theirs.keys() - tied
    assert all(mine[name].shape == theirs[name].shape for name in mine)
    back = from_hf(theirs, config())
    Transformer(config(), V).load_state_dict(back)
    torch.testing.assert_close(back["shared.weight"], theirs["model.shared.weight"])


def test_round_trip_with_missing_norm_parameters():
    c = config(norm_affine=False)
    state = Transformer(c, V).state_dict()
    out = to_hf(state, c)
    assert torch.equal(out["model.decoder.layers.1.encoder_attn_layer_norm.weight"], torch.ones(16))
    assert torch.equal(out["model.encoder.layer_norm.bias"], torch.zeros(16))
    back = from_hf(out, c)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_post_norm_is_refused():
    c = config(norm="post")
    with pytest.raises(MnmtError, match=r"E701.*post-norm.*ctranslate2"):
        to_hf(Transformer(c, V).state_dict(), c)


def _hf_state():
    return to_hf(Transformer(config(), V).state_dict(), config())


def _without(state):
    del state["model.encoder.layers.0.fc1.bias"]


def _unknown(state):
    state["model.encoder.layers.0.fc3.bias"] = torch.zeros(24)


def _shape(state):
    state["model.encoder.layers.0.fc1.bias"] = torch.zeros(25)


def _untied(state):
    state["lm_head.weight"] = state["model.shared.weight"] + 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without, "fc1.bias is missing"),
        (_unknown, "fc3.bias is unknown.*fc[12].bias"),
        (_shape, r"fc1.bias is \(25,\).*\(24,\)"),
        (_untied, "lm_head.weight differs"),
    ],
)
def test_weights_that_do_not_fit_are_refused(damage, message):
    state = _hf_state()
    damage(state)
    with pytest.raises(MnmtError, match=f"E703.*{message}"):
        from_hf(state, config())


def test_norms_that_the_settings_cannot_hold_are_refused():
    state = _hf_state()
    state["model.encoder.layer_norm.bias"] = torch.full((16,), 0.5)
    with pytest.raises(MnmtError, match="E703.*layer_norm.bias.*norm_affine"):
        from_hf(state, config(norm_affine=False))
