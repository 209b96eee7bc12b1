"""SentencePiece with language tags as ids.

An own vocabulary is ``0 <s>, 1 <pad>, 2 </s>, 3 <unk>``, one control symbol ``__xx__`` per language in alphabetical
order, 256 bytes, then the learned pieces. Control symbols are never found in text, so a line that holds ``__fr__``
cannot produce the tag of French.

An imported vocabulary (M2M100, NLLB) numbers the pieces of its SentencePiece model in its own way: ``vocabulary.json``
beside the model lists all pieces by id, the tags and the special symbols.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import sentencepiece

from ..errors import MnmtError, nearest
from ..settings import user_path
from ..tasks import tag
from .config import TokenizerConfig
from .mix import draw_lines

MODEL_NAME = "tokenizer.model"
VOCABULARY_NAME = "vocabulary.json"
SPECIALS = ("bos", "pad", "eos", "unk")
_TAG = re.compile(r"__(.+)__")
_THREADS = 8  # the model's last bits depend on it: a constant, whatever the machine has
_LONGEST_LINE_BYTES = 1 << 16

sentencepiece.set_min_log_level(2)


class Tokenizer:
    """Text to ids and back. ``encode`` gives ids of text alone: tags and the end are the batch's business.

    Attributes:
        path: the model file.
        vocabulary_size: ids are 0 .. vocabulary_size - 1.
        fingerprint: sha256 (hex) of the pieces in the order of their ids: equal for equal id spaces.
        languages: those that have a tag, sorted.
        bos, pad, eos, unk: ids of the special symbols.
    """

    def __init__(self, path: Path, model: bytes, vocabulary: Mapping | None = None) -> None:
        self.path = path
        self._model, self._vocabulary = model, vocabulary
        self._processor = _processor(model, path)
        own = [self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())]
        if vocabulary is None:
            self._pieces = own
            self._tags = {m[1]: i for i, p in enumerate(own) if (m := _TAG.fullmatch(p)) and self._processor.is_control(i)}
            specials = {name: getattr(self._processor, f"{name}_id")() for name in SPECIALS}
            self._to_ours = None
        else:
            self._pieces, self._tags, specials = _read_vocabulary(vocabulary, path)
            by_piece = {piece: i for i, piece in reversed(list(enumerate(self._pieces)))}
            self._to_ours = [by_piece.get(piece, specials["unk"]) for piece in own]
        missing = [name for name, i in specials.items() if not 0 <= i < len(self._pieces)]
        if missing:
            raise MnmtError("E302", f"tokenizer has no {missing[0]} symbol", where=str(path))
        self.bos, self.pad, self.eos, self.unk = (specials[name] for name in SPECIALS)
        self.vocabulary_size = len(self._pieces)
        self.languages = sorted(self._tags)
        self.fingerprint = hashlib.sha256("\0".join(self._pieces).encode()).hexdigest()
        self._to_processor = self._decode_table(own)

    @classmethod
    def load(cls, model_path: Path, vocabulary: Path | None = None) -> Tokenizer:
        """The tokenizer of a SentencePiece file (or of a directory that holds ``tokenizer.model``).

        Args:
            vocabulary: ``vocabulary.json`` of an imported model; by default the one beside the model, if any.

        Raises:
            MnmtError: E302 when a file is missing or damaged, or special symbols are not there.
        """
        model_path = Path(model_path)
        if model_path.is_dir():
            model_path = model_path / MODEL_NAME
        if vocabulary is None and (model_path.parent / VOCABULARY_NAME).exists():
            vocabulary = model_path.parent / VOCABULARY_NAME
        model = _read(model_path)
        if vocabulary is None:
            return cls(model_path, model)
        try:
            table = json.loads(_read(Path(vocabulary)))
        except ValueError as error:
            raise MnmtError("E302", f"not a vocabulary: {error}", where=str(vocabulary)) from None
        return cls(model_path, model, table)

    def tag_id(self, language: str) -> int:
        """Id of the tag of ``language``; E105 naming the nearest one that the vocabulary has."""
        if language not in self._tags:
            raise MnmtError(
                "E105",
                f"the vocabulary has no tag for language {language!r}",
                where=str(self.path),
                remedy=nearest(language, self.languages),
            )
        return self._tags[language]

    def encode(self, lines: list[str]) -> list[list[int]]:
        """Ids of each line, no tag, no end; an empty line gives an empty list. One thread."""
        rows = self._processor.encode(lines, out_type=int, num_threads=1) if lines else []
        if self._to_ours is None:
            return rows
        table = self._to_ours
        return [[table[i] for i in row] for row in rows]

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Text of each row of ids; special symbols and tags are skipped."""
        table = self._to_processor
        return [self._processor.decode([p for i in row if (p := table[i]) >= 0]) for row in ids]

    def pieces(self) -> list[str]:
        """Every piece, by id."""
        return list(self._pieces)

    def save(self, directory: Path) -> Path:
        """Writes ``tokenizer.model`` (and ``vocabulary.json`` where there is one) into ``directory``; gives the model."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MODEL_NAME).write_bytes(self._model)
        if self._vocabulary is not None:
            text = json.dumps(self._vocabulary, ensure_ascii=False, sort_keys=True)
            (directory / VOCABULARY_NAME).write_text(text, encoding="utf-8")
        return directory / MODEL_NAME

    def _decode_table(self, own: list[str]) -> list[int]:
        """The processor's id of each of ours, -1 for what has no text: specials, tags and pieces it does not know."""
        at = {piece: i for i, piece in enumerate(own)}
        silent = {self.bos, self.pad, self.eos, self.unk, *self._tags.values()}
        return [-1 if i in silent else at.get(piece, -1) for i, piece in enumerate(self._pieces)]


