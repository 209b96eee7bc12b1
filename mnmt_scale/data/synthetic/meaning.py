"""Meanings: predicate-argument trees, drawn at random, which every language puts into words of its own.

A meaning knows concepts, number, definiteness, tense, polarity and structure, but no order of words. Its *skeleton*
(the concepts and the structure without number, definiteness, tense, polarity and persons) decides to which split it
belongs, so no sentence of a test set differs from a training sentence in its grammar alone, in any language.
"""

from __future__ import annotations

import zlib
from bisect import bisect
from itertools import accumulate
from random import Random

from .concepts import AGREEMENT, PRONOUNS, Concepts
from .draws import shuffled, stream

PAST, PRESENT, FUTURE = range(3)
INDEFINITE, DEFINITE, THIS, THAT = range(4)
INTRANSITIVE, TRANSITIVE, DITRANSITIVE, IS_ADJECTIVE, IS_NOUN, HAS, EXISTS = range(7)

_KIND_SHARES = (0.2, 0.45, 0.09, 0.09, 0.05, 0.07, 0.05)
_BLOCKS = 32  # of skeletons: block 0 is test, 1 dev, the rest training
_TABLE = 4096  # resolution of the frequencies of concepts


class NounPhrase:
    """A noun with its modifiers, or a pronoun (``pronoun`` >= 0). ``agreement``: 0..4 is 1sg 2sg 3sg 1pl 3pl."""

    __slots__ = (
        "adjectives", "agreement", "definite", "noun", "numeral", "other", "owner", "plural", "pronoun", "relative",
    )  # fmt: skip

    def __init__(self, noun: int = -1, pronoun: int = -1, plural: int = 0, definite: int = DEFINITE) -> None:
        self.noun, self.pronoun, self.plural, self.definite = noun, pronoun, plural, definite
        self.adjectives: tuple[int, ...] = ()
        self.numeral = -1
        self.owner: NounPhrase | None = None
        self.relative: Clause | None = None
        self.other: NounPhrase | None = None
        self.agreement = AGREEMENT[pronoun] if pronoun >= 0 else 4 if plural else 2


class Clause:
    """A predicate with its arguments. In a relative clause the argument that is the head noun is None.

    ``verb`` indexes ``Concepts.verbs``; ``predicate`` is an adjective (IS_ADJECTIVE) or a noun (IS_NOUN); ``head`` is
    the phrase that a relative clause modifies.
    """

    __slots__ = (
        "adverb", "agent", "head", "kind", "negative", "next", "patient", "places", "predicate", "question",
        "recipient", "tense", "verb",
    )  # fmt: skip

    def __init__(self, kind: int, tense: int) -> None:
        self.kind, self.tense = kind, tense
        self.verb = self.predicate = self.adverb = -1
        self.agent: NounPhrase | None = None
        self.patient: NounPhrase | None = None
        self.recipient: NounPhrase | None = None
        self.negative = self.question = False
        self.places: tuple[tuple[int, NounPhrase], ...] = ()
        self.next: Clause | None = None
        self.head: NounPhrase | None = None


