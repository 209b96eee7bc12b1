"""Inflection: every word form of a constructed language, made when first needed and kept.

A form is built from the proto-language's root and affixes and then pronounced as the language's sound changes have it,
so paradigms become irregular in a regular way.
"""

from __future__ import annotations

from .concepts import Concepts
from .english import traced, untraced
from .lexicon import Daughter
from .lexicon import particle as function_word
from .meaning import FUTURE, PAST, PRESENT, Clause
from .scripts import writer

NOMINATIVE, ACCUSATIVE, GENITIVE, DATIVE, OBLIQUE, LOCAL = range(6)
"""Cases; LOCAL + r is the case ending that stands for relation r."""
FINITE, SUBJECT_PARTICIPLE, OBJECT_PARTICIPLE = range(3)


class Words:
    """The word forms of one language, in its script.

    Args:
        daughter: the language.
        known: the concepts.
        script: a name of ``SCRIPTS``.
        trace: words carry their labels, as in ``English``.
    """

    def __init__(self, daughter: Daughter, known: Concepts, script: str, trace: bool = False) -> None:
        self.grammar = g = daughter.grammar
        self._daughter, self._write, self._mark = daughter, writer(script), traced if trace else untraced
        proto = daughter.proto
        self.gender = [proto.gender(n, g.genders) if g.genders else 0 for n in range(len(known.nouns))]
        self._kept: dict[tuple, str] = {}
        self._groups: dict[tuple, list[str]] = {}
        self._plural = proto.suffixes("plural", 1)[0]
        self._definite = proto.suffixes("definite", 1)[0]
        self._cases = ["", *proto.suffixes("case", LOCAL + len(known.relations) - 1)]
        self._owners = proto.suffixes("owner", 6)
        self._tenses = proto.suffixes("tense", 3)
        self._persons = proto.suffixes("person", 5)
        self._negative = proto.suffixes("negative", 1)[0]
        self._participles = proto.suffixes("participle", 4)
        endings = proto.suffixes("ending", max(g.genders, 1) * 10)
        self._endings = [[endings[(k * 2 + p) * 5 :][:5] for p in range(2)] for k in range(max(g.genders, 1))]
        self._finite = proto.suffixes("finite", 15)
        self._particles: dict[str, str] = {}

    def _written(self, proto_word: str, label: str) -> str:
        return self._mark(self._write(self._daughter.pronounce(proto_word)), label)

    def particle(self, name: str, label: str | None = None) -> str:
        """A function word that does not inflect."""
        word = self._particles.get(name)
        if word is None:
            word = self._particles[name] = self._written(self._daughter.roots[function_word(name)], label or f"#{name}")
        return word

    def agreeing(self, kind: str, number: int, label: str, gender: int, plural: int, case: int) -> str:
        """An adjective, article or other word that agrees with a noun in a fusional language."""
        if not self.grammar.genders:
            gender = plural = case = 0
        key = (kind, number, gender, plural, case)
        word = self._kept.get(key)
        if word is None:
            root = self._daughter.roots[kind, number]
            ending = self._endings[gender][plural][min(case, OBLIQUE) if self.grammar.cases else 0]
            word = self._kept[key] = self._written(root + ending if self.grammar.genders else root, label)
        return word

    def noun(self, noun: int, plural: int, definite: bool, owner: int, case: int) -> str:
        """A noun; ``definite`` and ``owner`` (a pronoun, -1 for none) ask for suffixes."""
        key = (noun, plural, definite, owner, case)
        word = self._kept.get(key)
        if word is None:
            g, form = self.grammar, self._daughter.roots["n", noun]
            if g.morphology == "fusional":
                form += self._endings[self.gender[noun]][plural][min(case, OBLIQUE) if g.cases else 0]
            elif g.morphology == "agglutinative":
                form += self._plural if plural else ""
                form += self._owners[owner] if owner >= 0 else ""
            form += self._definite if definite else ""
            if g.morphology == "agglutinative" and (g.cases or case >= LOCAL):
                form += self._cases[case]
            word = self._kept[key] = self._written(form, f"n{noun}")
        return word

    def pronoun(self, number: int, case: int) -> str:
        """A personal pronoun."""
        g = self.grammar
        case = case if g.cases or case >= LOCAL else NOMINATIVE
        key = ("p", number, case)
        word = self._kept.get(key)
        if word is None:
            ending = self._endings[0][0][min(case, OBLIQUE)] if g.morphology == "fusional" and case else self._cases[case]
            word = self._kept[key] = self._written(self._daughter.roots["p", number] + ending, f"p{number}")
        return word

    def verb_group(self, root: tuple[str, int], label: str, clause: Clause, agreement: int, participle: int = FINITE):
        """The verb of ``clause`` with its particles; one of the participles instead of the finite verb if asked for."""
        key = (root, clause.tense, clause.negative, agreement if self.grammar.verb_agreement else 0, participle)
        words = self._groups.get(key)
        if words is None:
            words = self._groups[key] = self._conjugate(root, label, *key[1:])
        return words

    def _conjugate(self, root: tuple[str, int], label: str, tense: int, negative: bool, agreement: int, participle: int):
        g, form = self.grammar, self._daughter.roots[root]
        if negative and g.negation == "suffix":
            form += self._negative
        if participle != FINITE:
            form += self._participles[2 * (participle - 1) + (tense == PAST)]
        elif g.morphology == "fusional":
            form += self._finite[tense * 5 + agreement if g.verb_agreement else tense]
        elif g.tense == "suffix":
            form += self._tenses[tense] + (self._persons[agreement] if g.verb_agreement else "")
        words = [self._written(form, label)]
        if g.tense == "particle" and tense != PRESENT:
            words.insert(0, self.particle("fut" if tense == FUTURE else "past"))
        if negative and g.negation == "before":
            words.insert(0, self.particle("neg"))
        elif negative and g.negation == "after":
            words.append(self.particle("neg"))
        return words

    def plain(self, kind: str, number: int) -> str:
        """A word that never inflects: numeral, relation, adverb."""
        key = (kind, number)
        word = self._kept.get(key)
        if word is None:
            word = self._kept[key] = self._written(self._daughter.roots[key], f"{kind}{number}")
        return word
