"""What one evaluation is asked to do, what all its models share, and the table that it becomes."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..data.config import DataConfig
from ..data.store import SPLITS, TokenStore
from ..errors import MnmtError, nearest
from ..runs import OpenedRun
from .config import EvaluationConfig
from .offtarget import LanguageProfiles
from .resources import averages, check_classes
from .results import Files
from .testsets import TreeTexts

PROFILE_LINES = 2000
"""Training lines per language and pair that the language profiles are made from, spread evenly over the corpus."""
LANGUAGE_LINES = 20_000
"""And of one language in all: a pivot would else be as much text as all other languages together."""


@dataclass(frozen=True, slots=True)
class Options:
    """What one evaluation is asked to do.

    Attributes:
        split: ``test`` or ``dev``.
        only: directions (``fr-en``) or pairs (both their directions); None: all.
        limit: the first lines of each test set only.
        beam: instead of the run's setting.
        against: another run or bundle, evaluated before on the same lines, to compare with.
        comet: path of a local COMET checkpoint.
        tests: directory of another corpus (laid out as OPUS-100) whose test sets are taken instead of those of the store.
        tests_name: what its results are called; None: as the directory.
    """

    split: str = "test"
    only: Sequence[str] | None = None
    limit: int | None = None
    beam: int | None = None
    against: Path | None = None
    comet: str | None = None
    tests: Path | None = None
    tests_name: str | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS[1:]:
            raise MnmtError("E105", f"no test lines in split {self.split!r}", remedy=nearest(self.split, SPLITS[1:]))
        if self.tests is None and self.tests_name is not None:
            raise MnmtError("E104", "--tests-name is for --tests")
        if self.tests is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", self.corpus):
            what = f"{self.corpus!r} cannot name results: letters, digits, '_' and '-' only"
            raise MnmtError("E102", what, remedy="give --tests-name")

    @property
    def corpus(self) -> str:
        """Name of the other corpus; "" where there is none."""
        return "" if self.tests is None else self.tests_name or self.tests.resolve().name

    @property
    def stem(self) -> str:
        """How the names of the results begin."""
        return self.split if self.tests is None else f"{self.corpus}.{self.split}"


@dataclass(slots=True)
class Found:
    """What the models gave so far, by direction. ``tagged``: languages of their vocabularies."""

    directions: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    tagged: set[str] = field(default_factory=set)
    started: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Scope:
    """What all models of one evaluation share.

    Attributes:
        whole: the run or the bundle.
        texts: the other corpus; None: test sets are those of a model's own store.
        profiles: of the languages of all models, so that off-target rates of bundles and single runs mean the same.
        baseline: files of the evaluation to compare with.
    """

    whole: OpenedRun | Bundle
    files: Files
    texts: TreeTexts | None
    profiles: LanguageProfiles
    baseline: Files | None

    @classmethod
    def of(
        cls,
        whole: OpenedRun | Bundle,
        options: Options,
        config: EvaluationConfig,
        data: DataConfig,
        stores: Iterable[TokenStore],
    ) -> Scope:
        """Refuses what can be refused before anything is translated."""
        baseline = None if options.against is None else Files.of(options.against, options.stem)
        if baseline is not None and not baseline.table.is_file():
            of_tests = f" --tests {options.tests} --tests-name {options.corpus}" if options.tests is not None else ""
            remedy = f"mnmt evaluate {options.against} --split {options.split}{of_tests}"
            raise MnmtError("E603", "the other run was not evaluated", where=str(options.against), remedy=remedy)
        check_classes(whole.tasks.names, data.pivot, config)
        texts = None if options.tests is None else TreeTexts(options.tests, options.split, data.clean)
        files = Files(whole.path / "eval", options.stem)
        files.make_folder()
        text: dict[str, list[str]] = {}
        for store in stores:
            text = {**profile_text(store, whole.tasks.languages), **text}
        return cls(whole, files, texts, LanguageProfiles(text), baseline)

    def written(self, found: Found, options: Options, config: EvaluationConfig, **more: Any) -> dict[str, Any]:
        """The table of all that was found, after it was written.

        Raises:
            MnmtError: E201 when the other corpus has no test set of any direction.
        """
        if self.texts is not None and not found.directions:
            pairs = self.texts.pairs(options.split)
            remedy = f"it has {' '.join(pairs[:20])}{' ...' if len(pairs) > 20 else ''}"
            what = f"no {options.split} set of any direction of the model ({', '.join(found.missing[:5])})"
            raise MnmtError("E201", what, where=str(options.tests), remedy=remedy)
        result: dict[str, Any] = {
            "run": str(self.whole.path),
            "split": options.split,
            "limit": options.limit,
            "only": list(options.only) if options.only is not None else None,
            "decoding": config.model_dump(mode="json"),
            **more,
            "directions": found.directions,
            "missing": found.missing,
            "averages": averages(found.directions),
            "seconds": round(time.time() - found.started, 2),
        }
        if self.texts is not None:
            untagged = sorted(set(self.texts.languages) - found.tagged)
            result["tests"] = {"name": options.corpus, "directory": str(options.tests), "untagged": untagged}
        if self.baseline is not None:
            result["against"] = {"run": str(options.against), "directions": found.comparison}
        self.files.write_table(result)
        return result


def profile_text(store: TokenStore, languages: Sequence[str], lines: int = PROFILE_LINES) -> dict[str, list[str]]:
    """Training text of each language, decoded from the store: at most ``lines`` from every pair that has it, and of one in
    many pairs so many fewer of each that they are LANGUAGE_LINES in all."""
    out: dict[str, list[str]] = {language: [] for language in languages}
    pairs = Counter(language for pair in store.pairs("train") for language in pair.split("-"))
    for pair in store.pairs("train"):
        for language in pair.split("-"):
            if language in out:
                side = store.pair(pair, "train").side(language)
                count, most = len(side.offsets) - 1, min(lines, max(1, LANGUAGE_LINES // pairs[language]))
                starts = [count * i // most for i in range(most)] if count > most else range(count)
                rows = [side.tokens[int(side.offsets[i]) : int(side.offsets[i + 1])].tolist() for i in starts]
                out[language] += store.tokenizer.decode(rows)
    return {language: text for language, text in out.items() if text}
