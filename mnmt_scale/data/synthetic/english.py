"""The pivot side: a small grammar of English with its irregular words, auxiliaries, articles and particles."""

from __future__ import annotations

from .concepts import NUMERALS, PRONOUNS, Concepts
from .meaning import (
    DEFINITE,
    DITRANSITIVE,
    EXISTS,
    FUTURE,
    HAS,
    INDEFINITE,
    IS_ADJECTIVE,
    PAST,
    THIS,
    TRANSITIVE,
    Clause,
    NounPhrase,
)

LABEL = "\x1f"
"""Between a word and the name of what it expresses, in traced sentences."""


def traced(form: str, label: str) -> str:
    """Words that remember which concept they came from."""
    return form + LABEL + label


def untraced(form: str, label: str) -> str:
    """Plain words."""
    return form


class English:
    """Puts meanings into English.

    Args:
        known: the concepts.
        trace: every word carries its label after ``LABEL``: n4, v7, a2, ... for concepts, #def, #neg, ... for grammar;
            two languages' words for the same part of a meaning have equal labels. For oracles and tests.
    """

    def __init__(self, known: Concepts, trace: bool = False) -> None:
        mark = traced if trace else untraced
        self._nouns = [[mark(n.singular, f"n{i}"), mark(n.plural, f"n{i}")] for i, n in enumerate(known.nouns)]
        self._possessives = [mark(n.singular + "'s", f"n{i}") for i, n in enumerate(known.nouns)]
        self._persons = [n.kind == "p" for n in known.nouns]
        self._verbs = [[mark(f, f"v{i}") for f in (v.past, v.base, v.base, v.third)] for i, v in enumerate(known.verbs)]
        self._particles = [[mark(v.particle, f"v{i}")] if v.particle else [] for i, v in enumerate(known.verbs)]
        self._separable = [v.separable for v in known.verbs]
        self._adjectives = [mark(a, f"a{i}") for i, a in enumerate(known.adjectives)]
        self._adverbs = [mark(a.word, f"d{i}") for i, a in enumerate(known.adverbs)]
        self._medial = [a.medial for a in known.adverbs]
        self._relations = [mark(r.word, f"r{i}") for i, r in enumerate(known.relations)]
        self._numerals = [mark(w, f"u{i}") for i, w in enumerate(NUMERALS.split())]
        self._pronouns = [[mark(form, f"p{i}") for form in entry.split()] for i, entry in enumerate(PRONOUNS)]
        labels = {
            "#def": "the", "#indef": "a an", "#this": "this these", "#that": "that those", "#and": "and but",
            "#neg": "not", "#fut": "will", "#do": "do does did", "#have": "have has had", "#own": "of",
            "#be": "be am is are was were", "#exist": "there", "#rel": "who whom", "#to": "to",
        }  # fmt: skip
        self._words = {w: mark(w, label) for label, text in labels.items() for w in text.split()}
        self._relative_that = mark("that", "#rel")

    def sentence(self, clause: Clause) -> list[str]:
        """The words of ``clause`` and of what is coordinated with it."""
        words = self._clause(clause)
        if clause.next is not None:
            words.append(self._words["but" if clause.negative != clause.next.negative else "and"])
            words += self._clause(clause.next)
        return words

    def _phrase(self, np: NounPhrase, case: int) -> list[str]:
        if np.pronoun >= 0:
            return [self._pronouns[np.pronoun][case]]
        words = self._core(np)
        if np.relative is not None:
            words += self._relative(np.relative, self._persons[np.noun])
        if np.other is not None:
            words.append(self._words["and"])
            words += self._phrase(np.other, case)
        return words

    def _core(self, np: NounPhrase) -> list[str]:
        """Determiner, numeral, adjectives, noun, and an owner after it."""
        w = self._words
        words: list[str] = []
        after: list[str] = []
        owner = np.owner
        if owner is not None and owner.pronoun >= 0:
            words.append(self._pronouns[owner.pronoun][2])
        elif owner is not None and not owner.plural:
            words += self._core(owner)
            words[-1] = self._possessives[owner.noun]
        elif np.definite == DEFINITE:
            words.append(w["the"])
            if owner is not None:
                after = [w["of"], *self._core(owner)]
        elif np.definite != INDEFINITE:
            words.append(w[("these" if np.plural else "this") if np.definite == THIS else "those" if np.plural else "that"])
        if np.numeral >= 0:
            words.append(self._numerals[np.numeral])
        for a in np.adjectives:
            words.append(self._adjectives[a])
        words.append(self._nouns[np.noun][np.plural])
        if np.definite == INDEFINITE and not np.plural:
            words.insert(0, w["an" if words[0][0] in "aeiou" else "a"])
        return words + after

    def _relative(self, clause: Clause, person: bool) -> list[str]:
        head = clause.head
        assert head is not None
        if clause.agent is None:
            marker = self._words["who"] if person else self._relative_that
            return [marker, *self._predicate(clause, 4 if head.plural else 2)]
        marker = self._words["whom"] if person else self._relative_that
        return [marker, *self._phrase(clause.agent, 0), *self._predicate(clause, clause.agent.agreement)]

    def _clause(self, clause: Clause) -> list[str]:
        if clause.kind == EXISTS:
            assert clause.patient is not None
            subject, agreement = [self._words["there"]], clause.patient.agreement
        else:
            assert clause.agent is not None
            subject, agreement = self._phrase(clause.agent, 0), clause.agent.agreement
        if not clause.question:
            return subject + self._predicate(clause, agreement)
        auxiliary, *rest = self._predicate(clause, agreement)
        return [auxiliary, *subject, *rest]

    def _predicate(self, clause: Clause, agreement: int) -> list[str]:
        """Verb group, objects, places and adverb; begins with an auxiliary in questions."""
        words = self._verb_group(clause, agreement)
        if clause.kind <= DITRANSITIVE:
            words += self._objects(clause)
        elif clause.kind == IS_ADJECTIVE:
            words.append(self._adjectives[clause.predicate])
        elif clause.patient is not None:
            words += self._phrase(clause.patient, 1)
        else:
            words += self._core(NounPhrase(clause.predicate, plural=int(agreement > 2), definite=INDEFINITE))
        for relation, place in clause.places:
            words.append(self._relations[relation])
            words += self._phrase(place, 1)
        if clause.adverb >= 0 and not self._medial[clause.adverb]:
            words.append(self._adverbs[clause.adverb])
        return words

    def _verb_group(self, clause: Clause, agreement: int) -> list[str]:
        w, tense, third = self._words, clause.tense, agreement == 2
        adverb = [self._adverbs[clause.adverb]] if clause.adverb >= 0 and self._medial[clause.adverb] else []
        if clause.kind > DITRANSITIVE and clause.kind != HAS:
            finite = _be(tense, agreement)
            return [w[word] for word in (*finite[:1], *(["not"] if clause.negative else []), *finite[1:])]
        if clause.kind == HAS:
            forms = [w["had"], w["have"], w["have"], w["has"]]
        else:
            forms = self._verbs[clause.verb]
        if tense == FUTURE:
            auxiliary = "will"
        elif clause.negative or clause.question:
            auxiliary = "did" if tense == PAST else "does" if third else "do"
        else:
            return [*adverb, forms[0] if tense == PAST else forms[3 if third else 1]]
        return [w[auxiliary], *([w["not"]] if clause.negative else []), *adverb, forms[1]]

    def _objects(self, clause: Clause) -> list[str]:
        particle = self._particles[clause.verb]
        if clause.patient is None:
            return list(particle)
        patient = self._phrase(clause.patient, 1)
        if clause.recipient is not None:
            recipient = self._phrase(clause.recipient, 1)
            return recipient + patient if len(recipient) < 3 else [*patient, self._words["to"], *recipient]
        if clause.kind == TRANSITIVE and self._separable[clause.verb] and len(patient) < 4:
            return patient + particle
        return particle + patient


def _be(tense: int, agreement: int) -> tuple[str, ...]:
    if tense == FUTURE:
        return ("will", "be")
    if tense == PAST:
        return ("was",) if agreement in (0, 2) else ("were",)
    return ("am",) if agreement == 0 else ("is",) if agreement == 2 else ("are",)
