"""Constructed languages: sound changes, scripts, English."""

from __future__ import annotations

import random
import unicodedata

import pytest

from mnmt_scale.data.synthetic.concepts import concepts
from mnmt_scale.data.synthetic.english import English
from mnmt_scale.data.synthetic.meaning import DITRANSITIVE, FUTURE, INDEFINITE, PRESENT, TRANSITIVE, NounPhrase
from mnmt_scale.data.synthetic.scripts import CONSONANTS, PHONEMES, SCRIPTS, VOWELS, writer
from mnmt_scale.data.synthetic.sound import CHANGES, apply, draw_phonotactics
from tests.support.constructed import make, noun, verb

# ---- sounds and scripts


def test_sound_changes_by_hand():
    assert apply(["intervocalic voicing"], "patakos") == "padagos"
    assert apply(["intervocalic voicing", "final devoicing"], "kadag") == "kadak"
    assert apply(["rhotacism", "apocope"], "kosima") == "korim"
    assert apply(["apocope"], "mina") == "mina", "short words keep their ends"
    assert apply(["back chain"], "kamotu") == "komuty", "a chain does not feed itself"
    assert apply(["syncope"], "tarisolu") == "tarsolu"
    assert apply(["velar palatalisation"], "kikaku") == "Cikaku"
    assert apply(["stop shift"], "pakug") == "faxuk"
    assert apply(["breaking of e"], "meta") == "mjeta"
    assert apply(["nasal assimilation"], "anpa") == "ampa"
    assert apply(["liquid metathesis"], "tarko") == "trako"
    assert apply(["loss of h", "p to h"], "pahi") == "hai", "changes apply in order"


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_regular_and_happens(name):
    """Equal words stay equal, phonemes stay phonemes, and the change does something to some words."""
    rng = random.Random(name)
    changed = 0
    for _ in range(400):
        syllables = [(CONSONANTS, VOWELS, CONSONANTS)[: rng.choice((2, 3))] for _ in range(3)]
        word = "".join(rng.choice(sounds) for syllable in syllables for sounds in syllable)
        after = apply([name], word)
        assert after == apply([name], word)
        assert set(after) <= set(PHONEMES)
        assert set(after) & set(VOWELS)
        changed += after != word
    assert changed > 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_keep_words_apart_and_survive_normalisation(script):
    write = writer(script)
    rng = random.Random(script)
    words = {draw_phonotactics(rng).root(rng, 3) for _ in range(800)}
    written = {write(word) for word in words}
    assert len(written) == len(words)
    for text in written:
        assert unicodedata.normalize("NFKC", text) == text
        assert " " not in text
    if script not in ("latin", "latin_diacritic"):
        assert not any(character.isascii() for text in written for character in text)
    assert len(VOWELS) + len(CONSONANTS) == len(PHONEMES)


def test_devanagari_uses_vowel_signs():
    assert writer("devanagari")("kita") == "\u0915\u093f\u0924\u093e"
    assert writer("devanagari")("ankat") == "\u0906\u0928\u094d\u0915\u093e\u0924\u094d"


# ---- English


@pytest.fixture(scope="module")
def english():
    return English(concepts())


def test_english_is_irregular_and_structural(english):
    def say(clause):
        return " ".join(english.sentence(clause))

    old = (concepts().adjectives.index("old"),)
    child, wolf = noun("child", plural=1, numeral=1), noun("wolf", plural=1, adjectives=old)
    seeing = make(TRANSITIVE, verb=verb("see"), agent=child, patient=wolf)
    assert say(seeing) == "the three children saw the old wolves"
    seeing.negative = True
    assert say(seeing) == "the three children did not see the old wolves"
    seeing.question, seeing.tense = True, FUTURE
    assert say(seeing) == "will the three children not see the old wolves"
    cup = make(TRANSITIVE, verb=verb("pick"), agent=NounPhrase(pronoun=3), patient=noun("cup"), tense=PRESENT)
    assert say(cup) == "she picks the cup up"
    cup.patient.adjectives = (*old, concepts().adjectives.index("red"))
    assert say(cup) == "she picks up the old red cup"
    apple = noun("apple", definite=INDEFINITE)
    give = make(DITRANSITIVE, verb=verb("give"), agent=noun("king"), patient=apple, recipient=NounPhrase(pronoun=2))
    assert say(give) == "the king gave him an apple"
    give.recipient = noun("thief", owner=noun("man"), adjectives=old)
    assert say(give) == "the king gave an apple to the man's old thief"
    give.recipient.owner.plural = 1
    assert say(give) == "the king gave an apple to the old thief of the men"
    saw = make(TRANSITIVE, verb=verb("find"), agent=noun("dog"), head=cup.patient)
    cup.patient.relative = saw
    cup.patient.adjectives = ()
    assert say(cup) == "she picks up the cup that the dog found"
