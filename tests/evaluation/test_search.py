"""Beam search against exhaustive search and against transformers' ``generate``."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation.config import EvaluationConfig
from mnmt_scale.evaluation.decode import Special, decode_ids
from mnmt_scale.evaluation.search import BLOCK, BeamSearch, GreedySearch, best_continuations
from mnmt_scale.model.incremental import Decoder
from tests.support.hf_model import EOS, PAD, as_transformer, generate, random_m2m100

FORBIDDEN = [0, 1, 3, 4, 5, 6]
TAG = 5


def random_sources(vocabulary: int, count: int, seed: int) -> list[list[int]]:
    r = random.Random(seed)
    return [[4, *(r.randrange(8, vocabulary) for _ in range(r.randrange(1, 14))), EOS] for _ in range(count)]


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 1.7])
@pytest.mark.parametrize(("vocabulary", "spread"), [(70, 0.35), (1000, 0.5)])
def test_beam_equals_generate(vocabulary, spread, length_penalty, early_stopping):
    model = random_m2m100(vocabulary, spread=spread)
    sources = random_sources(vocabulary, 40, seed=1)
    options = dict(length_penalty=length_penalty, early_stopping=early_stopping)
    with torch.no_grad():
        expected = generate(model, sources, TAG, 20, FORBIDDEN, num_beams=5, **options)
    config = EvaluationConfig(beam=5, batch_tokens=500, **options)
    found = decode_ids(Decoder(as_transformer(model)), sources, TAG, Special(EOS, PAD, tuple(FORBIDDEN)), config, [20] * 40)
    assert [h.tokens for h in found] == expected
    if vocabulary == 70 and length_penalty == 1.0:  # the case holds sentences that end and that are cut
        assert 5 < sum(len(tokens) < 19 for tokens in expected) < 40


def test_beam_equals_generate_with_a_limit_for_each_sentence():
    model = random_m2m100()
    sources = random_sources(70, 12, seed=2)
    limits = [3 + 2 * len(s) for s in sources]
    with torch.no_grad():
        expected = [
            generate(model, [s], TAG, n, FORBIDDEN, num_beams=5, early_stopping=False)[0]
            for s, n in zip(sources, limits, strict=True)
        ]
    config = EvaluationConfig(beam=5)
    found = decode_ids(Decoder(as_transformer(model)), sources, TAG, Special(EOS, PAD, tuple(FORBIDDEN)), config, limits)
    assert [h.tokens for h in found] == expected
    assert len({len(tokens) for tokens in expected}) > 3


@pytest.mark.parametrize(("vocabulary", "spread"), [(300, 0.5), (1000, 0.5)])
def test_greedy_equals_generate(vocabulary, spread):
    model = random_m2m100(vocabulary, spread=spread)
    sources = random_sources(vocabulary, 40, seed=3)
    with torch.no_grad():
        expected = generate(model, sources, TAG, 20, FORBIDDEN, num_beams=1)
    config = EvaluationConfig(beam=1)
    found = decode_ids(Decoder(as_transformer(model)), sources, TAG, Special(EOS, PAD, tuple(FORBIDDEN)), config, [20] * 40)
    assert [h.tokens for h in found] == expected
    assert 0 < sum(len(tokens) < 19 for tokens in expected) < 40


def markov(vocabulary: int, seed: int) -> torch.Tensor:
    """Log-probabilities [previous token, next token] of a first-order chain."""
    g = torch.Generator().manual_seed(seed)
    return torch.log_softmax(2.0 * torch.randn(vocabulary, vocabulary, generator=g), 1)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_is_exhaustive_search(seed, length_penalty):
    """Chain over 4 words and </s>, at most 4 tokens after the tag: with room for all prefixes nothing can be missed."""
    table, eos, start, longest = markov(5, seed), 0, 1, 4
    best: tuple[float, tuple[int, ...]] = (-math.inf, ())
    for n in range(longest + 1):
        for words in itertools.product(range(1, 5), repeat=n):
            tokens = (*words, eos) if n < longest else words
            if not tokens:
                continue
            logp = sum(float(table[a, b]) for a, b in itertools.pairwise((start, *tokens)))
            best = max(best, (logp / (len(tokens) + 1) ** length_penalty, words))
    search = BeamSearch(torch.tensor([longest + 1]), 4**longest, eos=eos, length_penalty=length_penalty)
    rows = table[start][None, None]
    while not bool(search.done.all()):
        tokens, _ = search.advance(rows)
        rows = table[tokens]
    (found,) = search.results(torch.tensor([0]))
    assert tuple(found.tokens) == best[1]
    assert found.score == pytest.approx(best[0], abs=1e-5)


def test_longer_hypothesis_wins_with_length_penalty_only():
    """One word at once 0.6 likely to end, or a long sure continuation after a 0.4 start."""
    eos, a, b = 0, 1, 2
    table = torch.full((3, 3), -math.inf)
    table[a, eos], table[a, b] = math.log(0.6), math.log(0.4)
    table[b, b], table[b, eos] = math.log(0.9), math.log(0.1)

    def run(length_penalty: float) -> list[int]:
        search = BeamSearch(torch.tensor([6]), 2, eos=eos, length_penalty=length_penalty)
        rows = table[a][None, None]
        while not bool(search.done.all()):
            tokens, _ = search.advance(rows)
            rows = table[tokens]
        return search.results(torch.tensor([0]))[0].tokens

    assert run(0.0) == []
    assert run(2.0) == [b] * 5


@pytest.mark.parametrize("width", [BLOCK * 40, BLOCK * 40 + 3, 12])
@pytest.mark.parametrize("running", [1, 4])
def test_best_continuations_are_the_best(width, running):
    g = torch.Generator().manual_seed(width)
    log_probs = torch.randn(6, running, width, generator=g)
    log_probs[:, :, ::7] = -math.inf
    scores = torch.randn(6, running, generator=g) * 3
    expected = (log_probs + scores[:, :, None]).flatten(1).sort(dim=1, descending=True)
    best, parents, tokens = best_continuations(log_probs, scores, 8)
    torch.testing.assert_close(best, expected.values[:, :8])
    assert torch.equal(parents * width + tokens, expected.indices[:, :8])


def test_best_continuations_fill_up_when_there_are_too_few():
    best, parents, tokens = best_continuations(torch.zeros(2, 1, 3), torch.zeros(2, 1), 5)
    assert best[0].tolist() == [0, 0, 0, -math.inf, -math.inf]
    assert int(parents.max()) == 0
    assert int(tokens.max()) <= 2


@pytest.mark.parametrize("beam", [1, 3])
def test_ties_do_not_depend_on_the_place_in_the_batch(beam):
    flat = torch.zeros(5, 1, BLOCK * 8)
    flat[:, :, 0] = -5.0
    make = (
        (lambda: BeamSearch(torch.full((5,), 6), beam, eos=0, length_penalty=1.0))
        if beam > 1
        else (lambda: GreedySearch(torch.full((5,), 6), eos=0))
    )
    results = []
    for _ in range(2):
        search = make()
        rows = flat
        while not bool(search.done.all()):
            search.advance(rows)
            rows = flat.expand(-1, beam, -1)
        results.append([h.tokens for h in search.results(torch.arange(5))])
    assert results[0] == results[1]
    assert all(tokens == results[0][0] for tokens in results[0])


@pytest.mark.parametrize("beam", [1, 5])
def test_result_does_not_depend_on_the_batch(beam):
    model = random_m2m100()
    decoder, special = Decoder(as_transformer(model)), Special(EOS, PAD, tuple(FORBIDDEN))
    sources = random_sources(70, 30, seed=5)
    config = EvaluationConfig(beam=beam)
    together = decode_ids(decoder, sources, TAG, special, config)
    alone = [decode_ids(decoder, [s], TAG, special, config)[0] for s in sources]
    assert [h.tokens for h in together] == [h.tokens for h in alone]
    forbidden = set(FORBIDDEN) | {EOS}
    assert not forbidden & {t for h in together for t in h.tokens}


def test_limits_follow_the_source():
    model = random_m2m100()
    with torch.no_grad():
        model.model.shared.weight[EOS] = 0.0  # never the best: every sentence runs to its limit
    sources = random_sources(70, 10, seed=6)
    config = EvaluationConfig(beam=4, max_ratio=1.5, max_extra=2, early_stopping=False, length_penalty=3.0)
    found = decode_ids(Decoder(as_transformer(model)), sources, TAG, Special(EOS, PAD, tuple(FORBIDDEN)), config)
    for source, hypothesis in zip(sources, found, strict=True):
        assert len(hypothesis.tokens) == int(1.5 * (len(source) - 2)) + 2


@pytest.mark.parametrize("beam", [1, 4])
def test_a_model_that_is_not_finite_is_an_error(beam):
    model = random_m2m100()
    with torch.no_grad():
        model.model.shared.weight[20] = math.nan
    with pytest.raises(MnmtError, match="E501"):
        decode_ids(
            Decoder(as_transformer(model)), random_sources(70, 3, 7), TAG, Special(EOS, PAD), EvaluationConfig(beam=beam)
        )
