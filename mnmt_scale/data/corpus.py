"""Finds the parallel text that the settings name: which pairs there are, in which files, and which are trained on.

A pair is *trained* when one of the directions asked for belongs to it. Other pairs of the same corpora whose two
languages are both trained stay for evaluation (their dev and test sets alone): zero-shot directions are scored on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import MnmtError, nearest
from ..settings import user_path
from ..tasks import TaskSet, directions_of, pair_name, parse_direction
from .config import CorpusConfig, DataConfig

SPLITS = ("train", "dev", "test")
COMPRESSIONS = ("", ".gz", ".zst", ".xz")


@dataclass(frozen=True)
class Source:
    """The files of one split of one pair.

    Attributes:
        reader: ``moses`` (a file per language; also for OPUS trees), ``tsv``, ``jsonl`` or ``parquet``.
        paths: one file, or one per language in the order of ``languages``.
        languages: in the order of the files or columns.
    """

    reader: str
    paths: tuple[Path, ...]
    languages: tuple[str, str]

    @property
    def bytes(self) -> int:
        """Size of the files, compressed as they are."""
        return sum(path.stat().st_size for path in self.paths)

    def path_of(self, language: str) -> Path:
        """The file that holds ``language``."""
        return self.paths[self.languages.index(language) if len(self.paths) > 1 else 0]


@dataclass(frozen=True)
class Corpus:
    """One pair's text. ``sources`` is by split; a pair for evaluation alone has no ``train``."""

    pair: str
    sources: dict[str, Source]

    @property
    def languages(self) -> tuple[str, str]:
        first, second = self.pair.split("-")
        return first, second

    @property
    def trained(self) -> bool:
        return "train" in self.sources

    @property
    def bytes(self) -> int:
        return sum(source.bytes for source in self.sources.values())


def find_corpora(data: DataConfig) -> list[Corpus]:
    """Every pair that is trained on or kept for evaluation, sorted by name.

    Raises:
        MnmtError: E201 a file or directory is missing, E105 an unknown pair or language (the nearest is named), E208 a
            pair given twice, E104 nothing given at all.
    """
    if not data.corpora:
        raise MnmtError("E104", "no corpus is given", where="data.corpora", remedy="add a [[data.corpora]] table")
    found: dict[str, Corpus] = {}
    for config in data.corpora:
        for corpus in _opus(config) if config.reader == "opus" else [_single(config)]:
            if corpus.pair in found:
                what = f"pair {corpus.pair} is given twice"
                paths = [next(iter(c.sources.values())).paths[0] for c in (found[corpus.pair], corpus)]
                raise MnmtError("E208", what, where=f"{paths[0]} and {paths[1]}", remedy="leave one of them out")
            found[corpus.pair] = corpus
    trainable = [pair for pair, corpus in found.items() if corpus.trained]
    if not trainable:
        raise MnmtError("E201", "no corpus has a training split", where="data.corpora")
    tasks = TaskSet(directions_of(trainable, data.directions, data.pivot, data.tasks))
    trained, languages = set(tasks.pairs), set(tasks.languages)
    chosen = []
    for pair, corpus in sorted(found.items()):
        if pair in trained:
            chosen.append(corpus)
        elif languages.issuperset(corpus.languages):
            held = {split: source for split, source in corpus.sources.items() if split != "train"}
            if held:
                chosen.append(replace(corpus, sources=held))
    return chosen


def trained_tasks(data: DataConfig, corpora: Iterable[Corpus]) -> TaskSet:
    """The directions that ``data`` asks for, from the corpora found."""
    return TaskSet(directions_of([c.pair for c in corpora if c.trained], data.directions, data.pivot, data.tasks))


def find_tree(directory: str | Path) -> list[Corpus]:
    """Every pair of an OPUS-100 tree, with the splits that it has.

    Raises:
        MnmtError: E201, E208 as ``find_corpora``.
    """
    return _opus(CorpusConfig(path=str(directory)))


