"""From lines of one language to lines of another: batches by length, search, the original order.

Output has one line per input line. Empty lines stay empty without being shown to the model; lines longer than the model
has positions for are cut and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.tokenizer import Tokenizer
from ..model.incremental import Decoder, DecodingState
from .config import EvaluationConfig
from .search import BLOCK, BeamSearch, GreedySearch, Hypothesis

COMPACT = 8
"""Sentences that are done leave the batch once they are more than one in COMPACT: each leaving copies the caches."""

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's, which torch prefers on some GPUs: it plans a kernel anew for every shape, and here each step has its own."""

LOGITS_BYTES = 1 << 28
"""Bound of one step's fp32 logits: batches of short sentences are cut at it where the vocabulary is large."""


@dataclass(slots=True)
class Counts:
    """What happened while decoding. ``tokens``: generated, ``</s>`` included, tags not."""

    lines: int = 0
    empty_lines: int = 0
    cut_lines: int = 0
    empty_outputs: int = 0
    at_limit: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Special:
    """Ids that decoding must know: what ends, what pads, what must never be generated."""

    eos: int
    pad: int
    forbidden: tuple[int, ...] = field(default=())

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Special:
        """Everything but ``</s>`` among the specials, and every language tag, is forbidden."""
        tags = [tokenizer.tag_id(language) for language in tokenizer.languages]
        return cls(tokenizer.eos, tokenizer.pad, tuple(sorted({tokenizer.bos, tokenizer.pad, tokenizer.unk, *tags})))


