"""``prepare``: corpora -> cleaned text -> tokenizer -> token store, alone or on the ranks of MPI.

Each stage shares the pairs out, largest first; what a pair gives depends on nothing but its files and the settings, and
the tokenizer is trained on one rank, so that the store has the same bytes on any number of ranks. Text in between lies
in files below the staging directory (which all ranks must see). Memory per rank: 8 to 16 bytes per training line of the
pair at hand while it is cleaned, 8 to 30 while it is written, its dev and test text, and the tokenizer's sample on rank 0.
``parallel_text.read_blocks``, ``clean.Cleaner.clean`` and ``encode_block`` are the three steps that `mnmt bench data` times.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MnmtError
from ..settings import user_path
from .clean import Cleaner, Counts, HeldOut, refuse_nothing_left
from .config import DataConfig
from .corpus import Corpus, find_corpora, trained_tasks
from .holdout import HELD_OUT, Drawn, count_leaks, draw_held_out
from .mix import TextLines
from .parallel_text import BLOCK_LINES, read_all, read_blocks
from .ranks import OtherRankFailed, Ranks
from .store_writer import SplitWriter, Staging, write_text
from .tokenizer import MODEL_NAME, Tokenizer, chosen_tokenizer, train_tokenizer

_TAG_AND_END = 2
_WORK = "work"
_FAILED = "failed"


@dataclass
class PairReport:
    """What became of one pair.

    Attributes:
        counts: of its training text.
        held_out: per split of dev and test: ``sentences``, ``bad_lines`` left out, ``cut``: longer than ``max_tokens``, to be
            cut when a batch is made, and where the split was drawn (``hold_out``) ``leaked``: with a side that is training
            text of another pair.
        tokens: training tokens per language, without tags and ends.
        files: entries of the store's index.
    """

    pair: str
    counts: Counts = field(default_factory=Counts)
    held_out: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        return {**asdict(self.counts), "tokens": self.tokens, **self.held_out}


def prepare(
    data: DataConfig, *, rank: int = 0, size: int = 1, comm: Any = None, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Makes the token store that ``data.store`` names, in place of an old one.

    Args:
        rank, size, comm: an mpi4py communicator's; every rank must call. Only rank 0 logs.
        log: takes a line of progress.

    Returns:
        The store's report: counts per pair, languages, directions, vocabulary size.

    Raises:
        MnmtError: the first failing rank's, on all ranks: E105, E201 to E208, E301, E302, E303, E401, E402. The staging
            directory is cleared away and an old store is left as it was.
    """
    ranks = Ranks(rank, size, comm)
    say = log if rank == 0 else lambda line: None
    target = user_path(data.store)
    corpora = ranks.alike(lambda: find_corpora(data))
    languages = trained_tasks(data, corpora).languages
    chosen = ranks.alike(lambda: chosen_tokenizer(data.tokenizer, languages))
    staging: Staging | None = None

    def begin() -> Path | None:
        nonlocal staging
        if rank == 0:
            staging = Staging.begin(target)
            return staging.path
        return None

    path = ranks.together(begin)[0]
    assert path is not None
    try:
        report = _stages(data, ranks, corpora, chosen, staging, path, say)
    except BaseException:
        if staging is not None:
            staging.abandon()
        raise
    say(f"token store {target}: {sum(p['kept'] for p in report['pairs'].values())} training sentence pairs")
    return report


