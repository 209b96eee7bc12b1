"""What can be talked about: concepts with their English words. A concept is an index into the list of its kind.

The words are real and irregular English on purpose: no string of the pivot side can be computed from a proto-root.
"""

from __future__ import annotations

from dataclasses import dataclass

PERSONS = """man/men woman/women child/children king queen farmer teacher soldier doctor friend brother sister mother
father son daughter thief/thieves wife/wives baker hunter sailor priest judge singer writer student guest prince
servant merchant stranger uncle"""
ANIMALS = """dog cat horse cow sheep/sheep goose/geese mouse/mice wolf/wolves fish/fish bird bear lion goat fox/foxes
snake pig ox/oxen hen frog bee"""
THINGS = """knife/knives book letter stone rope box/boxes cup key lamp chair table bed coat hat shoe ring sword basket
boat cart bell candle mirror picture drum blanket pot hammer needle coin map flag axe wheel door leaf/leaves"""
FOODS = """apple egg cake onion berry/berries nut pie potato/potatoes pear carrot loaf/loaves sausage"""
PLACES = """house city/cities village river mountain forest field garden island church/churches market school bridge
road castle harbour lake valley tower shop kitchen farm cave street"""

# base, past and third person where irregular, particle; agents; patients (p person, a animal, t thing, f food, l place)
TRANSITIVE = """see/saw pa patfl; hear/heard pa pa; find/found pa patfl; buy/bought p tfa; sell/sold p tfa;
break/broke p t; steal/stole p tfa; catch/caught/catches pa pa; follow pa pa; help p p; hit/hit pa pat; bring/brought
p tfa; carry/carried/carries pa tf; hide/hid pa tf; lose/lost p t; love p patl; hate p pal; fear pa pal; know/knew p
pl; forget/forgot p pt; remember p ptl; eat/ate pa f; draw/drew p patl; clean p tl; wash/washed/washes p ptf; paint p
tl; build/built p tl; burn p tl; push/pushed/pushes pa pat; pull pa pat; throw/threw p tf; hold/held p tf; keep/kept p
taf; leave/left pa pl; visit p pl; watch/watched/watches pa patl; call p pa; bite/bit a pa; feed/fed p pa; meet/met p
p; choose/chose p patf; praise p p; fight/fought pa pa; look+for pa patfl; pick~up p tf; wake/woke~up p pa; wait+for
pa p; put/put~down p tf; take/took~away p atf; run/ran+after pa pa; chase a pa; cook p f"""
INTRANSITIVE = """sleep/slept pa; run/ran pa; sing/sang p; laugh p; weep/wept p; fall/fell pa; swim/swam pa; dance p;
come/came pa; arrive p; sit/sat pa; stand/stood pa; die pa; speak/spoke p; walk pa; wait pa; work p; jump pa;
hurry/hurried/hurries p; get/got+up pa; go/went/goes+away pa; come/came+back pa"""
DITRANSITIVE = """give/gave tfa; send/sent tf; show/showed tfal; offer tfa; lend/lent t; promise tfa"""
ADJECTIVES = """old young big small good bad new black white red green blue long short heavy strong weak rich poor
happy sad dirty hot cold beautiful ugly wise brave quiet angry tired hungry empty broken strange clever"""
# word, tenses in which it can stand (0 past, 1 present, 2 future), place in English (m before the verb, e at the end)
ADVERBS = """yesterday 0 e; tomorrow 2 e; today 012 e; now 1 e; often 01 m; always 012 m; soon 2 e; slowly 012 e;
quickly 012 e; quietly 012 m; again 012 e; together 012 e; here 012 e; there 012 e; gladly 012 m; alone 012 e;
suddenly 0 m; once 0 m"""
RELATIONS = """in l; on tl; near patl; under tl; behind patl; with pa; without pa; from l; to l; for p"""
NUMERALS = "two three four five six seven eight nine ten"
PRONOUNS = ("I me my", "you you your", "he him his", "she her her", "we us our", "they them their")
AGREEMENT = (0, 1, 2, 2, 3, 4)
"""Person and number of each pronoun: 1sg, 2sg, 3sg, 3sg, 1pl, 3pl. Nouns are 2 or 4."""

