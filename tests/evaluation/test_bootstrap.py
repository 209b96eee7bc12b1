"""The bootstrap over test sentences: BLEU from counts, the same resamples for all, intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation.bootstrap import bleu, resampled_bleu, sentence_test
from mnmt_scale.evaluation.config import EvaluationConfig
from mnmt_scale.evaluation.score import bleu_counts, compare, score_corpus

CONFIG = EvaluationConfig(bootstrap_samples=400)
WORDS = np.array([f"w{i}" for i in range(40)])


def corpus(seed: int, lines: int = 60) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 15))) for _ in range(lines)]


def noisy(references: list[str], share: float, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(w if rng.random() > share else "x" for w in line.split()) for line in references]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9, 1.0])
def test_summed_counts_make_the_corpus_score(share):
    references = corpus(1)
    hypotheses = noisy(references, share, 2)
    hypotheses[0] = "w1"
    counts = bleu_counts(hypotheses, references, "en", CONFIG)
    assert counts.shape == (60, 10)
    found = score_corpus(hypotheses, references, "en", CONFIG).bleu
    assert float(bleu(counts.sum(axis=0))) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize(
    ("hypotheses", "references"),
    [
        (["a b c d e", ""], ["a b c d e", "f g"]),  # brevity
        (["a x b y c z"], ["a b c d e f"]),  # no bigram matches: three smoothed orders
        (["a b c"], ["a b c"]),  # no 4-gram at all
        (["", ""], ["a b c d", "e f g h"]),  # nothing said
        (["a b c d e f g h i"], ["a b c d"]),  # too long
    ],
)
def test_corner_cases_are_those_of_sacrebleu(hypotheses, references):
    counts = bleu_counts(hypotheses, references, "en", CONFIG)
    assert float(bleu(counts.sum(axis=0))) == pytest.approx(score_corpus(hypotheses, references, "en", CONFIG).bleu, abs=1e-9)


def test_lengths_are_compared():
    with pytest.raises(MnmtError, match="E601"):
        bleu_counts(["a"], ["a", "b"], "en", CONFIG)


def test_resamples_are_those_of_a_loop_and_the_same_for_all_systems(monkeypatch):
    references = corpus(3, lines=11)
    systems = {name: bleu_counts(noisy(references, s, 4), references, "en", CONFIG) for name, s in (("a", 0.2), ("b", 0.4))}
    whole, scores = resampled_bleu(systems, 50, [7, 1])
    rng = np.random.default_rng([7, 1])
    times = rng.multinomial(11, np.full(11, 1 / 11), size=50)
    for name, counts in systems.items():
        drawn = [np.repeat(counts, row, axis=0).sum(axis=0) for row in times]
        assert scores[name] == pytest.approx([float(bleu(sums)) for sums in drawn])
        assert whole[name] == float(bleu(counts.sum(axis=0)))
        assert all(len(np.repeat(counts, row, axis=0)) == 11 for row in times)
    twins, same = resampled_bleu({"one": systems["a"], "two": systems["a"]}, 50, [7, 1])
    assert twins["one"] == twins["two"]
    assert (same["one"] == same["two"]).all()
    assert (same["one"] == scores["a"]).all()
    monkeypatch.setattr("mnmt_scale.evaluation.bootstrap._CHUNK_CELLS", 40)  # three resamples at a time
    assert (resampled_bleu(systems, 50, [7, 1])[1]["b"] == scores["b"]).all()


def test_a_better_system_is_found_and_itself_is_not():
    references = corpus(5)
    bad, good = noisy(references, 0.4, 6), noisy(references, 0.25, 7)
    counts = {name: bleu_counts(lines, references, "en", CONFIG) for name, lines in (("bad", bad), ("good", good))}
    whole, scores = resampled_bleu(counts, 400, [1])
    found = sentence_test(whole["good"] - whole["bad"], scores["good"] - scores["bad"])
    assert 0 < found.low < found.difference < found.high
    assert found.p == pytest.approx(1 / 401)
    assert sentence_test(0.0, scores["good"] - scores["good"]).p == 1.0
    # a pair that is close: the difference that sacrebleu finds, and the two-sided p of a normal distribution
    near = noisy(references, 0.38, 8)
    theirs = compare(bad, near, references, "en", CONFIG)[0]
    counts = {"bad": counts["bad"], "near": bleu_counts(near, references, "en", CONFIG)}
    whole, scores = resampled_bleu(counts, 2000, [1])
    ours = sentence_test(whole["near"] - whole["bad"], scores["near"] - scores["bad"])
    assert ours.difference == pytest.approx(theirs.system - theirs.baseline)
    sd = float((scores["near"] - scores["bad"]).std())
    assert ours.p == pytest.approx(2 * norm.sf(abs(ours.difference) / sd), abs=0.03)
    assert 0.1 < ours.p < 0.9


def test_p_and_interval_by_hand():
    resampled = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # mean 3: moved, -2 -1 0 1 2
    assert sentence_test(1.5, resampled, level=0.5).p == (1 + 2) / 6
    assert sentence_test(-2.0, resampled, level=0.5).p == (1 + 2) / 6
    assert sentence_test(2.5, resampled).p == 1 / 6
    found = sentence_test(3.0, resampled, level=0.5)
    assert (found.low, found.high, found.resamples) == (2.0, 4.0, 5)


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    """150 pairs of equal systems: 95 % intervals hold 0 in all but a few, and p below 0.05 is as rare."""
    rng = np.random.default_rng(11)
    outside = significant = 0
    for trial in range(150):
        counts = {}
        for name in "ab":
            total = np.tile([12, 11, 10, 9], (80, 1))
            correct = rng.binomial(total, [0.7, 0.5, 0.35, 0.25])
            counts[name] = np.concatenate([np.full((80, 2), 12), correct, total], axis=1)
        whole, scores = resampled_bleu(counts, 200, [trial])
        found = sentence_test(whole["a"] - whole["b"], scores["a"] - scores["b"])
        outside += not found.low <= 0 <= found.high
        significant += found.p < 0.05
    assert outside <= 18  # binomial(150, 0.05): more than 18 once in 10,000
    assert significant <= 18
