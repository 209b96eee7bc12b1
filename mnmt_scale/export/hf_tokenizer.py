"""A SentencePiece model as a Hugging Face fast tokenizer (``tokenizer.json``), for any set of languages.

The tokenizer classes of M2M100 and NLLB hold fixed lists of languages; a ``tokenizer.json`` holds whatever it is given and is
read by ``AutoTokenizer`` without code of ours. What SentencePiece does is spelled out in the building blocks of the
``tokenizers`` package: its character map, its treatment of spaces, its segmentation (unigram or BPE), its byte fallback.

SentencePiece never finds control symbols, bytes and ``<unk>`` in text. The unigram model of ``tokenizers`` would: a line that
holds the characters ``__fr__`` would give the tag of French. Such strings are therefore cut in two before segmentation, at a
border of letters and punctuation, across which SentencePiece learns no pieces.

Two differences are left, together in 5 (unigram) or 3 (BPE) of 88,500 lines of real text in 59 languages: equally probable
segmentations (fp32 sums there, fp64 here), and letters with two combining accents or decomposed Hangul, whose parts
``tokenizers`` looks up one character or one whole cluster at a time.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..data.tokenizer import Tokenizer
from ..errors import MnmtError
from ..tasks import TaskSet

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of piece in a SentencePiece model."""
UNIGRAM, BPE = 1, 2
SPACE = "\u2581"
_SPACES = "\u00a0\u1680\u2000-\u200b\u200e\u200f\u2028\u2029\u202f\u205f\u3000\ufeff\ufffd"
"""What nmt_nfkc maps to a space and what can carry a combining character, which the character map would lose."""


