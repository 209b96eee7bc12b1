"""Evaluation of a run, or of a bundle of runs: every direction's translations and scores, the averages, and the comparison
with another one. ``results.py`` says where it is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import settings
from ..bundle import Bundle, is_bundle, open_bundle
from ..data.config import DataConfig
from ..data.store import TokenStore
from ..errors import MnmtError, nearest
from ..runs import OpenedRun, open_run, run_table
from ..settings import user_path
from ..tasks import Task, pair_name, parse_direction
from .comet import Comet
from .config import EvaluationConfig
from .decode import Counts, Translator
from .likelihood import negative_log_likelihood
from .resources import class_of
from .results import compare_with
from .scope import Found, Options, Scope
from .score import score_corpus
from .testsets import TestSet, find_test_set

Log = Callable[[str], None]


def evaluate_run(
    run: str | Path | OpenedRun,
    options: Options | None = None,
    *,
    weights: str | None = None,
    device: str = "cpu",
    log: Log | None = None,
) -> dict[str, Any]:
    """Evaluates a run or a bundle; see the module's text for what it writes. Returns what the table holds.

    Args:
        run: run directory, bundle, or workflow directory.
        weights: which weights (``open_run``); None: what the run's settings say.
        log: told one line per direction.

    Raises:
        MnmtError: E105 unknown direction, E104 and E105 resource classes that do not fit, E201-E205 the other corpus' test
            sets, E303-E307 the token store, E306 it has another tokenizer than the run, E401 nothing can be written,
            E601-E603 scoring and comparing (E603 also for models of a bundle with different settings of decoding), E801 COMET
            missing, and what ``open_run`` and ``open_bundle`` raise.
    """
    options = options or Options()
    comet = Comet(options.comet) if options.comet is not None else None
    say = log or (lambda line: None)
    if not isinstance(run, OpenedRun):
        if is_bundle(run):
            return evaluate_bundle(open_bundle(run), options, comet, say, weights, device)
        run = open_run(run, weights, device)
    store = TokenStore.open(user_path(run.data.store))
    _check_vocabulary(run, store)
    return Evaluation(run, store, options, comet, say).all_directions()


def evaluate_bundle(
    bundle: Bundle, options: Options, comet: Comet | None, log: Log, weights: str | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Every direction by the model that serves it, into one table. Each model is opened once, and only one at a time."""
    chosen = bundle.chosen(options.only)
    read = {model: _settings_of(bundle.path / model) for model in bundle.models}
    config = _same_decoding(bundle, {model: evaluation for model, (_, evaluation) in read.items()})
    if options.beam is not None:
        config = replace_setting(config, beam=options.beam)
    if config.zero_shot:
        log(f"zero-shot directions have no model in a bundle: {', '.join(config.zero_shot)} not evaluated")
    stores: dict[str, TokenStore] = {}
    for data, _ in read.values():
        if data.store not in stores:
            stores[data.store] = TokenStore.open(user_path(data.store))
    scope = Scope.of(bundle, options, config, read[bundle.models[0]][0], stores.values())
    found = Found()
    models: dict[str, Any] = {}
    for model in bundle.models:
        tasks = [task for task in chosen if bundle.routes[task.name] == model]
        if not tasks:
            continue
        opened = open_run(bundle.path / model, weights, device)
        store = stores[read[model][0].store]
        _check_vocabulary(opened, store)
        log(f"{model}: {len(tasks)} of {len(bundle.tasks)} directions")
        one = Evaluation(opened, store, options, comet, log, scope)
        one.measure(tasks, found, model)
        models[model] = {"run": str(opened.path), "weights": opened.weights, "trained_steps": opened.trained_steps}
        del opened, one  # before the next model is there
    order = [task.name for task in chosen]
    found.directions = {name: found.directions[name] for name in order if name in found.directions}
    used = sorted({row["weights"] for row in models.values()})
    return scope.written(found, options, config, weights=", ".join(used), trained_steps=None, models=models)


