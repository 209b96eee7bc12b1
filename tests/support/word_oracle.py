"""A dictionary translator that cheats: it knows, from the true alignments, the best English word for every source word.

It stands for everything that a word-for-word substitution can reach on constructed languages: each source word type is
translated by the English word that it is aligned to most often (nothing, where that is most frequent), in source order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import islice

from mnmt_scale.data.synthetic import World
from mnmt_scale.data.synthetic.draws import stream
from mnmt_scale.data.synthetic.english import LABEL
from mnmt_scale.data.synthetic.text import TEST, TRAIN, meanings


def traced_pairs(world: World, code: str, split: int, count: int):
    """(source, target) of ``count`` sentences; each a list of (word, label)."""
    english, speaker = world.english(trace=True), world.speaker(code, trace=True)
    rng = stream("oracle", code, split)
    for clause, words in meanings(world.config, world.sampler(), english, rng, split, count):
        yield _split(speaker.sentence(clause)), _split(words)


def _split(words: list[str]) -> list[tuple[str, str]]:
    return [tuple(word.split(LABEL)) for word in words]  # type: ignore[misc]


def dictionary(world: World, code: str, sentences: int, *, empty: bool) -> dict[str, str]:
    """Most frequent aligned English word of each source word type of ``sentences`` training sentences.

    Words are aligned by equal labels, in order of occurrence. ``empty``: a word may be translated by nothing.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for source, target in traced_pairs(world, code, TRAIN, sentences):
        waiting: dict[str, list[str]] = defaultdict(list)
        for word, label in target:
            waiting[label].append(word)
        for word, label in source:
            aligned = waiting[label].pop(0) if waiting[label] else ""
            if aligned or empty:
                counts[word][aligned] += 1
    return {word: found.most_common(1)[0][0] for word, found in counts.items()}


def dictionary_bleu(world: World, code: str, *, train: int = 4000, test: int = 200, empty: bool = True) -> float:
    """Test BLEU of the dictionary; unknown words are copied."""
    import sacrebleu

    table = dictionary(world, code, train, empty=empty)
    hypotheses, references = [], []
    for source, target in islice(traced_pairs(world, code, TEST, test), test):
        hypotheses.append(" ".join(w for w in (table.get(word, word) for word, _ in source) if w))
        references.append(" ".join(word for word, _ in target))
    return sacrebleu.corpus_bleu(hypotheses, [references]).score