def write_tokenizer(tokenizer: Tokenizer, tasks: TaskSet, model_max_length: int, directory: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``.

    A model with one source language gets its tag as a fixed prefix; with several, the user writes it before the text
    (``"__fr__" + line``) or sets the template (see the card of the export).

    Raises:
        MnmtError: E701 for a SentencePiece model that is neither unigram nor BPE, or that has user-defined symbols.
    """
    fast = build_fast_tokenizer(tokenizer)
    prefix = single_source(tasks)
    set_template(fast, tokenizer, prefix)
    fast.save(str(directory / "tokenizer.json"))
    pieces = tokenizer.pieces()
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[tokenizer.bos],
        "eos_token": pieces[tokenizer.eos],
        "unk_token": pieces[tokenizer.unk],
        "pad_token": pieces[tokenizer.pad],
        "padding_side": "right",
        "model_max_length": model_max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": prefix is not None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def single_source(tasks: TaskSet) -> str | None:
    """The language of all sources; None where there are several."""
    sources = {task.source for task in tasks}
    return sources.pop() if len(sources) == 1 else None


def set_template(fast: Any, tokenizer: Tokenizer, source: str | None) -> None:
    """Makes ``fast`` (a ``tokenizers.Tokenizer``) frame a line as ``__source__ line </s>``; None: no tag."""
    from tokenizers.processors import TemplateProcessing

    pieces = tokenizer.pieces()
    special = [(pieces[tokenizer.eos], tokenizer.eos)]
    template = f"$A {pieces[tokenizer.eos]}"
    if source is not None:
        name = pieces[tokenizer.tag_id(source)]
        special.append((name, tokenizer.tag_id(source)))
        template = f"{name} {template}"
    fast.post_processor = TemplateProcessing(single=template, special_tokens=special)


def build_fast_tokenizer(tokenizer: Tokenizer) -> Any:
    """A ``tokenizers.Tokenizer`` that gives the ids of ``tokenizer``; tags are special added tokens."""
    from tokenizers import AddedToken, decoders
    from tokenizers import Tokenizer as Fast

    proto = read_proto(tokenizer.path)
    if any(piece.type == USER_DEFINED for piece in proto.pieces):
        raise MnmtError("E701", "its SentencePiece model has user-defined symbols", where=str(tokenizer.path))
    known = {piece.piece: piece for piece in proto.pieces}
    pieces = tokenizer.pieces()
    kind = proto.trainer_spec.model_type
    if kind == UNIGRAM:
        model = _unigram(pieces, known, tokenizer.unk, proto.trainer_spec.byte_fallback)
    elif kind == BPE:
        model = _bpe(pieces, known, tokenizer.unk, proto.trainer_spec.byte_fallback)
    else:
        raise MnmtError("E701", "only unigram and BPE models have a fast tokenizer", where=str(tokenizer.path))
    fast = Fast(model)
    fast.normalizer = _normalizer(proto.normalizer_spec)
    hidden = [p for p in pieces if p not in known or known[p].type != NORMAL] if kind == UNIGRAM else []
    fast.pre_tokenizer = _pre_tokenizer(hidden)
    fast.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk]
    special += [tokenizer.tag_id(language) for language in tokenizer.languages]
    fast.add_special_tokens([AddedToken(pieces[i], special=True, normalized=False) for i in sorted(special)])
    return fast


def piece_scores(tokenizer: Tokenizer) -> list[float]:
    """Score of each id in the SentencePiece model (unigram: log-probability); 0 for those that it does not know."""
    scores = {piece.piece: piece.score for piece in read_proto(tokenizer.path).pieces}
    return [scores.get(piece, 0.0) for piece in tokenizer.pieces()]


def read_proto(path: Path) -> Any:
    """The model file as a protocol buffer, by the definition that transformers uses itself."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(path.read_bytes())
    return proto


def _unigram(pieces: list[str], known: dict[str, Any], unk: int, byte_fallback: bool) -> Any:
    from tokenizers.models import Unigram

    vocabulary = [(p, float(known[p].score) if p in known else 0.0) for p in pieces]
    return Unigram(vocabulary, unk_id=unk, byte_fallback=byte_fallback)


def _bpe(pieces: list[str], known: dict[str, Any], unk: int, byte_fallback: bool) -> Any:
    """SentencePiece merges the pair whose union has the best score: every split of a piece into two pieces is a merge, in
    the order of the pieces' scores."""
    from tokenizers.models import BPE as Model

    normal = {p: known[p].score for p in pieces if p in known and known[p].type == NORMAL}
    merges = [
        (piece[:i], piece[i:])
        for piece in sorted(normal, key=lambda p: -normal[p])
        for i in range(1, len(piece))
        if piece[:i] in normal and piece[i:] in normal
    ]
    ids = {piece: i for i, piece in enumerate(pieces)}
    return Model(ids, merges, unk_token=pieces[unk], fuse_unk=True, byte_fallback=byte_fallback)


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        if spec.name.startswith("nmt"):
            steps.append(normalizers.Replace(Regex(f"[{_SPACES}]"), " "))
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex("^ +"), ""),
            normalizers.Replace(Regex(f"[ {SPACE}]+$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _pre_tokenizer(hidden: list[str]) -> Any:
    """Words, and the strings ``hidden``, which text must not reach, in two parts each."""
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=True)
    if not hidden:
        return words
    parts: dict[str, set[str]] = {}
    for piece in hidden:
        at = _border(piece)
        if at:
            parts.setdefault(piece[:at], set()).add(piece[at:])
    pattern = "|".join(
        f"{re.escape(head)}(?=(?:{'|'.join(re.escape(tail) for tail in sorted(tails))}))" for head, tails in parts.items()
    )
    return pre_tokenizers.Sequence([words, pre_tokenizers.Split(Regex(pattern), "merged_with_previous")])


def _border(piece: str) -> int:
    """First place in ``piece`` between a letter and something else; 1 where there is none, 0 for a single character."""
    for i in range(1, len(piece)):
        if piece[i - 1].isalpha() != piece[i].isalpha():
            return i
    return min(1, len(piece) - 1)
