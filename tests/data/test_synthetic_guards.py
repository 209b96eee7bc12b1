"""Constructed languages are no cipher: dictionaries and copying fail, families share nothing but by descent."""

from __future__ import annotations

import itertools

import pytest

from mnmt_scale.data.synthetic import SyntheticConfig, construct, generate
from mnmt_scale.data.synthetic.concepts import concepts
from mnmt_scale.data.synthetic.draws import stream
from mnmt_scale.data.synthetic.meaning import TRANSITIVE
from mnmt_scale.data.synthetic.sound import apply
from mnmt_scale.data.synthetic.text import TEST, TRAIN, meanings
from tests.support.constructed import DEFAULT, SMALL, lines, make, noun, verb
from tests.support.word_oracle import dictionary, dictionary_bleu, traced_pairs


@pytest.fixture(scope="module")
def world():
    return construct(DEFAULT)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(directory, truth) of the default languages with less text."""
    out = tmp_path_factory.mktemp("constructed")
    return out, generate(SMALL, out)


def edit_distance(a: str, b: str) -> float:
    """Levenshtein distance over the longer length."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1] / max(len(a), len(b))


# ---- no cipher


@pytest.mark.parametrize("code", [f"q{f}{x}" for f, n in zip("abcd", (4, 3, 3, 1), strict=True) for x in "abcd"[:n]])
def test_a_word_for_word_oracle_fails(world, code):
    """The best English word for every source word, known from 3000 sentences with true alignments, in source order."""
    assert dictionary_bleu(world, code, train=3000, test=200) < 15
    assert dictionary_bleu(world, code, train=1000, test=200, empty=False) < 15


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_word_for_word_oracle_fails_for_other_seeds(seed):
    world = construct(SyntheticConfig(seed=seed, families=[1] * 6))
    assert max(dictionary_bleu(world, code, train=1000, test=150) for code in world.daughters) < 15


def test_the_oracle_is_strong(world):
    """The guard above is worth something only if the dictionary knows the words: most content words are right."""
    table = dictionary(world, "qca", 3000, empty=True)
    right = total = 0
    for source, target in traced_pairs(world, "qca", TEST, 200):
        expected = {label: word for word, label in target}
        for word, label in source:
            if label[0] in "nvad" and label in expected:
                total += 1
                right += table.get(word) == expected[label]
    assert right / total > 0.7


def test_copying_fails(corpus):
    import sacrebleu

    out, truth = corpus
    for code in truth.sizes:
        score = sacrebleu.corpus_bleu(lines(out, code, "test", code), [lines(out, code, "test", "en")]).score
        assert score < 5


def test_words_are_shared_only_through_descent(world, corpus):
    """Identical word types: next to none across families and with English; many within a family and script."""
    out, truth = corpus
    types = {code: {w for line in lines(out, code, "train", code) for w in line.split()} for code in truth.sizes}
    types["en"] = {w for line in lines(out, "qaa", "train", "en") for w in line.split()}

    def shared(a: str, b: str) -> float:
        return len(types[a] & types[b]) / min(len(types[a]), len(types[b]))

    for a, b in itertools.combinations(types, 2):
        if "en" in (a, b) or truth.family_of(a) != truth.family_of(b):
            assert shared(a, b) < 0.02, (a, b)
    sisters = [
        shared(a, b)
        for codes in (("qaa", "qab", "qac", "qad"), ("qca", "qcb", "qcc"))
        for a, b in itertools.combinations(codes, 2)
    ]
    assert sum(sisters) / len(sisters) > 0.1
    assert max(sisters) > 0.3


def test_cognates_are_closer_within_a_family_than_across(world):
    """Mean edit distance of the words for the same concept, before transliteration."""
    truth = world.truth
    words = {c: {e: d.pronounce(r) for e, r in d.roots.items() if e[0] != "f"} for c, d in world.daughters.items()}

    def distance(a: str, b: str) -> float:
        return sum(edit_distance(words[a][e], words[b][e]) for e in words[a]) / len(words[a])

    within = {p: distance(*p) for codes in truth.families.values() for p in itertools.combinations(codes, 2)}
    across = [distance(a, b) for a, b in itertools.combinations(words, 2) if truth.family_of(a) != truth.family_of(b)]
    assert max(within.values()) < 0.6 < 0.7 < min(across)
    near = [d for p, d in within.items() if truth.distance(*p) == 2]
    far = [d for p, d in within.items() if truth.distance(*p) > 2]
    assert sum(near) / len(near) < sum(far) / len(far), "closer in the tree, closer in sound"


def test_correspondences_are_regular(world):
    """A language's words are its own sound changes applied to proto-roots, with no exception."""
    for daughter in world.daughters.values():
        for root in daughter.roots.values():
            assert daughter.pronounce(root) == apply(daughter.changes, root)
    a, b = (world.daughters[code] for code in world.truth.families["c"][:2])
    cognate = [e for e in a.roots if a.roots[e] == b.roots[e]]
    assert len(cognate) > 0.6 * len(a.roots), "most roots are inherited by both"


def test_languages_differ_in_grammar_as_the_truth_says(world):
    """The verb of plain transitive clauses stands where the truth's word order has it."""
    for entry in world.truth.languages:
        order = str(entry.grammar["order"])
        speaker = world.speaker(entry.code, trace=True)
        clause = make(TRANSITIVE, verb=verb("see"), agent=noun("king"), patient=noun("queen"))
        labels = [w.split("\x1f")[1] for w in speaker.sentence(clause)]
        nouns = [n.singular for n in concepts().nouns]
        names = {f"n{nouns.index('king')}": "S", f"n{nouns.index('queen')}": "O", f"v{verb('see')}": "V"}
        assert "".join(names[label] for label in labels if label in names) == order


def test_speakers_tell_apart_what_english_tells_apart(world):
    """Few training sentences of a language are equal while their English differs: the source is no riddle."""
    english, sampler = world.english(), world.sampler()
    for code in ("qaa", "qba", "qca", "qda"):
        speaker = world.speaker(code)
        said: dict[tuple, set[tuple]] = {}
        for clause, words in meanings(world.config, sampler, english, stream("riddle", code), TRAIN, 2000):
            said.setdefault(tuple(speaker.sentence(clause)), set()).add(tuple(words))
        assert sum(len(found) - 1 for found in said.values()) < 60
