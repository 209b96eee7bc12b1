"""Sounds: the phonotactics of a proto-language and the regular sound changes that its daughters undergo.

A change is a list of rewrite rules over strings of phonemes (see ``scripts``), applied to every word of a language
without exception, inflected forms included; what they merge stays merged. Daughters inherit the changes of all
branches above them, in order, so cognates correspond regularly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from .draws import pick, shuffled
from .scripts import CONSONANTS, VOWELS

_V = f"[{VOWELS}]"
_C = f"[{CONSONANTS}]"


def _shift(pattern: str, source: str, target: str) -> tuple[re.Pattern[str], Callable[[re.Match[str]], str] | str]:
    table = dict(zip(source, target, strict=True))
    return re.compile(pattern.replace("X", f"[{source}]")), lambda m: table[m.group()]


def _rewrite(pattern: str, by: str) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern.replace("V", _V).replace("K", _C)), by


# X is the class that changes, V any vowel, K any consonant; shifts are simultaneous (a chain does not feed itself).
CHANGES = {
    "intervocalic voicing": _shift(f"(?<={_V})X(?={_V})", "ptksf", "bdgzv"),
    "intervocalic spirantisation": _shift(f"(?<={_V})X(?={_V})", "bdg", "vzx"),
    "stop shift": _shift("X", "pkbg", "fxpk"),
    "initial voicing": _shift("^X", "ptk", "bdg"),
    "final devoicing": _shift("X$", "bdgzvZ", "ptksfS"),
    "velar palatalisation": _shift("X(?=[ie])", "kgx", "CZS"),
    "dental palatalisation": _shift("X(?=i)", "tdsz", "CZSZ"),
    "p to h": _shift("^X", "p", "h"),
    "s to h": _shift("^X", "s", "h"),
    "uvularisation": _shift("X(?=[aou])", "k", "q"),
    "rhotacism": _shift(f"(?<={_V})X(?={_V})", "sz", "rr"),
    "l to r": _shift("X", "l", "r"),
    "final l to w": _shift(f"X(?={_C}|$)", "l", "w"),
    "w to v": _shift("X", "w", "v"),
    "v to w": _shift("X", "v", "w"),
    "glide hardening": _shift("^X", "j", "Z"),
    "s to sh": _shift("X", "s", "S"),
    "final nasal merger": _shift("X$", "m", "n"),
    "nasal velarisation": _shift("X$", "n", "N"),
    "back chain": _shift("X", "aou", "ouy"),
    "front chain": _shift("X", "aei", "eiy"),
    "lowering": _shift("X", "ei", "ae"),
    "schwa": _shift("X", "e", "@"),
    "rounding": _shift("X", "ou", "yo"),
    "umlaut of a": _shift(f"X(?={_C}+[ei])", "a", "e"),
    "umlaut of u": _shift(f"X(?={_C}+[ei])", "uo", "yy"),
    "loss of h": _rewrite("h", ""),
    "apocope": _rewrite("(VK+VK)V$", r"\1"),
    "syncope": _rewrite("(VK)V(KV)", r"\1\2"),
    "breaking of e": _rewrite("^(K*)e(?=K)", r"\1je"),
    "breaking of o": _rewrite("^(K*)o(?=K)", r"\1wo"),
    "liquid metathesis": _rewrite("^([ptkbdg])(V)([lr])(?=K)", r"\1\3\2"),
    "prothesis": _rewrite("^(?=r)", "e"),
    "nasal assimilation": _rewrite("n(?=[pbm])", "m"),
}


def apply(names: Sequence[str], word: str) -> str:
    """``word`` after the changes, in order. A change that would leave no vowel does not happen to that word."""
    for name in names:
        pattern, by = CHANGES[name]
        changed = pattern.sub(by, word, count=1 if name == "syncope" else 0)
        if any(p in VOWELS for p in changed):
            word = changed
    return word


def draw_changes(rng: Random, count: int, undergone: Sequence[str]) -> list[str]:
    """``count`` changes (fewer when the catalogue is used up) that the ancestors have not undergone."""
    return shuffled(rng, [name for name in CHANGES if name not in undergone])[:count]


@dataclass(frozen=True, slots=True)
class Phonotactics:
    """Sounds and syllables of a proto-language."""

    onsets: str
    vowels: str
    codas: str
    closed: float
    """Probability of a closed syllable inside a word."""

    def syllable(self, rng: Random, closed: bool) -> str:
        """Onset, vowel and, if closed, coda."""
        onset, vowel = pick(rng, self.onsets), pick(rng, self.vowels)
        return onset + vowel + (pick(rng, self.codas) if closed else "")

    def root(self, rng: Random, syllables: int) -> str:
        """Open last syllable or closed one as chance has it, so that affixes attach to either."""
        inner = [self.syllable(rng, rng.random() < self.closed) for _ in range(syllables - 1)]
        return "".join(inner) + self.syllable(rng, rng.random() < 0.5)

    def suffix(self, rng: Random) -> str:
        """Most end in a consonant, so that the loss of final vowels rarely wears them off wholly."""
        onset = pick(rng, self.onsets) if rng.random() < 0.4 else ""
        return onset + pick(rng, self.vowels) + (pick(rng, self.codas) if rng.random() < 0.75 else "")


def draw_phonotactics(rng: Random) -> Phonotactics:
    """An inventory of 11 to 14 consonants and 4 or 5 vowels, with 3 to 5 possible codas."""
    common = shuffled(rng, "ptkmnlrs")[:6]
    rare = shuffled(rng, "bdgfvzhxwjCSNq")[: 5 + int(rng.random() * 4)]
    onsets = "".join(sorted([c for c in common + rare if c != "N"]))
    vowels = "aiu" + "".join(sorted(shuffled(rng, "eo")[: 1 + int(rng.random() * 2)]))
    codas = "".join(sorted(shuffled(rng, "nrlskmtN")[: 3 + int(rng.random() * 3)]))
    return Phonotactics(onsets, vowels, codas, 0.1 + 0.35 * rng.random())
