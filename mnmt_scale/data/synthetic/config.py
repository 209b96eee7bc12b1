"""Settings of the constructed languages."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ...errors import MnmtError, nearest
from ...settings import Section
from .scripts import SCRIPTS

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

MAX_FAMILIES, MAX_LANGUAGES = 20, 26


class SyntheticConfig(Section):
    """Which families to construct and how much text to write in each language."""

    seed: NonNegative = 1
    """Same seed, same bytes."""
    families: list[Positive] = [4, 3, 3, 1]
    """Languages of each family; 1 is an isolate. Codes are q, the family's letter, the language's letter."""
    depth: Positive = 2
    """Levels of branching between a proto-language and its daughters."""
    changes_per_branch: NonNegative = 2
    """Sound changes on each branch of a tree, each regular and applied in order."""
    replacement: Fraction = 0.05
    """Share of the roots that a branch gives up for another proto-word of the same meaning."""
    grammar_drift: Fraction = 0.25
    """Probability that a branch changes one feature of its grammar (never the order of subject, verb and object)."""
    scripts: list[str] | None = None
    """Script of each family in turn. Default: a built-in list, in which one language of the second family stands apart
    with a script of its own."""
    largest_sentences: Positive = 20_000
    smallest_sentences: Positive = 300
    """Training sentences of the largest and the smallest language; the others lie on a geometric row between them, so
    that every family has large and small languages."""
    dev_sentences: Positive = 100
    test_sentences: Positive = 200
    """The same meanings in all languages."""
    lexicon: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the built-in concepts that is used."""
    zipf: Annotated[float, Field(ge=0.0, le=2.0)] = 0.6
    """Exponent of the frequencies of concepts: 0 is uniform."""
    min_words: Positive = 3
    max_words: Positive = 13
    """Shortest and longest pivot sentence."""
    pivot: str = "en"
    """Code of the English-like side."""

    @model_validator(mode="after")
    def _possible(self):
        if not self.families or len(self.families) > MAX_FAMILIES or max(self.families) > MAX_LANGUAGES:
            what = f"families = {self.families}: 1 to {MAX_FAMILIES} families of 1 to {MAX_LANGUAGES} languages"
            raise MnmtError("E209", what, where="families")
        if self.smallest_sentences > self.largest_sentences:
            raise MnmtError("E209", "smallest_sentences exceeds largest_sentences", where="smallest_sentences")
        if self.max_words < 6 or self.min_words > self.max_words - 3:
            raise MnmtError("E209", "max_words must be at least 6 and 3 above min_words", where="max_words")
        for script in self.scripts or []:
            if script not in SCRIPTS:
                raise MnmtError("E209", f"no script {script!r}", where="scripts", remedy=nearest(script, SCRIPTS))
        return self
