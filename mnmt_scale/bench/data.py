"""``mnmt bench data``: cleaning and encoding per core, and the loader of training batches.

The loader is measured in processes of their own, one thread each, planning, bucketing, tags and tensors included, on a
store made by repeating a small one. That store has just been written, so it is read from the page cache: what is
measured is the work, not a disk. Its first batches are compared with a plain reading of the store before anything is
timed. Wall-clock rates are what a user gets, but on a machine that others use too they tell of the others as well;
beside them stand sentence pairs per second of processor time.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..data.build import encode_block, prepare
from ..data.clean import Cleaner
from ..data.config import BatchConfig, CorpusConfig, DataConfig, SamplingConfig, TokenizerConfig
from ..data.corpus import find_corpora
from ..data.packing import FRAME
from ..data.parallel_text import read_blocks
from ..data.store import TokenStore
from ..data.stream import BatchStream
from ..data.synthetic import SyntheticConfig, generate
from ..tasks import TaskSet, directions_of
from .repeat_store import repeat_store
from .table import Row, row

NAME = "mnmt_scale"
_RATE = "sentence pairs/s"
_CHECKED_STEPS = 3


def bench_data(
    data: Path | None = None,
    *,
    work: Path | None = None,
    pairs: int = 5_000_000,
    fewer_pairs: int = 500_000,
    batch_tokens: Sequence[int] = (4096, 16384, 65536),
    tasks_per_batch: int = 0,
    vocabulary_size: int = 8000,
    repetitions: int = 9,
    seconds: float = 0.5,
    text_pairs: int = 40_000,
    log: Callable[[str], None] = print,
) -> Iterator[Row]:
    """The rows, as soon as measured.

    Args:
        data: an OPUS-100 tree; constructed languages by default.
        work: where temporary files may lie (about 200 bytes per sentence pair).
        pairs, fewer_pairs: sizes of the two repeated stores; memory is compared between them.
        batch_tokens: of a step, one rank; the loader is measured at each.
        repetitions, seconds: number and length of the timed windows.
        text_pairs: sentence pairs that are cleaned and encoded.
    """
    with tempfile.TemporaryDirectory(prefix="mnmt-bench-", dir=work) as name:
        directory = Path(name)
        text, tree = ("constructed languages", directory / "text") if data is None else (data.name, data)
        if data is None:
            log("constructing languages")
            generate(SyntheticConfig(), tree)
        config = DataConfig(
            store=str(directory / "small"),
            corpora=[CorpusConfig(path=str(tree))],
            directions="many-to-many",
            tokenizer=TokenizerConfig(vocabulary_size=vocabulary_size, sample_lines=100_000),
        )
        log("preparing a small store")
        start = time.perf_counter()
        report = prepare(config, log=lambda line: None)
        took = time.perf_counter() - start
        read = sum(counts["read"] for counts in report["pairs"].values())
        yield row("data", "prepare, all stages", NAME, _RATE, read / took, _RATE, text=text, pairs=read, threads="library")
        log("cleaning and encoding, one thread")
        yield from _text_rows(config, text, text_pairs, repetitions)
        small = Path(config.store)
        for size in (fewer_pairs, pairs):
            log(f"a store of {size:,} sentence pairs")
            large = directory / "large"
            held = repeat_store(small, large, size)
            found = _apart(measure_loader, large, tuple(batch_tokens), tasks_per_batch, repetitions, seconds)
            settings = {"text": text, "pairs": held, "tasks_per_batch": tasks_per_batch or "all", "threads": 1}
            yield from loader_rows(found, settings)
            shutil.rmtree(large)


def loader_rows(found: dict[str, Any], settings: dict[str, Any]) -> list[Row]:
    """Rows of what ``measure_loader`` found."""
    rows = [row("data", "loader, compared with a plain reading", NAME, "sentences", found["checked"], "equal", **settings)]
    for batch_tokens, at in found["batches"].items():
        case = f"loader, {batch_tokens} tokens a step"
        more = settings | {k: round(at[k], 1) for k in ("sentences_per_step", "tokens_per_pair", "blocks_per_step")}
        rows.append(row("data", case, NAME, "wall clock", at["wall"], _RATE, best=max, **more))
        rows.append(row("data", case, NAME, "processor time", at["cpu"], _RATE, best=max, **more))
        rows.append(row("data", case, NAME, "planning alone, processor time", at["planning"], _RATE, best=max, **more))
    for name in ("opened", "after"):
        value = found[f"anonymous_{name}"] / 2**20
        rows.append(row("data", f"loader, {name}", NAME, "RssAnon above that of the imports", value, "MiB", **settings))
    return rows


def measure_loader(
    store: Path, batch_tokens: Sequence[int], tasks_per_batch: int, repetitions: int, seconds: float
) -> dict[str, Any]:
    """Rates and anonymous memory of the loader in this process, which should have done nothing else before.

    Returns:
        ``batches``: by batch size the windows' rates (``wall``, ``cpu``, ``planning``: sentence pairs per second) and what
        a step holds; ``anonymous_opened``, ``anonymous_after``: bytes of RssAnon more than before the store was opened, when it
        was, and after everything; ``checked``: sentences found equal to a plain reading.
    """
    before = anonymous_bytes()
    opened = TokenStore.open(store)
    tasks = TaskSet(directions_of(opened.pairs("train"), "many-to-many"))
    sampling = SamplingConfig(tasks_per_batch=tasks_per_batch)

    def start(tokens: int) -> BatchStream:
        return BatchStream(opened, tasks, sampling, BatchConfig(batch_tokens=tokens, prefetch=False), max_tokens=256, seed=1)

    found: dict[str, Any] = {"anonymous_opened": anonymous_bytes() - before, "checked": 0, "batches": {}}
    for tokens in batch_tokens:
        stream = start(tokens)
        for _ in range(_CHECKED_STEPS):
            found["checked"] += check_batch(opened, tasks, stream.next()[0])
        steps = _Steps(stream)
        wall, cpu = zip(*(_rates(steps.deliver, seconds) for _ in range(repetitions)), strict=True)
        found["batches"][tokens] = {
            "wall": wall,
            "cpu": cpu,
            "planning": [_rates(steps.plan, seconds / 4)[1] for _ in range(repetitions)],
            "sentences_per_step": steps.sentences / steps.number,
            "tokens_per_pair": steps.tokens / steps.sentences,
            "blocks_per_step": steps.blocks / steps.number,
        }
    found["anonymous_after"] = anonymous_bytes() - before
    return found


class _Steps:
    """Takes steps off a stream and counts what is in them."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream
        self.number = self.sentences = self.tokens = self.blocks = 0

    def deliver(self) -> int:
        (batch,) = self.stream.next()
        self.number += 1
        self.sentences += batch.num_sentences
        self.tokens += len(batch.source_ids) + len(batch.target_in)
        self.blocks += len(batch.buckets.shapes) if batch.buckets else 0
        return batch.num_sentences

    def plan(self) -> int:
        return self.stream.plan().table.shape[1]


