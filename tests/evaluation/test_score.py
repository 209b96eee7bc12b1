"""BLEU and chrF++: equal to sacrebleu's command line conventions, never over lists of different lengths."""

from __future__ import annotations

import numpy as np
import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation.config import EvaluationConfig
from mnmt_scale.evaluation.score import choose_tokenizer, compare, score_corpus

AUTO = EvaluationConfig()
REFERENCES = ["the cat sat on the mat .", "a dog barked at the moon all night , loudly .", "it rains ."] * 4
HYPOTHESES = ["the cat sat on a mat .", "a dog barked the whole night at a moon .", "it rains ."] * 4


@pytest.fixture(autouse=True)
def no_models(monkeypatch, tmp_path):
    monkeypatch.setenv("SACREBLEU", str(tmp_path / "sacrebleu"))


@pytest.fixture
def flores200(tmp_path):
    """A small SentencePiece model in the place of the 256,000 piece original."""
    import sentencepiece

    lines = [
        "\u0eaa\u0eb0\u0e9a\u0eb2\u0e8d\u0e94\u0eb5 \u0e82\u0ec9\u0ead\u0e8d\u0e8a\u0eb7\u0ec8",
        "the cat sat on the mat",
        "\u0eaa\u0eb0\u0e9a\u0eb2\u0e8d \u0e94\u0eb5\u0e82\u0ec9\u0ead\u0e8d",
    ] * 30
    prefix = tmp_path / "flores"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=30, minloglevel=2
    )
    return prefix.with_suffix(".model")


def test_scores_are_those_of_sacrebleu():
    from sacrebleu.metrics import BLEU, CHRF

    found = score_corpus(HYPOTHESES, REFERENCES, "en", AUTO)
    bleu, chrf = BLEU(), CHRF(word_order=2)
    assert found.bleu == bleu.corpus_score(HYPOTHESES, [REFERENCES]).score
    assert found.chrf == chrf.corpus_score(HYPOTHESES, [REFERENCES]).score
    assert 20 < found.bleu < 80
    assert found.bleu_signature == str(bleu.get_signature())
    assert "tok:13a" in found.bleu_signature
    assert "nw:2" in found.chrf_signature
    assert found.warning is None


@pytest.mark.parametrize(("hypotheses", "references"), [(2, 1), (1, 2), (0, 1), (0, 0)])
def test_different_lengths_are_refused(hypotheses, references):
    with pytest.raises(MnmtError, match="E601") as caught:
        score_corpus(["a b c d e"] * hypotheses, ["a b c d e"] * references, "en", AUTO)
    assert f"{hypotheses} hypotheses for {references} references" in str(caught.value)
    with pytest.raises(MnmtError, match="E601"):
        compare(["a"] * hypotheses, ["a"] * references, ["a"] * references, "en", AUTO)