def _stages(
    data: DataConfig,
    ranks: Ranks,
    corpora: list[Corpus],
    tokenizer: Tokenizer | None,
    staging: Staging | None,
    path: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    work, tasks = path / _WORK, trained_tasks(data, corpora)
    drawn = draw_held_out(data, ranks, corpora, work)
    corpora = [drawn[c.pair].corpus if c.pair in drawn else c for c in corpora]
    mine = ranks.alike(lambda: ranks.share(corpora))

    def clean_mine() -> dict[str, PairReport]:
        return {c.pair: clean_pair(c, data, path, work) for c in _each(mine, path, "cleaning", say)}

    parts = ranks.together(clean_mine, path / _FAILED)
    reports = {pair: report for part in parts for pair, report in part.items()}
    if drawn:
        _account(drawn, reports, ranks.together(lambda: _leaks_of(mine, drawn, work)))

    if tokenizer is None:
        model = path / MODEL_NAME

        def train() -> None:
            if ranks.rank == 0:
                say(f"training a vocabulary of {data.tokenizer.vocabulary_size} pieces")
                text = text_by_language(work, {pair: report.counts.kept for pair, report in reports.items()})
                train_tokenizer(data.tokenizer, text, tasks.languages, model, data.tokenizer.seed)

        ranks.together(train)
        tokenizer = ranks.alike(lambda: Tokenizer.load(model))

    own = tokenizer

    def encode_mine() -> dict[str, PairReport]:
        return {c.pair: encode_pair(c, data, path, work, own, reports[c.pair]) for c in _each(mine, path, "encoding", say)}

    reports = {pair: report for part in ranks.together(encode_mine, path / _FAILED) for pair, report in part.items()}
    report = _report(data, reports, tasks.names, tokenizer)

    def publish() -> None:
        if staging is None:
            return
        shutil.rmtree(work)
        files = {name: entry for r in reports.values() for name, entry in r.files.items()}
        splits = {split: [c.pair for c in corpora if split in c.sources] for split in ("train", *HELD_OUT)}
        staging.publish(tokenizer=own, files=files, pairs=splits, report=report)

    ranks.together(publish)
    return report


def clean_pair(corpus: Corpus, data: DataConfig, staging: Path, work: Path) -> PairReport:
    """Copies dev and test text into the store and writes the cleaned training text into ``work/train``.

    Raises:
        MnmtError: E201 to E207.
    """
    report, held_out = PairReport(corpus.pair), HeldOut(data.clean.overlap)
    for split in HELD_OUT:
        if split not in corpus.sources:
            continue
        block = read_all(corpus.sources[split], data.clean)
        for language, lines in zip(corpus.languages, (block.first, block.second), strict=True):
            if not any(line.strip() for line in lines):
                where = str(corpus.sources[split].path_of(language))
                raise MnmtError("E204", f"no line of the {language} side has any text", where=where)
        held_out.add(block.first, block.second)
        report.held_out[split] = {"sentences": len(block.first), "bad_lines": block.bad}
        report.files |= write_text(staging, split, corpus.pair, (block.first, block.second))
    if corpus.trained:
        cleaner = Cleaner(data.clean, held_out)
        paths = _work_files(work, corpus.pair)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        with open(paths[0], "wb") as first, open(paths[1], "wb") as second:
            for block in read_blocks(corpus.sources["train"], data.clean):
                kept = cleaner.clean(block.first, block.second, block.bad)
                for file, lines in zip((first, second), kept, strict=True):
                    file.write("".join([line + "\n" for line in lines]).encode("utf-8"))
        cleaner.check(corpus.pair)
        report.counts = cleaner.counts
    return report


def encode_pair(
    corpus: Corpus, data: DataConfig, staging: Path, work: Path, tokenizer: Tokenizer, report: PairReport
) -> PairReport:
    """Writes the shards of one pair: training text from ``work/train``, dev and test from the store's text.

    Raises:
        MnmtError: E206 when every training sentence is longer than ``max_tokens``.
    """
    longest = data.max_tokens - _TAG_AND_END
    for split in HELD_OUT:
        if split not in corpus.sources:
            continue
        writer = SplitWriter(staging, split, corpus.pair, tokenizer)
        cut = 0
        for lines in _in_step([staging / "text" / split / f"{corpus.pair}.{x}" for x in corpus.languages]):
            first, second = (tokenizer.encode(side) for side in lines)
            cut += sum(len(a) > longest or len(b) > longest for a, b in zip(first, second, strict=True))
            writer.add(first, second)
        report.files |= writer.close()
        report.held_out[split]["cut"] = cut
    if not corpus.trained:
        return report
    writer = SplitWriter(staging, "train", corpus.pair, tokenizer)
    kept = 0
    for lines in _in_step(_work_files(work, corpus.pair)):
        first, second = encode_block(tokenizer, lines[0], lines[1], longest)
        kept += len(first)
        writer.add(first, second)
    entries = writer.close()
    report.files |= entries
    report.counts.drop("max_tokens", report.counts.kept - kept)
    report.counts.kept = kept
    if kept == 0:
        refuse_nothing_left(corpus.pair, report.counts)
    report.tokens = {name.rpartition(".")[2]: entry["tokens"] for name, entry in entries.items()}
    return report


def encode_block(
    tokenizer: Tokenizer, first: list[str], second: list[str], longest: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the sentence pairs of which neither side has more than ``longest`` tokens (or none at all)."""
    ids = zip(tokenizer.encode(first), tokenizer.encode(second), strict=True)
    fitting = [(a, b) for a, b in ids if 0 < len(a) <= longest and 0 < len(b) <= longest]
    return [a for a, _ in fitting], [b for _, b in fitting]


def _leaks_of(mine: list[Corpus], drawn: dict[str, Drawn], work: Path) -> dict[tuple[str, str], Any]:
    return count_leaks([c.pair for c in mine if c.trained], drawn, work / "train", work / "drawn")


def _account(drawn: dict[str, Drawn], reports: dict[str, PairReport], leaks: list[dict[tuple[str, str], Any]]) -> None:
    """What drawing dev and test took and what of them other pairs train on, into the reports."""
    for pair, own in drawn.items():
        own.account(reports[pair].counts)
        for split in own.splits:
            leaked = sum(part[pair, split].astype(int) for part in leaks) > 0
            reports[pair].held_out[split]["leaked"] = int(leaked.sum())


def text_by_language(work: Path, kept: dict[str, int]) -> dict[str, TextLines]:
    """The cleaned training text of each language, over all pairs; ``kept``: lines by pair."""
    files: dict[str, list[tuple[Path, int]]] = {}
    for pair, count in sorted(kept.items()):
        for language, path in zip(pair.split("-"), _work_files(work, pair), strict=True):
            if count:
                files.setdefault(language, []).append((path, count))
    return {language: TextLines(tuple(parts)) for language, parts in files.items()}


def _report(data: DataConfig, reports: dict[str, PairReport], tasks: list[str], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "pairs": {pair: report.table() for pair, report in sorted(reports.items())},
        "tasks": tasks,
        "languages": tokenizer.languages,
        "vocabulary_size": tokenizer.vocabulary_size,
        "max_tokens": data.max_tokens,
        "clean": data.clean.model_dump(mode="json"),
        "hold_out": data.hold_out.model_dump(mode="json"),
    }


def _each(corpora: list[Corpus], staging: Path, doing: str, say: Callable[[str], None]) -> Iterator[Corpus]:
    """The corpora one by one, until another rank has failed."""
    for done, corpus in enumerate(corpora):
        if (staging / _FAILED).exists():
            raise OtherRankFailed
        say(f"{doing} {corpus.pair} ({done + 1} of {len(corpora)} here)")
        yield corpus


def _work_files(work: Path, pair: str) -> list[Path]:
    return [work / "train" / f"{pair}.{language}" for language in pair.split("-")]


def _in_step(paths: list[Path]) -> Iterator[list[list[str]]]:
    """Blocks of lines of two files that have equally many."""
    with open(paths[0], "rb") as first, open(paths[1], "rb") as second:
        while True:
            blocks = [b"".join(itertools.islice(file, BLOCK_LINES)) for file in (first, second)]
            if not blocks[0]:
                return
            yield [block.decode("utf-8").split("\n")[:-1] for block in blocks]