class Evaluation:
    """The evaluation of one opened run: by itself, or as a model of what ``scope`` says. ``store`` supplies lines and sizes;
    ``comet`` may be None."""

    def __init__(
        self,
        opened: OpenedRun,
        store: TokenStore,
        options: Options,
        comet: Comet | None,
        log: Log,
        scope: Scope | None = None,
    ) -> None:
        self.opened, self.store, self.options, self.comet, self.log = opened, store, options, comet, log
        self.config: EvaluationConfig = opened.evaluation
        if options.beam is not None:
            self.config = replace_setting(self.config, beam=options.beam)
        self.translator = Translator(opened.model, opened.tokenizer, self.config)
        self.scope = scope or Scope.of(opened, options, self.config, opened.data, [store])
        self.sizes = store.sizes()

    def all_directions(self) -> dict[str, Any]:
        """Every chosen direction of a run by itself, the averages, the comparison; writes everything."""
        found = Found()
        self.measure(chosen_tasks(self.opened, self.options.only), found)
        more = {"weights": self.opened.weights, "trained_steps": self.opened.trained_steps}
        return self.scope.written(found, self.options, self.config, **more)

    def measure(self, tasks: Iterable[Task], found: Found, model: str | None = None) -> None:
        """Adds what these directions give; ``model`` is noted beside each. Writes their lines."""
        found.tagged |= set(self.opened.tokenizer.languages)
        for task in tasks:
            whole = find_test_set(self.scope.texts or self.store, task.source, task.target, self.options.split)
            if whole is None:
                found.missing.append(task.name)
                continue
            test = whole.first(self.options.limit)
            hypotheses, row = self.one_direction(task, test)
            found.directions[task.name] = row if model is None else {"model": model, **row}
            self.scope.files.write_lines(task.name, test, hypotheses)
            if self.scope.baseline is not None:
                found.comparison[task.name] = compare_with(
                    self.scope.baseline, task.name, task.target, test, hypotheses, self.config
                )

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
        off = self.scope.profiles.judge(hypotheses, test.reference, task.target)
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


def chosen_tasks(opened: OpenedRun, only: Sequence[str] | None) -> list[Task]:
    """The directions that the run is for and then the zero-shot list; of these and the run's helpers those in ``only`` where
    it is given.

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
        return [task for task in tasks if task.name not in opened.helpers]
    chosen = []
    for name in only:
        source, target = parse_direction(name)
        found = [t for t in tasks if t.name == name] or [t for t in tasks if t.pair == pair_name(source, target)]
        if not found:
            remedy = nearest(name, [t.name for t in tasks])
            raise MnmtError("E105", f"the run has no direction {name!r}", where=str(opened.path), remedy=remedy)
        chosen += [t for t in found if t not in chosen]
    return chosen


def replace_setting(config: EvaluationConfig, **changes: Any) -> EvaluationConfig:
    """The settings with some changed, checked again."""
    return EvaluationConfig.model_validate({**config.model_dump(), **changes})


def _check_vocabulary(opened: OpenedRun, store: TokenStore) -> None:
    if store.fingerprint != opened.tokenizer.fingerprint:
        raise MnmtError("E306", "the token store has another tokenizer than the run", where=str(store.path))


def _settings_of(run: Path) -> tuple[DataConfig, EvaluationConfig]:
    table, where = run_table(run), str(run / "config.toml")
    data = settings.validate(DataConfig, table.get("data", {}), where)
    return data, settings.validate(EvaluationConfig, table.get("evaluation", {}), where)


def _same_decoding(bundle: Bundle, configs: Mapping[str, EvaluationConfig]) -> EvaluationConfig:
    """The models' settings, with zero-shot directions and classes of all (a run keeps the classes of its own directions); E603
    where others differ: one table must mean one thing."""
    tables = {model: config.model_dump(exclude={"zero_shot", "classes"}) for model, config in configs.items()}
    first, *others = bundle.models
    for model in others:
        changed = [name for name, value in tables[model].items() if value != tables[first][name]]
        if changed:
            what = f"{first} and {model} are not evaluated alike: evaluation.{changed[0]} differs"
            raise MnmtError("E603", what, where=str(bundle.path), remedy="evaluate each of them as a run by itself")
    zero_shot = sorted({name for config in configs.values() for name in config.zero_shot} - set(bundle.routes))
    classes: dict[str, dict[str, None]] = {}
    for config in configs.values():
        for group, entries in (config.classes or {}).items():
            classes.setdefault(group, {}).update(dict.fromkeys(entries))
    return replace_setting(
        configs[first], zero_shot=zero_shot, classes={group: list(entries) for group, entries in classes.items()} or None
    )