def train_tokenizer(
    config: TokenizerConfig,
    text_by_language: Mapping[str, Iterable[str]],
    languages: Iterable[str],
    out: Path,
    seed: int = 1,
) -> Tokenizer:
    """Trains SentencePiece on a temperature-sampled mix and writes the model to ``out``.

    Args:
        text_by_language: per language something with a length and lines to iterate over (a list, a ``TextLines``).
            English of ten pairs counts ten times: what counts is the text that the model will see.
        languages: those that get a tag.
        seed: which lines are drawn. Equal input and seed give equal bytes, on any machine.

    Raises:
        MnmtError: E301 when the vocabulary is too large or too small for the text, with the bound.
    """
    model = io.BytesIO()
    drawn = draw_lines(text_by_language, config.sample_lines, config.temperature, seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=drawn,
            model_writer=model,
            vocab_size=config.vocabulary_size,
            model_type=config.model,
            character_coverage=config.character_coverage,
            normalization_rule_name="nmt_nfkc",
            byte_fallback=True,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            control_symbols=[tag(language) for language in sorted(languages)],
            num_threads=_THREADS,
            max_sentence_length=_LONGEST_LINE_BYTES,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _impossible(config, str(error)) from None
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(model.getvalue())
    return Tokenizer.load(out)


def chosen_tokenizer(config: TokenizerConfig, languages: Iterable[str]) -> Tokenizer | None:
    """The tokenizer that ``tokenizer.path`` names, None when one is to be trained.

    Raises:
        MnmtError: E302 when it cannot be read, E105 when it lacks the tag of a language.
    """
    if config.path is None:
        return None
    tokenizer = Tokenizer.load(user_path(config.path))
    for language in languages:
        tokenizer.tag_id(language)
    return tokenizer


def write_vocabulary(directory: Path, pieces: Sequence[str], tags: Mapping[str, int], specials: Mapping[str, int]) -> Path:
    """Writes the ``vocabulary.json`` of an imported tokenizer beside its ``tokenizer.model``.

    Args:
        pieces: all pieces by id, special symbols and tags included.
        tags: id of each language's tag.
        specials: ids of ``bos``, ``pad``, ``eos`` and ``unk``.
    """
    table = {"pieces": list(pieces), "tags": dict(tags), "specials": dict(specials)}
    _read_vocabulary(table, Path(directory))
    path = Path(directory) / VOCABULARY_NAME
    path.write_text(json.dumps(table, ensure_ascii=False, sort_keys=True), encoding="utf-8")
    return path


def piece_splitter(path: Path) -> Callable[[str], list[str]]:
    """Line to pieces of any SentencePiece model, one without our special symbols too: sacrebleu's flores200 is one.

    Raises:
        MnmtError: E302 when the file is missing or no SentencePiece model.
    """
    processor = _processor(_read(Path(path)), path)
    return lambda line: processor.encode(line, out_type=str)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MnmtError("E302", f"tokenizer file cannot be read: {error.strerror}", where=str(path)) from None


def _processor(model: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model)
        if processor.get_piece_size() == 0:
            raise RuntimeError("it has no pieces")
    except (RuntimeError, OSError, TypeError) as error:
        raise MnmtError("E302", f"not a SentencePiece model: {error}", where=str(path)) from None
    return processor


def _read_vocabulary(table: Mapping, path: Path) -> tuple[list[str], dict[str, int], dict[str, int]]:
    try:
        pieces = [str(p) for p in table["pieces"]]
        tags = {str(language): int(i) for language, i in table["tags"].items()}
        specials = {name: int(table["specials"][name]) for name in SPECIALS}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MnmtError("E302", f"{VOCABULARY_NAME} lacks or garbles {error}", where=str(path)) from None
    beyond = [name for name, i in (tags | specials).items() if not 0 <= i < len(pieces)]
    if beyond:
        raise MnmtError("E302", f"{VOCABULARY_NAME} has an id beyond its pieces for '{beyond[0]}'", where=str(path))
    return pieces, tags, specials


def _impossible(config: TokenizerConfig, message: str) -> Exception:
    asked = f"a vocabulary of {config.vocabulary_size} pieces is"
    where = "data.tokenizer.vocabulary_size"
    if found := re.search(r"too high .*<= (\d+)", message):
        return MnmtError("E301", f"{asked} more than this text allows", where=where, remedy=f"at most {found[1]}")
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        more = "its characters, 256 bytes, tags and special symbols"
        return MnmtError("E301", f"{asked} less than {more} need", where=where, remedy=f"more than {found[1]}")
    if "sentences_.empty()" in message:
        return MnmtError("E301", f"{asked} impossible without any text", where=where)
    return RuntimeError(f"SentencePiece: {message}")
