"""A run directory as a training leaves it, with random weights: what export, translation and evaluation open."""

from __future__ import annotations

import random
from pathlib import Path

import tomli_w
import torch

from mnmt_scale.data.config import DataConfig, TokenizerConfig
from mnmt_scale.data.tokenizer import Tokenizer, train_tokenizer
from mnmt_scale.engine.checkpoint import write_weights
from mnmt_scale.model.config import ModelConfig
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.tasks import parse_direction

SYLLABLES = {
    "latin": "ba de ki lo mu na po ra si tu \u00e9 \u00f1o \u00fc",
    "cyrillic": "\u0431\u0430 \u0434\u0435 \u043a\u0438 \u043b\u043e \u043c\u0443 \u043d\u0430 \u043f\u043e",
    "han": "\u6cb3 \u8fb9 \u7684 \u623f \u5b50 \u53bb \u5e74 \u5356",
}


def lines_of(language: str, count: int = 300) -> list[str]:
    """Seeded nonsense in the script of the language: words of one to four syllables, a full stop."""
    rng = random.Random(language)
    script = {"ru": "cyrillic", "ky": "cyrillic", "zh": "han"}.get(language, "latin")
    glue = "" if script == "han" else " "
    words = ["".join(rng.choices(SYLLABLES[script].split(), k=rng.randint(1, 4))) for _ in range(80)]
    return [glue.join(rng.choices(words, k=rng.randint(2, 9))) + "." for _ in range(count)]


def train_tiny_tokenizer(
    directory: Path, languages: list[str], model: str = "unigram", vocabulary_size: int = 400
) -> Tokenizer:
    """A SentencePiece model over ``lines_of`` every language, as ``directory/tokenizer.model``."""
    config = TokenizerConfig(vocabulary_size=vocabulary_size, model=model, character_coverage=1.0)
    text = {language: lines_of(language) for language in languages}
    return train_tokenizer(config, text, languages, directory / "tokenizer.model")


def make_run(run: Path, directions: list[str], *, tokenizer: str = "unigram", seed: int = 0, **sizes) -> Path:
    """Writes ``run``: config.toml, tokenizer.model and one checkpoint of random weights.

    Args:
        directions: ``data.tasks``.
        tokenizer: ``unigram`` or ``bpe``.
        sizes: of ``ModelConfig``, over two layers a side of width 32.
    """
    run.mkdir(parents=True)
    languages = sorted({code for name in directions for code in parse_direction(name)})
    trained = train_tiny_tokenizer(run, languages, tokenizer)
    defaults = dict(encoder_layers=2, decoder_layers=2, d_model=32, d_ffn=64, heads=4, max_positions=96)
    config = ModelConfig(**{**defaults, **sizes})
    data = DataConfig(store=str(run / "no-store"), tasks=directions, max_tokens=64)
    table = {
        "name": run.name,
        "data": data.model_dump(mode="json", exclude_none=True),
        "model": config.model_dump(mode="json", exclude_none=True),
    }
    (run / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    write_weights(run, random_weights(config, trained.vocabulary_size, seed))
    return run


def random_weights(config: ModelConfig, vocabulary_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights whose output is far from uniform, with trained-looking norms and biases, and ``</s>`` chosen now and then."""
    torch.manual_seed(seed)
    model = Transformer(config, vocabulary_size)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.2 * torch.randn_like(weight))
            elif weight.dim() == 1:
                weight.normal_(0.0, 0.1)
            else:
                weight.normal_(0.0, 0.35 if name == "shared.weight" else 2.5 * config.d_model**-0.5)
        model.shared.weight[2] *= 2.5
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
