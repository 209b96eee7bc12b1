"""Settings of decoding and scoring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..settings import Section

Positive = Annotated[int, Field(gt=0)]


class EvaluationConfig(Section):
    """Beam search, scoring, and which weights are looked at."""

    beam: Positive = 5
    """1 is greedy search."""
    length_penalty: Annotated[float, Field(ge=0.0)] = 1.0
    """A hypothesis' score is its log-probability divided by length^length_penalty."""
    early_stopping: bool = False
    """Stop a sentence as soon as ``beam`` hypotheses are finished, although a running one could still become better."""
    max_ratio: Annotated[float, Field(gt=0.0)] = 2.0
    """Longest output: max_ratio * source tokens + max_extra."""
    max_extra: Positive = 20
    batch_tokens: Positive = 8192
    """Source tokens (padding included) decoded at once, times beam."""
    zero_shot: list[str] = Field(default_factory=list)
    """Directions to evaluate that were not trained (SOURCE-TARGET); their test sets come from the corpora."""
    classes: dict[Literal["low", "medium", "high"], list[str]] | None = None
    """Resource classes by name: directions (SOURCE-TARGET), or codes of languages that are not the pivot. A direction that
    no entry covers goes by its size, as all do where this is not given."""
    low_below: Positive = 100_000
    """Resource class by training sentences: low below this, high from ``high_from``, medium between."""
    high_from: Positive = 1_000_000
    bleu_tokenizer: Literal["auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "flores200", "char", "none"] = "auto"
    """``auto`` follows the target: 13a; zh; ja-mecab and ko-mecab where installed; for scripts without word spaces
    flores200 where its model lies on this machine, else characters with a warning. Nothing is downloaded."""
    flores200_model: str | None = None
    """The flores200 SentencePiece model. Default: ``$SACREBLEU/models/flores200sacrebleuspm`` where it exists."""
    bootstrap_samples: Positive = 1000
    """Resamples of the paired bootstrap of ``--against``."""
    bootstrap_seed: Annotated[int, Field(ge=0)] = 12345
    weights: Literal["best", "last", "average", "average_best", "ema"] = "best"
    """Which weights of a run: best or last checkpoint, mean of the last or best ``average`` ones, moving average."""
    average: Positive = 5
