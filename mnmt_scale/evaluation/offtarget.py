"""How many outputs are not in the language that was asked for.

Two measures. By script: most letters of the output are in a script that the target's training text hardly uses. By
character n-grams (1 to 3): a multinomial naive Bayes classifier over the languages of the model, trained on their text
in the token store, gives another language than the target. Close languages are confused by such a classifier; so the
same rate over the references, which are in the target language by definition, stands beside it as the floor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .script import main_script, scripts_of

BUCKETS = 1 << 16
_ORDERS = (1, 2, 3)
_MIN_SCRIPT_SHARE = 0.05
_PRIMES = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class OffTarget:
    """Shares of the judged outputs (those with a letter).

    Attributes:
        lines: outputs judged.
        script_rate: written in a foreign script.
        ngram_rate: another language is more probable than the target.
        reference_rate: the same of the references: what this classifier gets wrong by itself.
        languages: the other languages that were found, most frequent first, at most five.
    """

    lines: int
    script_rate: float
    ngram_rate: float
    reference_rate: float
    languages: dict[str, int]


class LanguageProfiles:
    """Character n-gram statistics of each language.

    Args:
        text: lines of each language; at least one language, each with some text.
    """

    def __init__(self, text: Mapping[str, Sequence[str]]) -> None:
        self.languages = sorted(text)
        counts = np.stack([np.bincount(ngram_buckets(" ".join(text[c])), minlength=BUCKETS) for c in self.languages])
        smoothed = counts + 0.5
        self.log_probability = np.log(smoothed / smoothed.sum(1, keepdims=True)).astype(np.float32)
        self.scripts = {
            c: {s for s, share in scripts_of(text[c]).items() if share >= _MIN_SCRIPT_SHARE} for c in self.languages
        }

    def classify(self, line: str) -> str | None:
        """The most probable language of a line, the first by name of equals; None without letters."""
        if main_script(line) is None:
            return None
        scores = self.log_probability[:, ngram_buckets(line)].sum(1, dtype=np.float64)
        return self.languages[int(scores.argmax())]

    def judge(self, hypotheses: Sequence[str], references: Sequence[str], target: str) -> OffTarget | None:
        """Off-target rates of one direction; None when the target has no profile or nothing can be judged."""
        if target not in self.scripts:
            return None
        found = [c for c in map(self.classify, hypotheses) if c is not None]
        if not found:
            return None
        scripts = [s for s in map(main_script, hypotheses) if s is not None]
        floor = [c for c in map(self.classify, references) if c is not None]
        others = Counter(c for c in found if c != target)
        return OffTarget(
            lines=len(found),
            script_rate=sum(s not in self.scripts[target] for s in scripts) / len(scripts),
            ngram_rate=others.total() / len(found),
            reference_rate=sum(c != target for c in floor) / len(floor) if floor else 0.0,
            languages=dict(sorted(others.items(), key=lambda kv: (-kv[1], kv[0]))[:5]),
        )


def ngram_buckets(text: str) -> np.ndarray:
    """Buckets (int64) of all 1- to 3-grams of the lower-cased text between spaces.

    The hash is arithmetic on code points, so that profiles do not depend on the process or the machine.
    """
    padded = f" {' '.join(text.lower().split())} ".encode("utf-32-le")
    points = np.frombuffer(padded, dtype="<u4").astype(np.uint64)
    out = []
    for order in _ORDERS:
        if len(points) < order:
            break
        width = len(points) - order + 1
        mixed = np.full(width, order, dtype=np.uint64)
        for i in range(order):
            mixed = (mixed ^ points[i : i + width]) * _PRIMES[i]
        out.append((mixed >> np.uint64(48)).astype(np.int64) % BUCKETS)
    return np.concatenate(out)