def plan_batches(lengths: Sequence[int], budget_tokens: int, most: int | None = None) -> list[list[int]]:
    """Sentence numbers in batches of similar length, longest first; sentences * longest <= budget, and no more than
    ``most`` sentences, but never empty."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        more = len(batches[-1]) + 1 if batches else 0
        if more and more * lengths[batches[-1][0]] <= budget_tokens and (most is None or more <= most):
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def decoding_batches(lengths: Sequence[int], vocabulary_size: int, config: EvaluationConfig) -> list[list[int]]:
    """The batches in which sentences of so many source tokens are decoded."""
    most = max(1, LOGITS_BYTES // (4 * vocabulary_size * config.beam))
    return plan_batches(lengths, max(1, config.batch_tokens // config.beam), most)


def length_limit(source_tokens: int, config: EvaluationConfig, max_positions: int) -> int:
    """Most tokens that may be generated for a source of so many text tokens; the tag and ``</s>`` count."""
    return min(1 + int(config.max_ratio * source_tokens) + config.max_extra, max_positions)


@torch.inference_mode()
def decode_ids(
    decoder: Decoder,
    sources: Sequence[Sequence[int]],
    tag: int,
    special: Special,
    config: EvaluationConfig,
    limits: Sequence[int] | None = None,
) -> list[Hypothesis]:
    """Translates encoded sentences.

    Args:
        sources: per sentence ``[source tag, w1 .. wn, eos]``.
        tag: id of the target language's tag, forced as the first token.
        limits: per sentence the most generated tokens, tag included; by default ``length_limit``.

    Returns:
        One hypothesis per sentence, in the order of ``sources``.
    """
    out: list[Hypothesis | None] = [None] * len(sources)
    if limits is None:
        limits = [length_limit(len(s) - 2, config, decoder.max_positions) for s in sources]
    for batch in decoding_batches([len(s) for s in sources], decoder.vocabulary_size, config):
        chosen, most = [sources[i] for i in batch], [limits[i] for i in batch]
        with sdpa_kernel(ATTENTION):
            found = _decode_batch(decoder, chosen, most, tag, special, config)
        for i, hypothesis in zip(batch, found, strict=True):
            out[i] = hypothesis
    return out  # type: ignore[return-value]


def _decode_batch(
    decoder: Decoder, sources: list, limits: list[int], tag: int, special: Special, config: EvaluationConfig
) -> list[Hypothesis]:
    device, beam = decoder.device, config.beam
    lengths = torch.tensor([len(s) for s in sources])
    padded = torch.full((len(sources), int(lengths.max())), special.pad)
    for row, source in enumerate(sources):
        padded[row, : len(source)] = torch.tensor(source)
    state = DecodingState(decoder, padded.to(device), lengths, beam)
    bound = torch.tensor(limits, device=device)
    search = (
        GreedySearch(bound, eos=special.eos)
        if beam == 1
        else BeamSearch(
            bound,
            beam,
            eos=special.eos,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
        )
    )
    head = _Head(decoder, len(sources) * beam, special, log_probs=beam > 1)
    prompt = torch.tensor([special.eos, tag], device=device).expand(len(sources), 2)
    scores = head.finish(state.begin(prompt)).unflatten(0, (len(sources), 1))
    sentences = torch.arange(len(sources))
    out: list[Hypothesis | None] = [None] * len(sources)
    while True:
        tokens, parents = search.advance(scores)
        done = search.finished_now()
        if bool(done.all()) or int(done.sum()) * COMPACT > len(done):
            gone = done.nonzero().flatten()
            for sentence, found in zip(sentences[gone].tolist(), search.results(gone.to(device)), strict=True):
                out[sentence] = found
            alive = (~done).nonzero().flatten()
            if not len(alive):
                return out  # type: ignore[return-value]
            sentences, rows = sentences[alive], alive.to(device)
            search.keep(rows)
            state.keep(rows)
            tokens, parents = tokens[rows], None if parents is None else parents[rows]
        logits = state.step(tokens, parents, out=head.rows(state.size * beam))
        scores = head.finish(logits).unflatten(0, (state.size, beam))


class _Head:
    """Logits to what the search reads, in buffers that are used again at every step.

    The vocabulary is padded to a multiple of BLOCK with -inf; forbidden ids are masked after normalisation, as
    ``generate`` does it (``suppress_tokens``).
    """

    def __init__(self, decoder: Decoder, rows: int, special: Special, *, log_probs: bool) -> None:
        self.vocabulary = decoder.vocabulary_size
        width = -(-self.vocabulary // BLOCK) * BLOCK
        self.logits = torch.full((rows, width), -torch.inf, device=decoder.device, dtype=decoder.dtype)
        self.forbidden = torch.tensor(special.forbidden, dtype=torch.long, device=decoder.device)
        self.log_probs = log_probs

    def rows(self, count: int) -> Tensor:
        """[count, V] view to write logits to."""
        return self.logits[:count, : self.vocabulary]

    def finish(self, logits: Tensor) -> Tensor:
        """[n, V] -> [n, V padded] fp32 log-probabilities (logits for greedy search)."""
        whole = self.logits[: logits.shape[0]]
        if logits.data_ptr() != whole.data_ptr():
            whole[:, : self.vocabulary] = logits
        scores = F.log_softmax(whole, dim=-1, dtype=torch.float32) if self.log_probs else whole
        return scores.index_fill_(1, self.forbidden, -torch.inf)


class Translator:
    """A model and its tokenizer, ready to translate lines.

    Args:
        model: a ``Transformer`` in eval mode.
        tokenizer: its tokenizer.
        config: beam, length penalty and limits.
    """

    def __init__(self, model, tokenizer: Tokenizer, config: EvaluationConfig) -> None:
        self.decoder, self.tokenizer, self.config = Decoder(model), tokenizer, config
        self.special = Special.of(tokenizer)

    def translate(self, lines: Sequence[str], source: str, target: str, counts: Counts | None = None) -> list[str]:
        """One output line per input line.

        Raises:
            MnmtError: E105 for a language without a tag.
        """
        counts = counts if counts is not None else Counts()
        source_tag, target_tag = self.tokenizer.tag_id(source), self.tokenizer.tag_id(target)
        room = self.decoder.max_positions - 2
        numbers, sources = [], []
        for number, ids in enumerate(self.tokenizer.encode([line.strip() for line in lines])):
            if not ids:
                continue
            counts.cut_lines += len(ids) > room
            numbers.append(number)
            sources.append([source_tag, *ids[:room], self.tokenizer.eos])
        limits = [length_limit(len(s) - 2, self.config, self.decoder.max_positions) for s in sources]
        found = decode_ids(self.decoder, sources, target_tag, self.special, self.config, limits)
        out = [""] * len(lines)
        for number, text in zip(numbers, self.tokenizer.decode([h.tokens for h in found]), strict=True):
            out[number] = " ".join(text.split("\n"))  # a generated newline would break the line count
        counts.lines += len(lines)
        counts.empty_lines += len(lines) - len(sources)
        counts.empty_outputs += sum(not out[number].strip() for number in numbers)
        ended = [len(h.tokens) + 1 < most for h, most in zip(found, limits, strict=True)]
        counts.at_limit += sum(not e for e in ended)
        counts.tokens += sum(len(h.tokens) + e for h, e in zip(found, ended, strict=True))
        return out