def check_batch(store: TokenStore, tasks: TaskSet, batch: Any) -> int:
    """Compare every sentence of a batch with the store, one by one; the number of sentences."""
    eos, tag = store.tokenizer.eos, store.tokenizer.tag_id
    source, target = batch.source_offsets.tolist(), batch.target_offsets.tolist()
    for i in range(batch.num_sentences):
        task = tasks[batch.tasks[int(batch.sentence_task[i])]]
        texts = [store.pair(task.pair).side(language)[int(batch.rows[i])].tolist() for language in (task.source, task.target)]
        assert max(map(len, texts)) + FRAME <= 256
        assert batch.source_ids[source[i] : source[i + 1]].tolist() == [tag(task.source), *texts[0], eos]
        assert batch.target_in[target[i] : target[i + 1]].tolist() == [eos, tag(task.target), *texts[1]]
        assert batch.target_out[target[i] + 1 : target[i + 1]].tolist() == [*texts[1], eos]
    return batch.num_sentences


def anonymous_bytes() -> int:
    """RssAnon of this process: resident memory that is not a mapped file."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _text_rows(config: DataConfig, text: str, limit: int, repetitions: int) -> Iterator[Row]:
    """Cleaning and encoding of up to ``limit`` sentence pairs of the largest corpora, one core."""
    tokenizer = TokenStore.open(config.store).tokenizer
    blocks: list[tuple[list[str], list[str]]] = []
    held = 0
    for corpus in sorted(find_corpora(config), key=lambda c: -c.bytes):
        for block in read_blocks(corpus.sources["train"], config.clean) if corpus.trained and held < limit else ():
            blocks.append((block.first[: limit - held], block.second[: limit - held]))
            held += len(blocks[-1][0])
            if held >= limit:
                break

    def clean() -> int:
        cleaner = Cleaner(config.clean)
        for first, second in blocks:
            cleaner.clean(first, second)
        return held

    def encode() -> int:
        for first, second in blocks:
            encode_block(tokenizer, first, second, config.max_tokens - FRAME)
        return held

    size = sum(len(line) for block in blocks for side in block for line in side) / held
    settings = {"text": text, "pairs": held, "threads": 1, "characters_per_pair": round(size, 1)}
    for case, call in (("cleaning", clean), ("encoding", encode)):
        wall, cpu = zip(*(_rates(call, 0.0) for _ in range(repetitions)), strict=True)
        yield row("data", case, NAME, "wall clock", wall, _RATE, best=max, **settings)
        yield row("data", case, NAME, "processor time", cpu, _RATE, best=max, **settings)


def _rates(call: Callable[[], int], seconds: float) -> tuple[float, float]:
    """What ``call`` counts, per second of the wall clock and of processor time, over at least ``seconds``."""
    count = 0
    wall, cpu = time.perf_counter(), time.process_time()
    while True:
        count += call()
        now = time.perf_counter()
        if now - wall >= seconds:
            return count / (now - wall), count / max(time.process_time() - cpu, 1e-9)


def _apart(call: Callable[..., Any], *args: Any) -> Any:
    """``call(*args)`` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *args).result()