def _opus(config: CorpusConfig) -> list[Corpus]:
    """All pairs of an OPUS-100 tree: PATH/supervised/PAIR, or PATH/PAIR; test sets of PATH/zero-shot beside them."""
    root = user_path(str(config.path))
    if not root.is_dir():
        raise MnmtError("E201", "corpus directory missing", where=str(root))
    supervised = root / "supervised" if (root / "supervised").is_dir() else root
    found = _pair_directories(supervised)
    if not found:
        raise MnmtError("E201", "no directory of a language pair", where=str(supervised), remedy="wanted: en-fr, ...")
    zero_shot = {p: d for p, d in _pair_directories(root / "zero-shot").items() if p not in found}
    named = None
    if config.pairs is not None:
        named = {pair_name(*parse_direction(name)) for name in config.pairs}
        for pair in sorted(named):
            if pair not in found | zero_shot:
                raise MnmtError("E105", f"no pair '{pair}'", where=str(supervised), remedy=nearest(pair, found))
    corpora = []
    for pair, directory in (found | zero_shot).items():
        if named is not None and pair not in named and pair in found:
            continue
        sources = {split: source for split in SPLITS if (source := _opus_split(directory, split)) is not None}
        if pair in zero_shot:
            sources.pop("train", None)
        elif named is not None and pair in named and "train" not in sources:
            missing = directory / f"opus.{directory.name}-train.{directory.name.split('-')[0]}"
            raise MnmtError("E201", "corpus file missing", where=str(missing))
        if sources:
            corpora.append(Corpus(pair, sources))
    return corpora


def _pair_directories(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for directory in sorted(root.iterdir()) if root.is_dir() else []:
        codes = directory.name.split("-")
        if len(codes) != 2 or not directory.is_dir() or not any(directory.glob(f"opus.{directory.name}-*")):
            continue
        pair = pair_name(*parse_direction(directory.name))
        if pair in found:
            raise MnmtError("E208", f"pair {pair} is given twice", where=f"{found[pair]} and {directory}")
        found[pair] = directory
    return found


def _opus_split(directory: Path, split: str) -> Source | None:
    return _two_files(directory / f"opus.{directory.name}-{split}", parse_direction(directory.name), required=False)


def _two_files(prefix: Path, languages: tuple[str, str], required: bool) -> Source | None:
    """The files PREFIX.l1 and PREFIX.l2; None when neither is there and they are not required."""
    wanted = [prefix.with_name(f"{prefix.name}.{language}") for language in languages]
    there = [_compressed(path) for path in wanted]
    if there[0] is not None and there[1] is not None:
        return Source("moses", (there[0], there[1]), languages)
    if there == [None, None] and not required:
        return None
    missing = wanted[0] if there[0] is None else wanted[1]
    near = nearest(missing.name, [p.name for p in missing.parent.glob("*")]) if missing.parent.is_dir() else None
    raise MnmtError("E201", "corpus file missing", where=str(missing), remedy=near)


def _compressed(path: Path) -> Path | None:
    candidates = [path.with_name(path.name + suffix) for suffix in COMPRESSIONS]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _single(config: CorpusConfig) -> Corpus:
    """The one pair of the other readers."""
    languages = parse_direction(str(config.pair))
    sources: dict[str, Source] = {}
    for split in SPLITS:
        name = getattr(config, split)
        if name is None:
            continue
        path = user_path(name)
        if config.reader == "moses":
            source = _two_files(path, languages, required=True)
            assert source is not None
            sources[split] = source
        else:
            file = _compressed(path)
            if file is None:
                near = nearest(path.name, [p.name for p in path.parent.glob("*")]) if path.parent.is_dir() else None
                raise MnmtError("E201", "corpus file missing", where=str(path), remedy=near)
            sources[split] = Source(config.reader, (file,), languages)
    return Corpus(pair_name(*languages), sources)
