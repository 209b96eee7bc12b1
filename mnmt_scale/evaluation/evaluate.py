"""Evaluation of a run: every direction's translations and scores, the averages, and the comparison with another run.

Writes ``RUN/eval/SPLIT.json`` and, side by side for metrics outside this system, ``RUN/eval/SPLIT.DIRECTION.{src,ref,hyp}``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.store import SPLITS, TokenStore
from ..errors import MnmtError, nearest
from ..runs import OpenedRun, open_run
from ..settings import user_path
from ..tasks import Task, pair_name, parse_direction
from .comet import Comet
from .config import EvaluationConfig
from .decode import Counts, Translator
from .likelihood import negative_log_likelihood
from .offtarget import LanguageProfiles
from .resources import averages, check_classes, class_of
from .score import compare, score_corpus
from .testsets import TestSet, find_test_set

PROFILE_LINES = 2000
"""Training lines per language and pair that the language profiles are made from, spread evenly over the corpus."""


@dataclass(frozen=True, slots=True)
class Options:
    """What one evaluation is asked to do.

    Attributes:
        split: ``test`` or ``dev``.
        only: directions (``fr-en``) or pairs (both their directions); None: all.
        limit: the first lines of each test set only.
        beam: instead of the run's setting.
        against: another run, evaluated before on the same lines, to compare with.
        comet: path of a local COMET checkpoint.
    """

    split: str = "test"
    only: Sequence[str] | None = None
    limit: int | None = None
    beam: int | None = None
    against: Path | None = None
    comet: str | None = None


def evaluate_run(
    run: str | Path | OpenedRun,
    options: Options = Options(),
    *,
    weights: str | None = None,
    device: str = "cpu",
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Evaluates a run; see the module's text for what it writes. Returns what ``SPLIT.json`` holds.

    Args:
        weights: which weights (``open_run``); None: what the run's settings say.
        log: told one line per direction.

    Raises:
        MnmtError: E105 unknown split or direction, E104 and E105 resource classes that do not fit, E303-E307 the token store,
            E306 it has another tokenizer than the run, E401 nothing can be written, E601-E603 scoring and comparing, E801
            COMET missing, and what ``open_run`` raises.
    """
    if options.split not in SPLITS[1:]:
        raise MnmtError("E105", f"no test lines in split {options.split!r}", remedy=nearest(options.split, SPLITS[1:]))
    comet = Comet(options.comet) if options.comet is not None else None
    opened = run if isinstance(run, OpenedRun) else open_run(run, weights, device)
    store = TokenStore.open(user_path(opened.data.store))
    if store.fingerprint != opened.tokenizer.fingerprint:
        raise MnmtError("E306", "the token store has another tokenizer than the run", where=str(store.path))
    return Evaluation(opened, store, options, comet, log or (lambda line: None)).all_directions()


