"""Constructed languages for tests: the default set, a small corpus of it, and meanings made by hand."""

from __future__ import annotations

from pathlib import Path

from mnmt_scale.data.synthetic import SyntheticConfig
from mnmt_scale.data.synthetic.concepts import concepts
from mnmt_scale.data.synthetic.meaning import DEFINITE, PAST, Clause, NounPhrase

DEFAULT = SyntheticConfig()
SMALL = SyntheticConfig(largest_sentences=1200, smallest_sentences=100, dev_sentences=40, test_sentences=150)


def lines(out: Path, code: str, split: str, side: str) -> list[str]:
    pair = "-".join(sorted((code, "en")))
    text = (out / "supervised" / pair / f"opus.{pair}-{split}.{side}").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return text[:-1].split("\n")


def make(kind, tense=PAST, **parts):
    clause = Clause(kind, tense)
    for name, value in parts.items():
        setattr(clause, name, value)
    return clause


def noun(word, **kwargs):
    numbers = [n.singular for n in concepts().nouns]
    phrase = NounPhrase(numbers.index(word), plural=kwargs.pop("plural", 0), definite=kwargs.pop("definite", DEFINITE))
    for name, value in kwargs.items():
        setattr(phrase, name, value)
    return phrase


def verb(base):
    return [v.base for v in concepts().verbs].index(base)