class Sampler:
    """Draws meanings. Which concepts are frequent depends on ``seed`` alone, so all languages agree on it."""

    def __init__(self, known: Concepts, zipf: float, seed: int) -> None:
        self.known = known
        order = stream(seed, "frequency")
        self._zipf = zipf
        nouns = shuffled(order, range(len(known.nouns)))
        kinds = {n: known.nouns[n].kind for n in nouns}
        self._nouns: dict[str, list[int]] = {}
        for wanted in self._wanted_kinds():
            self._nouns[wanted] = self._frequencies([n for n in nouns if kinds[n] in wanted])
        first_intransitive = len(known.transitive)
        first_ditransitive = first_intransitive + len(known.intransitive)
        verbs = shuffled(order, range(len(known.verbs)))
        self._verbs = {
            TRANSITIVE: self._frequencies([v for v in verbs if v < first_intransitive]),
            INTRANSITIVE: self._frequencies([v for v in verbs if first_intransitive <= v < first_ditransitive]),
            DITRANSITIVE: self._frequencies([v for v in verbs if v >= first_ditransitive]),
        }
        self._adjectives = self._frequencies(shuffled(order, range(len(known.adjectives))))
        self._relations = self._frequencies(list(range(len(known.relations))))
        self._adverbs = [[i for i, a in enumerate(known.adverbs) if t in a.tenses] for t in range(3)]
        self._kinds = _table(range(len(_KIND_SHARES)), _KIND_SHARES)

    def draw(self, rng: Random) -> tuple[Clause, int]:
        """A meaning and its block (0 test, 1 dev, others training)."""
        skeleton: list[int] = []
        clause = self._clause(rng, skeleton, embedded=False)
        return clause, zlib.crc32(bytes(skeleton)) % _BLOCKS

    def _wanted_kinds(self) -> set[str]:
        wanted = {"p", "pa", "tf", "l", "patfl"}
        for verb in self.known.verbs:
            wanted |= {verb.agents, verb.patients}
        return (wanted | {r.kinds for r in self.known.relations}) - {""}

    def _frequencies(self, items: list[int]) -> list[int]:
        return _table(items, [(rank + 2.0) ** -self._zipf for rank in range(len(items))])

    def _clause(self, rng: Random, skeleton: list[int], embedded: bool, coordinated: bool = False) -> Clause:
        random = rng.random
        kind = self._kinds[int(random() * _TABLE)]
        r = random()
        clause = Clause(kind, PAST if r < 0.5 else PRESENT if r < 0.82 else FUTURE)
        skeleton.append(200 + kind)
        clause.negative = random() < 0.15
        clause.question = not embedded and not coordinated and random() < 0.07
        if kind <= DITRANSITIVE:
            self._action(rng, clause, skeleton)
        else:
            self._state(rng, clause, skeleton)
        if not clause.places and kind != EXISTS and random() < 0.2:
            clause.places = (self._place(rng, skeleton),)
        if kind <= DITRANSITIVE and random() < 0.2:
            choices = self._adverbs[clause.tense]
            clause.adverb = choices[int(random() * len(choices))]
            skeleton += (210, clause.adverb)
        if not embedded and not coordinated and not clause.question and random() < 0.05:
            skeleton.append(211)
            clause.next = self._clause(rng, skeleton, embedded=False, coordinated=True)
        return clause

    def _action(self, rng: Random, clause: Clause, skeleton: list[int]) -> None:
        table = self._verbs[clause.kind]
        clause.verb = table[int(rng.random() * _TABLE)]
        skeleton.append(clause.verb)
        verb = self.known.verbs[clause.verb]
        clause.agent = self._phrase(rng, verb.agents, skeleton, pronoun=0.3)
        if clause.kind == TRANSITIVE:
            clause.patient = self._phrase(rng, verb.patients, skeleton, pronoun=0.15 if "p" in verb.patients else 0.0)
        elif clause.kind == DITRANSITIVE:
            clause.patient = self._phrase(rng, verb.patients, skeleton, pronoun=0.0, plain=True)
            clause.recipient = self._phrase(rng, "p", skeleton, pronoun=0.35, plain=True)

    def _state(self, rng: Random, clause: Clause, skeleton: list[int]) -> None:
        if clause.kind == IS_ADJECTIVE:
            clause.agent = self._phrase(rng, "patfl", skeleton, pronoun=0.15)
            clause.predicate = self._adjectives[int(rng.random() * _TABLE)]
        elif clause.kind == IS_NOUN:
            clause.agent = self._phrase(rng, "p", skeleton, pronoun=0.4)
            table = self._nouns["p"]
            clause.predicate = table[int(rng.random() * _TABLE)]
        elif clause.kind == HAS:
            clause.agent = self._phrase(rng, "p", skeleton, pronoun=0.3)
            clause.patient = self._phrase(rng, "tf", skeleton, pronoun=0.0)
            return
        else:
            clause.patient = self._phrase(rng, "patfl", skeleton, pronoun=0.0, plain=True)
            clause.patient.definite = INDEFINITE
            clause.places = (self._place(rng, skeleton),)
            return
        skeleton.append(clause.predicate)

    def _place(self, rng: Random, skeleton: list[int]) -> tuple[int, NounPhrase]:
        relation = self._relations[int(rng.random() * _TABLE)]
        skeleton += (212, relation)
        return relation, self._phrase(rng, self.known.relations[relation].kinds, skeleton, pronoun=0.0, plain=True)

    def _phrase(self, rng: Random, kinds: str, skeleton: list[int], pronoun: float, plain: bool = False) -> NounPhrase:
        random = rng.random
        if random() < pronoun:
            skeleton.append(213)
            return NounPhrase(pronoun=int(random() * len(PRONOUNS)))
        table = self._nouns[kinds]
        noun = table[int(random() * _TABLE)]
        skeleton += (214, noun)
        r = random()
        definite = DEFINITE if r < 0.55 else INDEFINITE if r < 0.88 else THIS if r < 0.94 else THAT
        phrase = NounPhrase(noun, plural=int(random() < 0.3), definite=definite)
        r = random()
        if r < 0.34:
            phrase.adjectives = (self._adjectives[int(random() * _TABLE)],)
            skeleton += (215, phrase.adjectives[0])
        if phrase.plural and random() < 0.25:
            phrase.numeral = int(random() * len(self.known.numerals))
            skeleton += (216, phrase.numeral)
        r = random()
        if r < 0.1 and definite == DEFINITE:
            skeleton.append(217)
            phrase.owner = NounPhrase(pronoun=int(random() * len(PRONOUNS)))
        elif r < 0.2 and definite == DEFINITE and not plain:
            skeleton.append(218)
            phrase.owner = self._phrase(rng, "p", skeleton, pronoun=0.0, plain=True)
        elif r < 0.28 and not plain and kinds != "l":
            skeleton.append(219)
            phrase.relative = self._relative(rng, phrase, skeleton)
        elif r < 0.34 and not plain:
            skeleton.append(220)
            phrase.other = self._phrase(rng, kinds, skeleton, pronoun=0.0, plain=True)
            phrase.agreement = 4
        return phrase

    def _relative(self, rng: Random, head: NounPhrase, skeleton: list[int]) -> Clause:
        """A transitive or intransitive clause in which ``head`` is agent or patient, whichever its kind allows."""
        kind_of_head = self.known.nouns[head.noun].kind
        for _ in range(20):
            kind = TRANSITIVE if rng.random() < 0.8 else INTRANSITIVE
            verb_number = self._verbs[kind][int(rng.random() * _TABLE)]
            verb = self.known.verbs[verb_number]
            as_agent = kind_of_head in verb.agents and rng.random() < 0.6
            if as_agent or (kind == TRANSITIVE and kind_of_head in verb.patients):
                break
        else:
            kind, as_agent = TRANSITIVE, False  # everything can be looked at
            verb_number = 0
            verb = self.known.verbs[0]
        clause = Clause(kind, PAST if rng.random() < 0.7 else PRESENT)
        clause.verb, clause.head = verb_number, head
        clause.negative = rng.random() < 0.1
        skeleton += (int(as_agent), verb_number)
        if not as_agent:
            clause.agent = self._phrase(rng, verb.agents, skeleton, pronoun=0.5, plain=True)
        elif kind == TRANSITIVE:
            clause.patient = self._phrase(rng, verb.patients, skeleton, pronoun=0.1, plain=True)
        return clause


def _table(items, weights) -> list[int]:
    """``_TABLE`` entries in proportion to the weights: a draw is one look-up."""
    items = list(items)
    cumulative = list(accumulate(weights))
    return [items[bisect(cumulative, (i + 0.5) / _TABLE * cumulative[-1])] for i in range(_TABLE)]