class Evaluation:
    """One evaluation of one opened run. ``store`` supplies lines and sizes; ``comet`` may be None."""

    def __init__(
        self, opened: OpenedRun, store: TokenStore, options: Options, comet: Comet | None, log: Callable[[str], None]
    ) -> None:
        self.opened, self.store, self.options, self.comet, self.log = opened, store, options, comet, log
        if options.against is not None and not (options.against / "eval" / f"{options.split}.json").is_file():
            remedy = f"mnmt evaluate {options.against} --split {options.split}"
            raise MnmtError("E603", "the other run was not evaluated", where=str(options.against), remedy=remedy)
        self.config: EvaluationConfig = opened.evaluation
        if options.beam is not None:
            self.config = replace_setting(self.config, beam=options.beam)
        self.translator = Translator(opened.model, opened.tokenizer, self.config)
        self.tasks = chosen_tasks(opened, options.only)
        check_classes(opened.tasks.names, opened.data.pivot, self.config)
        self.sizes = store.sizes()
        self.folder = opened.path / "eval"
        self.profiles: LanguageProfiles | None = None

    def all_directions(self) -> dict[str, Any]:
        """Every chosen direction, the averages, the comparison; writes everything."""
        started = time.time()
        _make_folder(self.folder)
        self.profiles = LanguageProfiles(profile_text(self.store, self.opened.tasks.languages))
        directions: dict[str, dict[str, Any]] = {}
        missing, comparison = [], {}
        for task in self.tasks:
            found = find_test_set(self.store, task.source, task.target, self.options.split)
            if found is None:
                missing.append(task.name)
                continue
            test = found.first(self.options.limit)
            hypotheses, directions[task.name] = self.one_direction(task, test)
            self._write_lines(task, test, hypotheses)
            if self.options.against is not None:
                comparison[task.name] = self.against(task, test, hypotheses)
        result: dict[str, Any] = {
            "run": str(self.opened.path),
            "split": self.options.split,
            "limit": self.options.limit,
            "only": list(self.options.only) if self.options.only is not None else None,
            "decoding": self.config.model_dump(mode="json"),
            "weights": self.opened.weights,
            "trained_steps": self.opened.trained_steps,
            "directions": directions,
            "missing": missing,
            "averages": averages(directions),
            "seconds": round(time.time() - started, 2),
        }
        if self.options.against is not None:
            result["against"] = {"run": str(self.options.against), "directions": comparison}
        _write(self.folder / f"{self.options.split}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        return result

    def one_direction(self, task: Task, test: TestSet) -> tuple[list[str], dict[str, Any]]:
        """Translations of a test set, and its row of results."""
        began, counts = time.perf_counter(), Counts()
        hypotheses = self.translator.translate(test.source, task.source, task.target, counts)
        seconds = time.perf_counter() - began
        score = score_corpus(hypotheses, test.reference, task.target, self.config)
        nll, tokens = negative_log_likelihood(
            self.opened.model,
            self.opened.tokenizer,
            task,
            test.source,
            test.reference,
            max_tokens=self.opened.data.max_tokens,
            batch_tokens=self.config.batch_tokens,
        )
        assert self.profiles is not None
        off = self.profiles.judge(hypotheses, test.reference, task.target)
        trained = task.name in self.opened.tasks.names
        size = self.sizes.get(task.pair, 0)
        row: dict[str, Any] = {
            "class": class_of(task.name, size, self.config) if trained else "zero-shot",
            "train_sentences": size if trained else 0,
            "lines": len(hypotheses),
            **{key: value for key, value in asdict(score).items() if value is not None},
            "nll": nll / tokens,
            "perplexity": math.exp(min(nll / tokens, 700.0)),
            "reference_tokens": tokens,
            "empty_hypotheses": sum(not h.strip() for h in hypotheses),
            "cut_lines": counts.cut_lines,
            "at_length_limit": counts.at_limit,
            "off_target": None if off is None else asdict(off),
            "decode_seconds": round(seconds, 3),
            "target_tokens_per_second": round(counts.tokens / seconds, 1) if seconds else None,
        }
        if test.through is not None:
            row["test_set_through"] = test.through
        if self.comet is not None:
            row["comet"] = self.comet.score(test.source, hypotheses, test.reference)
        self.log(f"{task.name}: BLEU {row['bleu']:.2f}, chrF++ {row['chrf']:.2f}, nll {row['nll']:.3f}, {seconds:.1f} s")
        return hypotheses, row

    def against(self, task: Task, test: TestSet, hypotheses: list[str]) -> list[dict[str, Any]] | None:
        """Paired bootstrap against the other run's translations; None where it has none of this direction.

        Raises:
            MnmtError: E603 when that run was evaluated on other lines.
        """
        assert self.options.against is not None
        stem = self.options.against / "eval" / f"{self.options.split}.{task.name}"
        if not Path(f"{stem}.hyp").is_file():
            return None
        baseline, *lines = (read_lines(Path(f"{stem}.{kind}")) for kind in ("hyp", "ref", "src"))
        if lines != [test.reference, test.source]:
            raise MnmtError("E603", f"the runs were evaluated on different lines of {task.name}", where=f"{stem}.ref")
        return [asdict(d) for d in compare(baseline, hypotheses, test.reference, task.target, self.config)]

    def _write_lines(self, task: Task, test: TestSet, hypotheses: list[str]) -> None:
        stem = f"{self.options.split}.{task.name}"
        for kind, lines in (("src", test.source), ("ref", test.reference), ("hyp", hypotheses)):
            _write(self.folder / f"{stem}.{kind}", "".join(line + "\n" for line in lines))


def chosen_tasks(opened: OpenedRun, only: Sequence[str] | None) -> list[Task]:
    """Trained directions and then the zero-shot list, those in ``only`` where it is given.

    Raises:
        MnmtError: E105 for a name in neither, or a zero-shot language without a tag.
    """
    tasks = list(opened.tasks)
    for name in opened.evaluation.zero_shot:
        source, target = parse_direction(name)
        for language in (source, target):
            opened.tokenizer.tag_id(language)
        if name not in opened.tasks.names:
            tasks.append(Task(source, target, len(tasks)))
    if only is None:
        return tasks
    chosen = []
    for name in only:
        source, target = parse_direction(name)
        found = [t for t in tasks if t.name == name] or [t for t in tasks if t.pair == pair_name(source, target)]
        if not found:
            remedy = nearest(name, [t.name for t in tasks])
            raise MnmtError("E105", f"the run has no direction {name!r}", where=str(opened.path), remedy=remedy)
        chosen += [t for t in found if t not in chosen]
    return chosen


def profile_text(store: TokenStore, languages: Sequence[str], lines: int = PROFILE_LINES) -> dict[str, list[str]]:
    """Training text of each language, decoded from the store: at most ``lines`` from every pair that has it."""
    out: dict[str, list[str]] = {language: [] for language in languages}
    for pair in store.pairs("train"):
        for language in pair.split("-"):
            if language in out:
                side = store.pair(pair, "train").side(language)
                count = len(side.offsets) - 1
                starts = [count * i // lines for i in range(lines)] if count > lines else range(count)
                rows = [side.tokens[int(side.offsets[i]) : int(side.offsets[i + 1])].tolist() for i in starts]
                out[language] += store.tokenizer.decode(rows)
    return {language: text for language, text in out.items() if text}


def replace_setting(config: EvaluationConfig, **changes: Any) -> EvaluationConfig:
    """The settings with some changed, checked again."""
    return EvaluationConfig.model_validate({**config.model_dump(), **changes})


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MnmtError("E401", f"evaluation cannot be written: {error.strerror}", where=str(folder)) from None


def _write(path: Path, text: str) -> None:
    """The whole file or none of it."""
    aside = path.with_name(path.name + ".partial")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(aside, path)
    except OSError as error:
        raise MnmtError("E401", f"evaluation cannot be written: {error.strerror}", where=str(path)) from None


def read_lines(path: Path) -> list[str]:
    """Lines that an evaluation wrote; E603 when they cannot be read."""
    try:
        return path.read_bytes().decode("utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise MnmtError("E603", f"an evaluation's lines cannot be read: {error}", where=str(path)) from None
