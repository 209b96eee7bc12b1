"""Grammars: typological features of a family, and how a branch may drift from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

from .draws import pick, shuffled

ORDERS = ("SOV", "VSO", "SVO", "VOS", "OVS")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What distinguishes the grammars of families. ``before`` and ``after`` are said of the dependent."""

    order: str
    """Of subject, verb and object."""
    adjective: str
    genitive: str
    relative: str
    """``before``: a participle clause with a verbal suffix; ``after``: a clause with a relative word."""
    numeral: str
    determiner: str
    """``before`` or ``after`` the whole noun phrase."""
    adposition: str
    """``before`` or ``after`` the noun phrase; ``case``: common ones are case endings, the others postpositions."""
    morphology: str
    """``isolating``: no inflection, particles; ``agglutinative``: one suffix for each feature; ``fusional``: endings
    that express gender, number and case at once, and agreement of adjectives."""
    genders: int
    cases: bool
    article: str
    """Definite nouns take a ``word`` or a ``suffix``; or only indefinite ones are marked, by a word: ``indefinite``."""
    numeral_plural: bool
    """Nouns after a numeral are in the plural."""
    verb_agreement: bool
    drops_pronouns: bool
    """Subjects of the first and second person are left out."""
    tense: str
    """``suffix`` or ``particle``."""
    negation: str
    """``before`` or ``after`` the verb, or ``suffix``."""
    question: str
    """Place of the question particle: ``first`` or ``last``."""
    copula: str
    """``verb``, or ``zero`` in the present."""
    possession: str
    """``have``: a verb; ``at``: "at me is a book"."""
    owner: str
    """Of a possessive pronoun: ``word`` or ``suffix``."""
    adverb: str
    """``first`` or ``last`` in the clause, or in the ``middle``: right before the verb."""
    recipient: str
    """``before`` or ``after`` the object."""

    def described(self) -> dict[str, object]:
        """All features by name."""
        return asdict(self)


# Features that a branch may change without touching the frame of the family.
_DRIFT: dict[str, tuple[Any, ...]] = {
    "negation": ("before", "after"),
    "question": ("first", "last"),
    "adverb": ("first", "last"),
    "recipient": ("before", "after"),
    "numeral": ("before", "after"),
    "possession": ("have", "at"),
    "numeral_plural": (True, False),
    "copula": ("verb", "zero"),
}


def family_orders(rng: Random, families: int) -> list[str]:
    """One order of subject, verb and object for each family; all different as long as there are enough."""
    out: list[str] = []
    while len(out) < families:
        out += shuffled(rng, ORDERS[:4]) if not out else shuffled(rng, ORDERS)
    return out[:families]


def draw_grammar(rng: Random, order: str) -> Grammar:
    """A grammar that is harmonic more often than not: dependents lean to the side on which the object stands.

    No family is English with other words: determiners follow the noun where adjectives or prepositions can precede it,
    and families of the order of English (SVO) also put adjectives and owners after it and have no word for "the".
    """
    head_final = order.index("O") < order.index("V")
    like_english = order == "SVO"

    def lean(probability: float = 0.85) -> str:
        """``before`` in head-final families, with the given probability."""
        return "before" if head_final == (rng.random() < probability) else "after"

    if head_final:
        morphology = pick(rng, ("agglutinative", "agglutinative", "fusional"))
    elif like_english:
        morphology = pick(rng, ("isolating", "isolating", "agglutinative"))
    else:
        morphology = pick(rng, ("isolating", "fusional", "fusional", "agglutinative"))
    isolating, fusional = morphology == "isolating", morphology == "fusional"
    suffixing = morphology == "agglutinative"
    agreement = not isolating and rng.random() < 0.8
    suffix, word = "indefinite" if isolating else "suffix", "indefinite" if like_english else "word"
    article = pick(rng, ("indefinite", suffix, word))
    adjective = "after" if like_english else lean(0.7)
    determiner = pick(rng, ("before", "after"))
    return Grammar(
        order=order,
        adjective=adjective,
        genitive="after" if like_english else lean(),
        relative="before" if head_final and suffixing else "after",
        numeral=lean(0.5),
        determiner=determiner if head_final and adjective == "after" else "after",
        adposition="case" if suffixing and rng.random() < 0.6 else "after" if head_final else "before",
        morphology=morphology,
        genders=2 + int(rng.random() * 2) if fusional else 0,
        cases=not isolating and (head_final or rng.random() < 0.6),
        article=article,
        numeral_plural=not isolating and rng.random() < 0.5,
        verb_agreement=agreement,
        drops_pronouns=agreement and rng.random() < 0.7,
        tense="particle" if isolating else "suffix",
        negation=pick(rng, ("before", "after")) if not suffixing else pick(rng, ("suffix", "suffix", "after")),
        question=pick(rng, ("first", "last", "last")),
        copula=pick(rng, ("verb", "zero")),
        possession=pick(rng, ("have", "at")),
        owner="suffix" if suffixing and rng.random() < 0.6 else "word",
        adverb=pick(rng, ("first", "last")) if not head_final else pick(rng, ("first", "middle")),
        recipient=pick(rng, ("before", "after")),
    )


def drift(rng: Random, grammar: Grammar, probability: float) -> tuple[Grammar, tuple[str, ...]]:
    """The grammar of a branch and the names of what changed: one feature, with the given probability."""
    if rng.random() >= probability:
        return grammar, ()
    for name in shuffled(rng, sorted(_DRIFT)):
        value = getattr(grammar, name)
        choices: list[Any] = [v for v in _DRIFT[name] if v != value]
        if value in _DRIFT[name]:
            change: dict[str, Any] = {name: pick(rng, choices)}
            return replace(grammar, **change), (name,)
    raise AssertionError("every grammar has a feature that can drift")
