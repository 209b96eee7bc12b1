"""The id of every piece of an M2M100 or NLLB tokenizer, read from its files as data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.tokenizer import MODEL_NAME, SPECIALS, VOCABULARY_NAME, Tokenizer, write_vocabulary
from ..errors import MnmtError
from .hf_tokenizer import read_proto

SENTENCEPIECE_NAMES = ("sentencepiece.bpe.model", "sentencepiece.model", "spiece.model")
_TAG = re.compile(r"__([A-Za-z]{2,8}(?:_[A-Za-z0-9]{2,8})*)__|([a-z]{3}_[A-Z][a-z]{3})")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Pieces by id, ids of the language tags, ids of bos, pad, eos and unk."""

    pieces: list[str]
    tags: dict[str, int]
    specials: dict[str, int]


def import_tokenizer(source: Path, run: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """Puts ``tokenizer.model`` (and ``vocabulary.json``) into ``run``; None when ``source`` has no SentencePiece model.

    Args:
        config: of the model; the ids of its special tokens and its ``vocab_size`` count.

    Raises:
        MnmtError: E703 when the files contradict each other or the model.
    """
    size = config["vocab_size"]
    if (source / MODEL_NAME).is_file():  # written by ``mnmt export``
        tokenizer = Tokenizer.load(source / MODEL_NAME)
        if tokenizer.vocabulary_size != size:
            what = f"tokenizer has {tokenizer.vocabulary_size} pieces, the model {size}"
            raise MnmtError("E703", what, where=str(source / MODEL_NAME))
        tokenizer.save(run)
        return _checked(Tokenizer.load(run / MODEL_NAME), config, source)
    model = next((source / name for name in SENTENCEPIECE_NAMES if (source / name).is_file()), None)
    if model is None:
        return None
    (run / MODEL_NAME).write_bytes(model.read_bytes())
    vocabulary = read_vocabulary(source, run / MODEL_NAME, config)
    write_vocabulary(run, vocabulary.pieces, vocabulary.tags, vocabulary.specials)
    return _checked(Tokenizer.load(run / MODEL_NAME, run / VOCABULARY_NAME), config, source)


def read_vocabulary(source: Path, model: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Ids from ``tokenizer.json`` (fast tokenizers), else ``vocab.json`` (M2M100), else by NLLB's rule. Ids that nothing names,
    which such models have at the end, are called ``madeupword0`` and so on.

    Args:
        model: a SentencePiece model.
    """
    if (source / "tokenizer.json").is_file():
        ids = _fast_ids(read_json(source / "tokenizer.json"), source)
    elif (source / "vocab.json").is_file():
        ids = {str(piece): _integer(i, source) for piece, i in read_json(source / "vocab.json").items()}
        ids |= {f"__{code}__": len(ids) + i for i, code in enumerate(_m2m100_languages(source))}
    else:
        ids = _nllb_ids(model)
    size = config["vocab_size"]
    beyond = sorted(((i, piece) for piece, i in ids.items() if not 0 <= i < size))
    if beyond:
        what = f"piece {beyond[0][1]!r} has id {beyond[0][0]}, the model has {size} embeddings"
        raise MnmtError("E703", what, where=str(source))
    pieces: list[str | None] = [None] * size
    for piece, i in ids.items():
        if pieces[i] is not None:
            raise MnmtError("E703", f"pieces {pieces[i]!r} and {piece!r} have the same id {i}", where=str(source))
        pieces[i] = piece
    named = [f"madeupword{i}" if piece is None else piece for i, piece in enumerate(pieces)]
    tags = {(m[1] or m[2]): i for i, piece in enumerate(named) if (m := _TAG.fullmatch(piece))}
    specials = {name: config[f"{name}_token_id"] for name in ("bos", "pad", "eos")}
    unk = ids.get("<unk>")
    if unk is None:
        raise MnmtError("E703", "the vocabulary has no <unk>", where=str(source))
    return Vocabulary(named, tags, {**specials, "unk": unk})


def read_json(path: Path) -> Any:
    """A JSON file; E703 when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MnmtError("E703", f"not a readable JSON file: {error}", where=str(path)) from None


def _fast_ids(table: Any, source: Path) -> dict[str, int]:
    try:
        vocabulary = table["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram: [piece, score] by id
            ids = {str(entry[0]): i for i, entry in enumerate(vocabulary)}
        else:
            ids = {str(piece): _integer(i, source) for piece, i in vocabulary.items()}
        return ids | {str(t["content"]): _integer(t["id"], source) for t in table.get("added_tokens", [])}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise MnmtError("E703", f"tokenizer.json lacks or garbles {error}", where=str(source)) from None


def _m2m100_languages(source: Path) -> list[str]:
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as known

    path = source / "tokenizer_config.json"
    kind = read_json(path).get("language_codes", "m2m100") if path.is_file() else "m2m100"
    if kind not in known:
        raise MnmtError("E703", f"unknown language list {kind!r}", where=str(path))
    return list(known[kind])


def _nllb_ids(model: Path) -> dict[str, int]:
    """fairseq's order: four specials, the pieces of the model behind its own three, 202 languages, the mask."""
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as languages

    own = [piece.piece for piece in read_proto(model).pieces]
    names = ["<s>", "<pad>", "</s>", "<unk>", *own[3:], *languages, "<mask>"]
    return {name: i for i, name in enumerate(names)}


def _integer(value: Any, source: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise MnmtError("E703", f"{value!r} is not a token id", where=str(source))
    return value


def _checked(tokenizer: Tokenizer, config: Mapping[str, Any], source: Path) -> Tokenizer:
    for name in SPECIALS[:3]:
        if getattr(tokenizer, name) != config[f"{name}_token_id"]:
            what = f"{name} is {getattr(tokenizer, name)} in the tokenizer and {config[f'{name}_token_id']} in config.json"
            raise MnmtError("E703", what, where=str(source))
    return tokenizer
