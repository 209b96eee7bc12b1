"""``mnmt bench decode``: target tokens per second of beam and greedy search beside Hugging Face ``generate`` and CTranslate2.

Same weights, same sentences, same batches (those that our own planning makes), fp32, the same number of threads, all
candidates in turn within each repetition. Outputs are compared first: a candidate that does not give ours is reported as
failed, without a time.

On a run, sentences end where the model ends them. Without one the weights are random and ``</s>`` is never the best, so
that every sentence is given the length of a translation: as many tokens as its source has, times 0.8 to 1.2, as its limit,
for us and, by a stopping criterion per sentence, for ``generate``. CTranslate2 knows one limit per batch only and is
measured on runs alone.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation.decode import decode_ids
from ..model.incremental import Decoder
from .decode_cases import Case, random_case, run_case
from .table import Row, row

__all__ = ["Case", "bench_decode", "random_case", "run_case"]

MIN_EQUAL = 0.97
"""Share of outputs that must be the same: two implementations round differently, and near-ties in the scores fall
either way. Errors of a decoder (a wrong cache, mask or penalty) change nearly every output."""

OWN_SEARCH = ("ctranslate2",)
"""Candidates whose beam search is defined differently (when a sentence is done, one limit per batch): held to equal greedy
output, cut at our limits; how many beam outputs are the same is only reported."""

Outputs = list[list[int]]
Candidate = Callable[[int], Outputs]
"""Beam -> the tokens of every sentence, ``</s>`` and tag left out."""


def bench_decode(
    case: Case, *, beams: Sequence[int] = (5, 1), repetitions: int = 3, log: Callable[[str], None] = print
) -> list[Row]:
    """Rows for every candidate and beam: target tokens per second (generated tokens, ``</s>`` included, tags not)."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        candidates = _candidates(case, Path(folder))
        greedy = _equal(case, {name: decode(1) for name, decode in candidates.items()})
        for beam in beams:
            outputs = {name: decode(beam) for name, decode in candidates.items()}  # also the warm-up
            ours, equal = outputs["mnmt_scale"], _equal(case, outputs)
            judged = {name: greedy[name] if name in OWN_SEARCH else equal[name] for name in candidates}
            right = [name for name in candidates if judged[name] >= MIN_EQUAL * len(ours)]
            seconds: dict[str, list[float]] = {name: [] for name in right}
            for _ in range(repetitions):
                for name in right:
                    began = time.perf_counter()
                    candidates[name](beam)
                    seconds[name].append(time.perf_counter() - began)
            for name in candidates:
                rows.append(_row(case, beam, name, outputs[name], equal[name], seconds.get(name), repetitions))
                log(f"beam {beam}, {name}: {rows[-1]['value'] or 0:.0f} target tokens/s, {equal[name]} of {len(ours)} equal")
            if "hf-generate" in seconds:
                ratios = [b / a for a, b in zip(seconds["mnmt_scale"], seconds["hf-generate"], strict=True)]
                rows.append(row("decode", f"{case.name}, beam {beam}", "mnmt_scale", "speed over hf-generate", ratios, "x"))
    return rows


def _equal(case: Case, outputs: dict[str, Outputs]) -> dict[str, int]:
    """How many outputs of each candidate are ours, up to the limit of each sentence."""
    ours = outputs["mnmt_scale"]
    return {
        name: sum(a == b[: most - 1] for a, b, most in zip(ours, theirs, case.limits, strict=True))
        for name, theirs in outputs.items()
    }


def _row(case: Case, beam: int, name: str, outputs: Outputs, equal: int, seconds: list[float] | None, repetitions: int) -> Row:
    tokens = sum(len(o) + (len(o) + 1 < most) for o, most in zip(outputs, case.limits, strict=True))
    settings: dict[str, Any] = {
        "dtype": "fp32",
        "threads": torch.get_num_threads(),
        "repetitions": repetitions,
        "target_tokens": tokens,
        "equal_outputs": f"{equal}/{len(outputs)}",
        "ends": "natural" if case.natural_end else "by length",
    }
    if seconds is None:
        settings["error"] = "outputs differ from ours"
    rates = None if seconds is None else [tokens / s for s in seconds]
    return row("decode", f"{case.name}, beam {beam}", name, "target tokens", rates, "tokens/s", **settings)


