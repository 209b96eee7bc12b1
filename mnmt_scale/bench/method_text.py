"""The text that ``mnmt bench train --method`` trains on: a token store, prepared here or there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..data.config import DataConfig
from ..data.store import TokenStore
from ..errors import MnmtError
from ..tasks import TaskSet, parse_direction
from .train_data import constructed, kind_of, prepared

TEXT_VOCABULARY = 4000
"""Of text that is prepared here, at most: the constructed languages have few pieces."""

Say = Callable[[str], None]


def text_of(
    data: Path | None, store: Path | None, place: Path, vocabulary_size: int | None, directions: int | None, say: Say
) -> tuple[DataConfig, str]:
    """Settings of the text, with a store that is there, and what tables call it.

    Raises:
        MnmtError: E102 where the text has a larger vocabulary.
    """
    place.mkdir(parents=True, exist_ok=True)
    say("preparing text" if store is None else "opening the store")
    if store is None:
        corpus = data or constructed(place)
        found = prepared(corpus, place, min(vocabulary_size or TEXT_VOCABULARY, TEXT_VOCABULARY))
    else:
        corpus = store
        found = prepared(corpus, place, 0, store=store)
    opened = TokenStore.open(Path(found.store))
    least = opened.tokenizer.vocabulary_size
    if vocabulary_size is not None and vocabulary_size < least:
        what = f"a model of {vocabulary_size} rows for text of a vocabulary of {least}"
        raise MnmtError("E102", what, where="--vocabulary-size", remedy=f"give {least} or more")
    if directions is not None:
        found = found.model_copy(update={"tasks": largest(opened, directions)})
    return found, corpus.name if kind_of(corpus) == "real" else "constructed languages"


def opened(path: Path, vocabulary_size: int | None = None) -> TokenStore:
    """A store whose models have ``vocabulary_size`` rows where that is more than its text uses; the others cost as much."""
    store = TokenStore.open(path)
    store.tokenizer.vocabulary_size = max(store.tokenizer.vocabulary_size, vocabulary_size or 0)
    return store


def largest(store: TokenStore, count: int) -> list[str]:
    """The ``count`` directions of a store with the most training text, in its order."""
    names, sizes = list(store.report["tasks"]), store.sizes()
    by_size = sorted(TaskSet(parse_direction(name) for name in names), key=lambda task: -sizes[task.pair])
    kept = {task.name for task in by_size[:count]}
    return [name for name in names if name in kept]