COLEXIFIED = """tree wood; man friend; mountain stone; book letter; village house; coat blanket; loaf cake; see find;
hear know; road street; sword knife; wise old; bad ugly; throw put; king prince; hunter soldier; river lake"""
"""Concepts (of one kind) that a family may express with one root; English then depends on the context, or is lost."""


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing or person, with its English forms."""

    singular: str
    plural: str
    kind: str
    """p person, a animal, t thing, f food, l place."""


@dataclass(frozen=True, slots=True)
class Verb:
    """An action, with its English forms and the arguments it takes."""

    base: str
    third: str
    past: str
    particle: str
    separable: bool
    """The particle follows the object: "picked the cup up"."""
    agents: str
    patients: str


@dataclass(frozen=True, slots=True)
class Adverb:
    """A way or time of an action."""

    word: str
    tenses: tuple[int, ...]
    medial: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A place relative to something."""

    word: str
    kinds: str


@dataclass(frozen=True, slots=True)
class Concepts:
    """The concepts of one set of languages. Verbs: transitive, then intransitive, then ditransitive."""

    nouns: tuple[Noun, ...]
    transitive: tuple[Verb, ...]
    intransitive: tuple[Verb, ...]
    ditransitive: tuple[Verb, ...]
    adjectives: tuple[str, ...]
    adverbs: tuple[Adverb, ...]
    relations: tuple[Relation, ...]
    numerals: tuple[str, ...]

    @property
    def verbs(self) -> tuple[Verb, ...]:
        return self.transitive + self.intransitive + self.ditransitive


def concepts(share: float = 1.0) -> Concepts:
    """The first ``share`` of each list (at least 4 of each kind; adverbs, relations and numerals always whole)."""
    nouns = []
    for kind, text in zip("patfl", (PERSONS, ANIMALS, THINGS, FOODS, PLACES), strict=True):
        nouns += [_noun(word, kind) for word in _first(text.split(), share)]
    with_patients = [entry.split() for entry in _first(TRANSITIVE.split(";"), share)]
    transitive = [_verb(word, agents, patients) for word, agents, patients in with_patients]
    alone = [entry.split() for entry in _first(INTRANSITIVE.split(";"), share)]
    intransitive = [_verb(word, agents, "") for word, agents in alone]
    given = [entry.split() for entry in _first(DITRANSITIVE.split(";"), share)]
    ditransitive = [_verb(word, "p", patients) for word, patients in given]
    adverbs = []
    for entry in ADVERBS.split(";"):
        word, tenses, place = entry.split()
        adverbs.append(Adverb(word, tuple(map(int, tenses)), place == "m"))
    relations = tuple(Relation(*entry.split()) for entry in RELATIONS.split(";"))
    return Concepts(
        tuple(nouns),
        tuple(transitive),
        tuple(intransitive),
        tuple(ditransitive),
        tuple(_first(ADJECTIVES.split(), share)),
        tuple(adverbs),
        relations,
        tuple(NUMERALS.split()),
    )


def colexified(known: Concepts) -> list[tuple[str, int, int]]:
    """(kind, concept, concept) of the listed pairs that are among the concepts; kind as in ``lexicon``."""
    tables = {
        "n": [n.singular for n in known.nouns],
        "v": [v.base for v in known.verbs],
        "a": list(known.adjectives),
    }
    out = []
    for entry in COLEXIFIED.split(";"):
        a, b = entry.split()
        out += [(kind, words.index(a), words.index(b)) for kind, words in tables.items() if a in words and b in words]
    return out


def _first(items: list[str], share: float) -> list[str]:
    return items[: max(4, round(share * len(items)))]


def _noun(word: str, kind: str) -> Noun:
    singular, _, plural = word.partition("/")
    return Noun(singular, plural or singular + "s", kind)


def _verb(word: str, agents: str, patients: str) -> Verb:
    separable = "~" in word
    forms, _, particle = word.replace("~", "+").partition("+")
    base, *rest = forms.split("/")
    past = rest[0] if rest else base + ("d" if base.endswith("e") else "ed")
    third = rest[1] if len(rest) > 1 else base + "s"
    return Verb(base, third, past, particle, separable, agents, patients)