def _candidates(case: Case, folder: Path) -> dict[str, Candidate]:
    found = {"mnmt_scale": _ours(case)}
    if importlib.util.find_spec("transformers") is not None and case.opened.model_config.norm == "pre":
        found["hf-generate"] = _hugging_face(case)
    if importlib.util.find_spec("ctranslate2") is not None and case.natural_end:
        found["ctranslate2"] = _ctranslate2(case, folder)
    return found


def _ours(case: Case) -> Candidate:
    decoder = Decoder(case.opened.model)

    def decode(beam: int) -> Outputs:
        found = decode_ids(decoder, case.sources, case.tag, case.special, case.config(beam), case.limits)
        return [hypothesis.tokens for hypothesis in found]

    return decode


def _hugging_face(case: Case) -> Candidate:
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    from ..export.hf import model_config, quiet_transformers
    from ..model.weights import to_hf

    opened = case.opened
    settings = {
        key: value for key, value in model_config(opened).items() if key not in ("architectures", "model_type", "dtype")
    }
    with quiet_transformers():
        model = M2M100ForConditionalGeneration(M2M100Config(**settings)).eval()
    missing, unexpected = model.load_state_dict(to_hf(opened.model.state_dict(), opened.model_config), strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(("embed_tokens.weight", "lm_head.weight")) for name in missing), missing

    @torch.inference_mode()
    def decode(beam: int) -> Outputs:
        out: Outputs = [[] for _ in case.sources]
        with quiet_transformers():
            for batch in case.batches(beam):
                for i, tokens in zip(batch, _generate(model, case, batch, beam), strict=True):
                    out[i] = tokens
        return out

    return decode


def _generate(model: Any, case: Case, batch: list[int], beam: int) -> Outputs:
    from transformers import LogitsProcessorList, StoppingCriteriaList

    special, evaluation = case.special, case.opened.evaluation
    sources, limits = [case.sources[i] for i in batch], torch.tensor([case.limits[i] for i in batch])
    ids = torch.full((len(batch), max(map(len, sources))), special.pad)
    mask = torch.zeros_like(ids)
    for place, source in enumerate(sources):
        ids[place, : len(source)] = torch.tensor(source)
        mask[place, : len(source)] = 1
    forbidden = torch.tensor(special.forbidden)

    def suppress(input_ids, scores):
        return scores if input_ids.shape[1] < 2 else scores.index_fill(1, forbidden, -torch.inf)

    def at_limit(input_ids, scores, **_):
        per_sentence = input_ids.shape[0] // len(batch)
        return (input_ids.shape[1] - 1 >= limits).repeat_interleave(per_sentence)

    options = {"length_penalty": evaluation.length_penalty, "early_stopping": evaluation.early_stopping} if beam > 1 else {}
    rows = model.generate(
        input_ids=ids,
        attention_mask=mask,
        forced_bos_token_id=case.tag,
        num_beams=beam,
        do_sample=False,
        max_new_tokens=int(limits.max()),
        logits_processor=LogitsProcessorList([suppress]),
        stopping_criteria=StoppingCriteriaList([at_limit]),
        **options,
    )
    return [_until(tokens[2:], (special.eos, special.pad)) for tokens in rows.tolist()]


def _ctranslate2(case: Case, folder: Path) -> Candidate:
    import ctranslate2

    from ..export.ctranslate2 import build_spec

    opened = case.opened
    directory = folder / "ctranslate2"
    if not directory.exists():
        directory.mkdir()
        spec = build_spec(opened)
        spec.validate()
        spec.optimize()
        spec.save(str(directory))
    threads = torch.get_num_threads()
    translator = ctranslate2.Translator(str(directory), device="cpu", compute_type="float32", intra_threads=threads)
    pieces = opened.tokenizer.pieces()
    numbers = {piece: i for i, piece in enumerate(pieces)}
    suppressed = [[pieces[i]] for i in case.special.forbidden]

    def decode(beam: int) -> Outputs:
        out: Outputs = [[] for _ in case.sources]
        for batch in case.batches(beam):
            results = translator.translate_batch(
                [[pieces[t] for t in case.sources[i]] for i in batch],
                target_prefix=[[pieces[case.tag]]] * len(batch),
                beam_size=beam,
                length_penalty=opened.evaluation.length_penalty,
                max_decoding_length=max(case.limits[i] for i in batch),
                max_input_length=0,
                suppress_sequences=suppressed,
            )
            for i, result in zip(batch, results, strict=True):
                out[i] = [numbers[piece] for piece in result.hypotheses[0][1:]]
        return out

    return decode


def _until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[:place]
    return tokens
