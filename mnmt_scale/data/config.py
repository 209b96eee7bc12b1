"""Settings of corpora, cleaning, tokenizer, sampling and batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..settings import Section

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class CorpusConfig(Section):
    """One source of parallel text; several may be listed, each pair may occur once in all of them."""

    reader: Literal["opus", "moses", "tsv", "jsonl", "parquet"] = "opus"
    """``opus``: a tree supervised/{l1}-{l2}/opus.{l1}-{l2}-{split}.{l}; ``moses``: files PREFIX.{l}; ``tsv``: two
    columns; ``jsonl`` and ``parquet``: one record a sentence pair, fields or columns named by language (or a field
    ``translation`` that holds them). Files may end in .gz, .zst or .xz."""
    path: str | None = None
    """``opus``: the directory that holds ``supervised`` (or the pairs themselves)."""
    pairs: list[str] | None = None
    """``opus``: only these pairs (l1-l2 in any order). Default: every pair found (and, with a pivot, that has it)."""
    pair: str | None = None
    """Other readers: the pair, l1-l2; in ``tsv`` l1 is the first column."""
    train: str | None = None
    """Other readers: file, or prefix for ``moses``, of the training split. Likewise ``dev`` and ``test``."""
    dev: str | None = None
    test: str | None = None

    @model_validator(mode="after")
    def _complete(self):
        if self.reader == "opus" and self.path is None:
            raise ValueError("reader 'opus' needs a path")
        if self.reader != "opus" and (self.pair is None or self.train is None):
            raise ValueError(f"reader '{self.reader}' needs pair and train")
        return self


class CleanConfig(Section):
    """What is left out of the training text (never of dev and test), counted per reason."""

    max_words: Positive = 250
    """Longest side, in words separated by white space."""
    max_characters: Positive = 2500
    """Longest side, in characters (unsegmented scripts have no words)."""
    max_ratio: Annotated[float, Field(ge=1.0)] = 4.0
    """Largest quotient of the sides' lengths in characters, each plus 10 so that short sentences pass."""
    duplicates: Literal["pair", "off"] = "pair"
    """``pair``: keep the first of sentence pairs that are equal on both sides."""
    copies: Literal["drop", "keep"] = "drop"
    """Pairs whose two sides are equal."""
    overlap: Literal["pair", "either_side", "off"] = "pair"
    """Training sentences that occur in dev or test of the same corpus: both sides in one line, or either side."""
    max_overlap: Fraction = 0.5
    """Refuse (E207) when more than this share of a pair's training lines is in dev or test."""
    on_bad_line: Literal["refuse", "drop"] = "refuse"
    """Invalid UTF-8 and NUL bytes: stop with file, line and byte, or drop the line on both sides and count it."""
    on_crlf: Literal["refuse", "strip"] = "refuse"
    """Files whose lines end in CR LF, or that begin with a byte order mark."""


class HoldOutConfig(Section):
    """Dev and test sets drawn from the training text of pairs that come without them."""

    dev_sentences: NonNegative = 0
    """Of each pair without a dev split; 0 draws none."""
    test_sentences: NonNegative = 0
    by: Literal["pair", "pivot"] = "pair"
    """``pair``: random lines of each pair for itself; in a multi-parallel corpus one pair's test sentences are then training
    text of others (counted). ``pivot``: the same sentences of the pivot for all pairs; every pair gives up the share of
    sentences that the smallest pair needs."""
    seed: NonNegative = 1


class TokenizerConfig(Section):
    """SentencePiece, trained on a temperature-sampled mix of all languages."""

    vocabulary_size: Positive = 32000
    """Pieces in all, special symbols, language tags and 256 bytes included."""
    model: Literal["unigram", "bpe"] = "unigram"
    sample_lines: Positive = 2_000_000
    """Lines to train on, drawn from all languages with ``temperature``."""
    temperature: Annotated[float, Field(gt=0)] = 5.0
    """Share of a language in the sample is proportional to size^(1/temperature)."""
    character_coverage: Annotated[float, Field(gt=0.9, le=1.0)] = 0.9995
    seed: NonNegative = 1
    """Decides which lines are drawn."""
    path: str | None = None
    """Use this SentencePiece model instead of training one; it must hold the tag of every language."""


class DataConfig(Section):
    """Which text, which directions, where the token store lies."""

    store: str = "store"
    """Directory of the token store: ``mnmt prepare`` writes it, training reads it."""
    corpora: list[CorpusConfig] = Field(default_factory=list)
    directions: Literal["many-to-one", "one-to-many", "many-to-many"] = "many-to-one"
    pivot: str = "en"
    """The one language of many-to-one and one-to-many."""
    tasks: list[str] | None = None
    """Exactly these directions (SOURCE-TARGET) instead."""
    max_tokens: Positive = 256
    """Longest sentence on either side after tokenization, tag and end included; longer ones are dropped in training
    and cut (with a count) in dev and test."""
    clean: CleanConfig = CleanConfig()
    hold_out: HoldOutConfig = HoldOutConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()


class SamplingConfig(Section):
    """How often each direction is seen. The expected share of a task over steps equals its p exactly."""

    kind: Literal["temperature", "uniform", "fixed"] = "temperature"
    temperature: Annotated[float, Field(gt=0)] = 5.0
    """p(task) is proportional to size^(1/temperature); 1 is proportional, infinity (``inf``) uniform."""
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    """``fixed``: p by direction name; normalised; a direction left out gets 0."""
    tasks_per_batch: NonNegative = 0
    """K tasks a step; 0: all of them. More than there are is refused (E104)."""
    within: Literal["proportional", "equal"] = "proportional"
    """How the tokens of a step are shared. ``proportional``: K different tasks, those with p > 1/K in every step with
    share p, the others drawn for equal rests. ``equal``: K equal slots, of which a task with p > 1/K holds several."""
    unit: Literal["tokens", "sentences"] = "tokens"
    """What a share is counted in: tokens of the longer side, tag and end included, or sentences (of which a step has
    batch_tokens divided by the mean length under p)."""

    @model_validator(mode="after")
    def _weights_fit_kind(self):
        if (self.kind == "fixed") != (self.weights is not None):
            raise ValueError("kind = 'fixed' and weights belong together")
        return self


class BatchConfig(Section):
    """How much text a step holds, and how it is cut up."""

    batch_tokens: Positive = 16384
    """Budget of one optimizer step over all ranks and micro-batches. Of a sentence, the tokens of the longer side count,
    tag and end included; a step is this large on average, and larger by less than one sentence per task at most."""
    accumulation: Positive = 1
    """Micro-batches per step on each rank."""
    max_waste: Fraction = 0.15
    """Share of padding among the cells of either side's attention blocks, above which another block is opened (hardware
    without packed attention)."""
    prefetch: bool = True
    """Make the next step's batches in a thread while the present ones are used; the results are the same."""
