"""Words: the roots and affixes of a family's proto-language, and the tree of changes that leads to each language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from .concepts import NUMERALS, PRONOUNS, Concepts, colexified
from .draws import stream
from .grammar import Grammar, drift
from .sound import Phonotactics, apply, draw_changes, draw_phonotactics

_PARTICLES = (
    "def",
    "indef",
    "this",
    "that",
    "plural",
    "past",
    "fut",
    "neg",
    "q",
    "and",
    "but",
    "rel",
    "relobj",
    "own",
    "be",
    "have",
    "exist",
    "to",
)
_SYLLABLES = {"n": 2, "v": 2, "a": 2, "d": 2, "u": 2, "r": 1, "p": 1, "f": 1}


@dataclass
class Node:
    """A proto-language or, without children, a language. ``changes`` and the rest are what its branch brought."""

    name: str
    children: list[Node] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    replaced: int = 0
    drifted: tuple[str, ...] = ()

    def leaves(self) -> Iterator[Node]:
        """The languages below, in order."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()

    def newick(self) -> str:
        """The tree in Newick notation, inner nodes named, without the final semicolon."""
        inner = ",".join(child.newick() for child in self.children)
        return f"({inner}){self.name}" if inner else self.name


def family_tree(rng: Random, name: str, languages: list[str], depth: int) -> Node:
    """A random tree over ``languages``, at most ``depth`` levels of branching; inner nodes are name.1, name.2, ..."""
    if len(languages) == 1:
        return Node(languages[0])
    if depth == 1 or len(languages) == 2:
        return Node(name, [Node(code) for code in languages])
    parts = 2 if len(languages) < 5 else 2 + int(rng.random() * 2)
    cuts = sorted({1 + int(rng.random() * (len(languages) - 1)) for _ in range(parts - 1)})
    bounds = [0, *cuts, len(languages)]
    children = [languages[a:b] for a, b in pairwise(bounds)]
    return Node(name, [family_tree(rng, f"{name}.{i}", part, depth - 1) for i, part in enumerate(children, 1)])


class ProtoLanguage:
    """Roots and affixes of one family: an endless supply of variants (synonyms) of each, all drawn from the seed.

    Entries are named by kind and number: n noun, v verb, a adjective, d adverb, u numeral, r relation, p pronoun, f
    function word (a name of ``_PARTICLES``).
    """

    def __init__(self, seed: int, family: int, known: Concepts) -> None:
        self._names = (seed, "family", family)
        rng = stream(*self._names, "sounds")
        self.phonotactics: Phonotactics = draw_phonotactics(rng)
        self.entries = [
            *((kind, i) for kind, size in _sizes(known) for i in range(size)),
            *(("f", i) for i in range(len(_PARTICLES))),
        ]
        self._same: dict[tuple[str, int], tuple[str, int]] = {}
        for kind, a, b in colexified(known):
            if rng.random() < 0.5 and (kind, a) not in self._same:
                self._same[kind, b] = (kind, a)

    def root(self, entry: tuple[str, int], variant: int) -> str:
        """Phonemes of a root; variant 0 is the inherited one, others are what a branch may replace it by."""
        entry = self._same.get(entry, entry)
        rng = stream(*self._names, *entry, variant)
        syllables = _SYLLABLES[entry[0]]
        if syllables == 2 and rng.random() < 0.15:
            syllables = 3
        return self.phonotactics.root(rng, syllables)

    def is_shared(self, entry: tuple[str, int]) -> bool:
        """The entry takes its root from another concept."""
        return entry in self._same

    def suffixes(self, purpose: str, count: int) -> list[str]:
        """Different suffixes of a paradigm."""
        rng = stream(*self._names, "suffix", purpose)
        out: list[str] = []
        while len(out) < count:
            suffix = self.phonotactics.suffix(rng)
            if suffix not in out:
                out.append(suffix)
        return out

    def gender(self, noun: int, genders: int) -> int:
        """Gender of a noun in the whole family, 0 to ``genders`` - 1."""
        return int(stream(*self._names, "gender", noun).random() * genders)


class Daughter:
    """A language at a leaf: its grammar, its sound changes, and which variant of each root it uses."""

    def __init__(self, code: str, proto: ProtoLanguage, grammar: Grammar, changes: list[str], variants: dict) -> None:
        self.code, self.proto, self.grammar, self.changes = code, proto, grammar, changes
        self.roots: dict[tuple[str, int], str] = {}
        self._cache: dict[str, str] = {}
        spoken: set[str] = set()
        for entry in proto.entries:
            self.roots[entry] = self._distinct_root(entry, variants.get(entry, 0), spoken)

    def _distinct_root(self, entry: tuple[str, int], variant: int, spoken: set[str]) -> str:
        """A language gives up a word that sound change has made a homophone, for the next variant."""
        while True:
            root = self.proto.root(entry, variant)
            word = self.pronounce(root)
            if word not in spoken or self.proto.is_shared(entry):
                spoken.add(word)
                return root
            variant += 1

    def pronounce(self, proto_word: str) -> str:
        """A proto-word, inflected or not, after all sound changes of this language."""
        word = self._cache.get(proto_word)
        if word is None:
            word = self._cache[proto_word] = apply(self.changes, proto_word)
        return word


def particle(name: str) -> tuple[str, int]:
    """The entry of a function word."""
    return "f", _PARTICLES.index(name)


def grow(
    rng: Random,
    node: Node,
    proto: ProtoLanguage,
    grammar: Grammar,
    *,
    changes: int,
    replacement: float,
    drifting: float,
) -> list[Daughter]:
    """Lets changes happen on every branch below ``node`` (recorded in the nodes); the languages at the leaves.

    An isolate is a root without branches: it has one branch of its own history.
    """

    def descend(node: Node, undergone: list[str], variants: dict, grammar: Grammar, root: bool) -> list[Daughter]:
        if not root or not node.children:
            node.changes = draw_changes(rng, changes, undergone)
            chosen = [entry for entry in proto.entries if rng.random() < replacement]
            variants = {**variants, **{e: variants.get(e, 0) + 1 + int(rng.random() * 1000) for e in chosen}}
            node.replaced = len(chosen)
            grammar, node.drifted = drift(rng, grammar, drifting)
        undergone = undergone + node.changes
        if not node.children:
            return [Daughter(node.name, proto, grammar, undergone, variants)]
        return [d for child in node.children for d in descend(child, undergone, variants, grammar, False)]

    return descend(node, [], {}, grammar, True)


def _sizes(known: Concepts) -> list[tuple[str, int]]:
    return [
        ("n", len(known.nouns)),
        ("v", len(known.verbs)),
        ("a", len(known.adjectives)),
        ("d", len(known.adverbs)),
        ("u", len(NUMERALS.split())),
        ("r", len(known.relations)),
        ("p", len(PRONOUNS)),
    ]