@pytest.mark.parametrize(
    ("target", "line", "tokenizer", "warns"),
    [
        ("de", "Guten Tag, Welt!", "13a", False),
        ("ru", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440", "13a", False),
        ("zh", "\u4f60\u597d\uff0c\u4e16\u754c", "zh", False),
        ("zho_Hans", "\u4f60\u597d\uff0c\u4e16\u754c", "zh", False),
        ("yue", "\u4f60\u597d\u5440", "zh", False),
        ("ja", "\u3053\u308c\u306f\u30da\u30f3\u3067\u3059", "char", True),
        ("th", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "char", True),
        ("lo", "\u0eaa\u0eb0\u0e9a\u0eb2\u0e8d\u0e94\u0eb5", "char", True),
        ("my", "\u1019\u1004\u103a\u1039\u1002\u101c\u102c\u1015\u102b", "char", True),
        ("km", "\u179f\u17bd\u179f\u17d2\u178f\u17b8", "char", True),
        ("dz", "\u0f56\u0f40\u0fb2\u0f0b\u0f64\u0f72\u0f66", "char", True),
        ("th", "sawatdi chao lok", "13a", False),  # romanised: what is written counts
        (
            "xx",
            "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
            "char",
            True,
        ),  # an unknown code in a script without spaces
        ("ko", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "13a", True),
    ],
)
def test_tokenizer_follows_the_target(target, line, tokenizer, warns, monkeypatch):
    monkeypatch.setattr("mnmt_scale.evaluation.score._MECAB", {"ja-mecab": ("no_such_a",), "ko-mecab": ("no_such_b",)})
    name, warning = choose_tokenizer(target, [line] * 3, AUTO)
    assert name == tokenizer
    assert (warning is not None) == warns
    if warns:
        assert target in warning


def test_mecab_is_used_where_it_is_installed(monkeypatch):
    monkeypatch.setattr("mnmt_scale.evaluation.score._MECAB", {"ja-mecab": ("json",), "ko-mecab": ("json",)})
    assert choose_tokenizer("ja", ["\u3053\u308c\u306f\u30da\u30f3\u3067\u3059"], AUTO) == ("ja-mecab", None)
    assert choose_tokenizer("ko", ["\uc548\ub155\ud558\uc138\uc694"], AUTO) == ("ko-mecab", None)


def test_character_bleu_is_marked_by_its_signature():
    lines = [
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
        "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e2d\u0e32\u0e01\u0e32\u0e28\u0e14\u0e35",
    ]
    found = score_corpus(lines, lines, "th", AUTO)
    assert found.bleu == pytest.approx(100)
    assert "tok:char" in found.bleu_signature
    assert "characters" in found.warning


def test_flores200_from_a_local_file_is_sacrebleus(flores200, monkeypatch, tmp_path):
    from sacrebleu.metrics import BLEU
    from sacrebleu.tokenizers import tokenizer_spm

    hypotheses, references = (
        ["\u0eaa\u0eb0\u0e9a\u0eb2\u0e8d\u0e94\u0eb5 \u0e82\u0ec9\u0ead\u0e8d", "the cat"] * 3,
        ["\u0eaa\u0eb0\u0e9a\u0eb2\u0e8d\u0e94\u0eb5 \u0e82\u0ec9\u0ead\u0e8d\u0e8a\u0eb7\u0ec8", "the cat sat"] * 3,
    )
    config = EvaluationConfig(flores200_model=str(flores200))
    assert choose_tokenizer("lo", references[:1], config) == ("flores200", None)
    found = score_corpus(
        hypotheses, references, "lo", EvaluationConfig(flores200_model=str(flores200), bleu_tokenizer="flores200")
    )
    place = tmp_path / "own" / "models" / "flores200sacrebleuspm"
    place.parent.mkdir(parents=True)
    place.write_bytes(flores200.read_bytes())
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path / "own"))
    theirs = BLEU(tokenize="flores200")
    assert found.bleu == theirs.corpus_score(hypotheses, [references]).score
    assert found.bleu_signature == str(theirs.get_signature())
    monkeypatch.setenv("SACREBLEU", str(tmp_path / "own"))
    assert choose_tokenizer("lo", references[:1], AUTO) == ("flores200", None)


def test_a_better_system_is_significantly_better_and_itself_is_not():
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(40)])
    references = [" ".join(rng.choice(words, 12)) for _ in range(60)]

    def noisy(share: float) -> list[str]:
        return [" ".join(w if rng.random() > share else "x" for w in line.split()) for line in references]

    bad, good = noisy(0.4), noisy(0.2)
    config = EvaluationConfig(bootstrap_samples=200)
    differences = compare(bad, good, references, "en", config)
    assert [d.metric for d in differences] == ["BLEU", "chrF++"]
    for d in differences:
        assert d.system > d.baseline
        assert d.p < 0.02
        assert "bs:200" in d.signature
        assert "seed:12345" in d.signature
    assert differences == compare(bad, good, references, "en", config)
    assert all(d.p > 0.5 for d in compare(good, good, references, "en", config))
    other = compare(bad, noisy(0.39), references, "en", EvaluationConfig(bootstrap_samples=200, bootstrap_seed=7))
    assert "seed:7" in other[0].signature
