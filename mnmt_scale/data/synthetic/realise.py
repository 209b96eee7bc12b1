"""Syntax: putting meanings into a constructed language by its grammar."""

from __future__ import annotations

from .concepts import Concepts
from .inflection import (
    ACCUSATIVE,
    DATIVE,
    GENITIVE,
    LOCAL,
    NOMINATIVE,
    OBJECT_PARTICIPLE,
    OBLIQUE,
    SUBJECT_PARTICIPLE,
    Words,
)
from .lexicon import Daughter, particle
from .meaning import DEFINITE, DITRANSITIVE, EXISTS, HAS, INDEFINITE, IS_ADJECTIVE, PRESENT, THIS, Clause, NounPhrase

_LOCAL_RELATIONS = (0, 1, 5, 7, 8)  # in, on, with, from, to


class Speaker:
    """Puts meanings into one language.

    Args:
        daughter: the language.
        known: the concepts.
        script: a name of ``SCRIPTS``.
        trace: words carry their labels, as in ``English``.
    """

    def __init__(self, daughter: Daughter, known: Concepts, script: str, trace: bool = False) -> None:
        self.grammar = daughter.grammar
        self._words = Words(daughter, known, script, trace)
        self._gender = self._words.gender

    def sentence(self, clause: Clause) -> list[str]:
        """The words of ``clause`` and of what is coordinated with it."""
        words = self._clause(clause)
        if clause.next is not None:
            words.append(self._words.particle("but" if clause.negative != clause.next.negative else "and", "#and"))
            words += self._clause(clause.next)
        return words

    # ---- noun phrases

    def _phrase(self, np: NounPhrase, case: int) -> list[str]:
        if np.pronoun >= 0:
            return [self._words.pronoun(np.pronoun, case)]
        words = self._core(np, case)
        if np.relative is not None:
            if self.grammar.relative == "before":
                words = self._participle_clause(np.relative) + words
            else:
                words += self._relative_clause(np.relative)
        if np.other is not None:
            words.append(self._words.particle("and"))
            words += self._phrase(np.other, case)
        return words

    def _core(self, np: NounPhrase, case: int) -> list[str]:
        """Determiner, numeral, owner, adjectives and noun, each where the grammar wants it."""
        g, gender, owner = self.grammar, self._gender[np.noun], np.owner
        plural = np.plural if np.numeral < 0 or g.numeral_plural else 0
        by_suffix = owner.pronoun if owner is not None and owner.pronoun >= 0 and g.owner == "suffix" else -1
        definite = np.definite == DEFINITE and owner is None
        words = [self._words.noun(np.noun, plural, definite and g.article == "suffix", by_suffix, case)]
        if plural and g.morphology == "isolating":
            words.insert(0, self._words.particle("plural"))
        for a in np.adjectives:
            words = _beside(words, [self._words.agreeing("a", a, f"a{a}", gender, plural, case)], g.adjective)
        if owner is not None and by_suffix < 0:
            words = _beside(words, self._owner(owner), g.genitive)
        if np.numeral >= 0:
            words = _beside(words, [self._words.plain("u", np.numeral)], g.numeral)
        determiner = self._determiner(np, definite, gender, plural, case)
        return _beside(words, determiner, g.determiner) if determiner else words

    def _determiner(self, np: NounPhrase, definite: bool, gender: int, plural: int, case: int) -> list[str]:
        if np.definite >= THIS:
            name = "this" if np.definite == THIS else "that"
        elif definite and self.grammar.article == "word":
            name = "def"
        elif np.definite == INDEFINITE and self.grammar.article == "indefinite" and np.numeral < 0:
            name = "indef"
        else:
            return []
        return [self._words.agreeing(*particle(name), f"#{name}", gender, plural, case)]

    def _owner(self, owner: NounPhrase) -> list[str]:
        words = self._phrase(owner, GENITIVE)
        if self.grammar.cases:
            return words
        return _beside(words, [self._words.particle("own")], "before" if self.grammar.genitive == "after" else "after")

    def _related(self, relation: int, np: NounPhrase) -> list[str]:
        g = self.grammar
        if g.adposition == "case" and relation in _LOCAL_RELATIONS:
            return self._phrase(np, LOCAL + relation)
        word = self._words.plain("r", relation)
        return _beside(self._phrase(np, OBLIQUE), [word], "before" if g.adposition == "before" else "after")

    def _recipient(self, np: NounPhrase) -> list[str]:
        words = self._phrase(np, DATIVE)
        if self.grammar.cases:
            return words
        return _beside(words, [self._words.particle("to")], "before" if self.grammar.adposition == "before" else "after")

    def _relative_clause(self, clause: Clause) -> list[str]:
        head = clause.head
        assert head is not None
        agreement = clause.agent.agreement if clause.agent is not None else 4 if head.plural else 2
        subject = self._phrase(clause.agent, NOMINATIVE) if clause.agent is not None else []
        patient = self._phrase(clause.patient, ACCUSATIVE) if clause.patient is not None else []
        verb = self._words.verb_group(("v", clause.verb), f"v{clause.verb}", clause, agreement)
        marker = self._words.particle("rel" if clause.agent is None else "relobj", "#rel")
        return [marker, *self._ordered(subject, verb, patient, [])]

    def _participle_clause(self, clause: Clause) -> list[str]:
        subject = self._phrase(clause.agent, GENITIVE) if clause.agent is not None else []
        patient = self._phrase(clause.patient, ACCUSATIVE) if clause.patient is not None else []
        kind = SUBJECT_PARTICIPLE if clause.agent is None else OBJECT_PARTICIPLE
        return subject + patient + self._words.verb_group(("v", clause.verb), f"v{clause.verb}", clause, 0, kind)

    # ---- clauses

    def _clause(self, clause: Clause) -> list[str]:
        g = self.grammar
        if clause.kind <= DITRANSITIVE:
            subject, verb, rest = self._action(clause)
        else:
            subject, verb, rest = self._state(clause)
        places = [word for relation, np in clause.places for word in self._related(relation, np)]
        adverb = [self._words.plain("d", clause.adverb)] if clause.adverb >= 0 else []
        if adverb and g.adverb == "middle":
            verb = adverb + verb
        words = self._ordered(subject, verb, rest, places)
        if adverb and g.adverb != "middle":
            words = _beside(words, adverb, "before" if g.adverb == "first" else "after")
        if clause.question:
            words = _beside(words, [self._words.particle("q")], "before" if g.question == "first" else "after")
        return words

    def _ordered(self, subject: list[str], verb: list[str], rest: list[str], places: list[str]) -> list[str]:
        """Places stand after the subject in verb-final clauses, otherwise last."""
        order = self.grammar.order
        if order == "SOV":
            return subject + places + rest + verb
        parts = {"S": subject, "V": verb, "O": rest}
        return parts[order[0]] + parts[order[1]] + parts[order[2]] + places

    def _action(self, clause: Clause) -> tuple[list[str], list[str], list[str]]:
        g, agent = self.grammar, clause.agent
        assert agent is not None
        dropped = g.drops_pronouns and agent.pronoun >= 0 and agent.agreement not in (2, 4)
        subject = [] if dropped else self._phrase(agent, NOMINATIVE)
        verb = self._words.verb_group(("v", clause.verb), f"v{clause.verb}", clause, agent.agreement)
        rest = self._phrase(clause.patient, ACCUSATIVE) if clause.patient is not None else []
        if clause.recipient is not None:
            rest = _beside(rest, self._recipient(clause.recipient), g.recipient)
        return subject, verb, rest

    def _state(self, clause: Clause) -> tuple[list[str], list[str], list[str]]:
        """Being, having and existing."""
        g, agent, patient = self.grammar, clause.agent, clause.patient
        if clause.kind == EXISTS:
            assert patient is not None
            return (
                self._phrase(patient, NOMINATIVE),
                self._grammatical_verb("exist", "#exist", clause, patient.agreement),
                [],
            )
        assert agent is not None
        if clause.kind == HAS:
            assert patient is not None
            if g.possession == "have":
                verb = self._grammatical_verb("have", "#have", clause, agent.agreement)
                return self._phrase(agent, NOMINATIVE), verb, self._phrase(patient, ACCUSATIVE)
            verb = self._grammatical_verb("exist", "#have", clause, patient.agreement)
            return self._recipient(agent), verb, self._phrase(patient, NOMINATIVE)
        subject = self._phrase(agent, NOMINATIVE)
        gender = self._gender[agent.noun] if agent.noun >= 0 else 0
        plural = int(agent.agreement > 2)
        if clause.kind == IS_ADJECTIVE:
            number = clause.predicate
            rest = [self._words.agreeing("a", number, f"a{number}", gender, plural, NOMINATIVE)]
        else:
            rest = self._core(NounPhrase(clause.predicate, plural=plural, definite=INDEFINITE), NOMINATIVE)
        if g.copula == "verb" or clause.tense != PRESENT or (clause.negative and g.negation == "suffix"):
            return subject, self._grammatical_verb("be", "#be", clause, agent.agreement), rest
        return subject, [self._words.particle("neg")] if clause.negative else [], rest

    def _grammatical_verb(self, name: str, label: str, clause: Clause, agreement: int) -> list[str]:
        return self._words.verb_group(particle(name), label, clause, agreement)


def _beside(words: list[str], dependent: list[str], place: str) -> list[str]:
    return dependent + words if place == "before" else words + dependent
