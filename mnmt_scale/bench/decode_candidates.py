"""Who decodes in ``mnmt bench decode``: ours, Hugging Face ``generate`` and CTranslate2, with the same weights."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel

from ..evaluation.decode import ATTENTION, decode_ids
from ..model.incremental import Decoder
from .decode_cases import Case
from .kernel_case import OURS, Unavailable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Outputs = list[list[int]]
Candidate = Callable[[int], Outputs]
"""Beam -> the tokens of every sentence, ``</s>`` and tag left out."""


def ours(case: Case, device: torch.device, dtype: str, folder: Path) -> Candidate:
    """Our beam search on a copy of the case's model. ``folder``: for files; here as below."""
    decoder = Decoder(copy.deepcopy(case.opened.model).to(device=device, dtype=DTYPES[dtype]))

    def decode(beam: int) -> Outputs:
        found = decode_ids(decoder, case.sources, case.tag, case.special, case.config(beam), case.limits)
        return [hypothesis.tokens for hypothesis in found]

    return decode


def hugging_face(case: Case, device: torch.device, dtype: str, folder: Path, *, whole: bool = False) -> Candidate:
    """``M2M100ForConditionalGeneration.generate``, with the attention kernels that ours may use; ``whole``: all sentences in
    one batch instead of in ours, which are cut by the size of their logits."""
    if importlib.util.find_spec("transformers") is None:
        raise Unavailable("transformers is not installed")
    if case.opened.model_config.norm != "pre":
        raise Unavailable("M2M100 knows pre-norm alone")
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
    model = model.to(device=device, dtype=DTYPES[dtype])

    @torch.inference_mode()
    def decode(beam: int) -> Outputs:
        out: Outputs = [[] for _ in case.sources]
        with quiet_transformers(), sdpa_kernel(ATTENTION):
            for batch in [list(range(len(case.sources)))] if whole else case.batches(beam):
                for i, tokens in zip(batch, _generate(model, case, batch, beam), strict=True):
                    out[i] = tokens
        return out

    return decode


def _generate(model: Any, case: Case, batch: list[int], beam: int) -> Outputs:
    from transformers import LogitsProcessorList, StoppingCriteriaList

    special, evaluation, device = case.special, case.opened.evaluation, model.device
    sources, longest = [case.sources[i] for i in batch], max(case.limits[i] for i in batch)
    limits = torch.tensor([case.limits[i] for i in batch], device=device)
    ids = torch.full((len(batch), max(map(len, sources))), special.pad)
    mask = torch.zeros_like(ids)
    for place, source in enumerate(sources):
        ids[place, : len(source)] = torch.tensor(source)
        mask[place, : len(source)] = 1
    forbidden = torch.tensor(special.forbidden, device=device)

    def suppress(input_ids, scores):
        return scores if input_ids.shape[1] < 2 else scores.index_fill_(1, forbidden, -torch.inf)

    def at_limit(input_ids, scores, **_):
        per_sentence = input_ids.shape[0] // len(batch)
        return (input_ids.shape[1] - 1 >= limits).repeat_interleave(per_sentence)

    options = {"length_penalty": evaluation.length_penalty, "early_stopping": evaluation.early_stopping} if beam > 1 else {}
    rows = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        forced_bos_token_id=case.tag,
        num_beams=beam,
        do_sample=False,
        max_new_tokens=longest,
        logits_processor=LogitsProcessorList([suppress]),
        stopping_criteria=StoppingCriteriaList([at_limit]),
        **options,
    )
    return [_until(tokens[2:], (special.eos, special.pad)) for tokens in rows.tolist()]


def ctranslate2(case: Case, device: torch.device, dtype: str, folder: Path) -> Candidate:
    """CTranslate2 on the exported model, where its build knows device and dtype."""
    if not case.natural_end:
        raise Unavailable("it knows one limit per batch only: measured on trained runs")
    if importlib.util.find_spec("ctranslate2") is None:
        raise Unavailable("ctranslate2 is not installed")
    import ctranslate2

    if device.type == "cuda" and not ctranslate2.get_cuda_device_count():
        raise Unavailable(f"ctranslate2 {ctranslate2.__version__} here sees no GPU")
    compute = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    if compute not in ctranslate2.get_supported_compute_types(device.type):
        raise Unavailable(f"ctranslate2 {ctranslate2.__version__} has no {compute} on this {device.type}")
    from ..export.ctranslate2 import build_spec

    opened, directory = case.opened, folder / "ctranslate2"
    if not directory.exists():
        directory.mkdir()
        spec = build_spec(opened)
        spec.validate()
        spec.optimize()
        spec.save(str(directory))
    threads = torch.get_num_threads()
    translator = ctranslate2.Translator(str(directory), device=device.type, compute_type=compute, intra_threads=threads)
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


ONE_BATCH = "hf-generate, one batch"
CANDIDATES = {
    OURS: ours,
    "hf-generate": hugging_face,
    ONE_BATCH: partial(hugging_face, whole=True),
    "ctranslate2": ctranslate2,
}

GPU_ALONE = (ONE_BATCH,)
"""Where a step costs the same whatever its size; on a CPU padding is what costs."""

OWN_SEARCH = ("ctranslate2",)
"""Candidates whose beam search is defined differently (when a sentence is done, one limit per batch): held to equal greedy
output, cut at our limits; how many beam outputs are the same is only reported."""
