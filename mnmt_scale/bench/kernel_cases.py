"""Which shapes are measured: those of the papers, and a set that fits a CPU in memory and minutes.

Sizes: d = 60M (Transformer base), 110M (4+4 layers of the TED models with their table), 418M (M2M-100); K tasks in a batch;
T tokens of a batch; V from bilingual vocabularies to M2M-100's and beyond; C teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch

from .kernel_case import Case
from .kernel_parameter_cases import fisher_accumulate_case, task_gram_case
from .kernel_similarity_cases import DISTRIBUTIONS, masks_case, overlap_case, pair_sums_case, streamed_case, threshold_case
from .kernel_tied_cases import segmented_step_case
from .kernel_vocabulary_cases import cross_entropy_case, distillation_case
from .kernel_wgrad_cases import segmented_linear_case

Size = Literal["quick", "default", "full"]
Cases = Iterable[Case]

PARAMETERS = (60_000_000, 110_000_000, 418_000_000)
TASKS = (4, 8, 16)
TOKENS = (4096, 16384)
VOCABULARIES = (32_000, 64_000, 128_000, 256_000)
WIDTHS = (512, 1024)
TEACHERS = (1, 4, 8)


def cases_of(ops: Iterable[str], device: torch.device, size: Size) -> list[Case]:
    """The cases of these ops, in the order of ``OPS``."""
    wanted, kind = set(ops), device.type
    chosen = "full" if size == "default" and kind == "cuda" else size
    return [case for op in OPS if op in wanted for case in OPS[op](kind, chosen)]


def _task_gram(device: str, size: str) -> Cases:
    if size == "quick":
        yield task_gram_case(3, 10_001, "fp32", device)
        yield task_gram_case(3, 50_000, "bf16", device, ragged=True)
        yield task_gram_case(3, 10_001, "fp32", device, variant="combination")
        return
    if size == "default":
        for dtype in ("fp32", "bf16"):
            for K in TASKS:
                d = 10_000_000 if K == 16 else 20_000_000
                yield task_gram_case(K, d, dtype, device, compile_rival=(K, dtype) == (8, "fp32"))
        yield task_gram_case(8, 20_000_000, "bf16", device, ragged=True)
        for variant in ("diagonal", "combination"):
            yield task_gram_case(8, 10_000_000, "fp32", device, variant=variant)
        return
    for d in PARAMETERS:
        for K in TASKS:
            for dtype in ("fp32", "bf16"):
                yield task_gram_case(K, d, dtype, device, compile_rival=K == 8)
                yield task_gram_case(K, d, dtype, device, ragged=True)
        for variant in ("diagonal", "combination"):
            yield task_gram_case(8, d, "bf16", device, variant=variant)


def _fisher_accumulate(device: str, size: str) -> Cases:
    if size == "quick":
        yield fisher_accumulate_case(50_000, "bf16", device, ragged=True)
        return
    sizes = (40_000_000,) if size == "default" else PARAMETERS
    for d in sizes:
        yield fisher_accumulate_case(d, "bf16", device, ragged=False, compile_rival=True)
        yield fisher_accumulate_case(d, "bf16", device, ragged=True)
        yield fisher_accumulate_case(d, "fp32", device, ragged=False)
        if size == "full":
            yield fisher_accumulate_case(d, "fp32", device, ragged=True)


def _fisher_similarity(device: str, size: str) -> Cases:
    if size == "quick":
        yield threshold_case(50_000, "lognormal", device)
        yield masks_case(3, 6400, device)
        yield overlap_case(5, 10_000, device)
        yield pair_sums_case(4, 5000, device)
        return
    for distribution in DISTRIBUTIONS:
        few = size == "default" and distribution == "constant-heavy"  # numpy's partition takes ten times as long there
        yield threshold_case(20_000_000 if few else 100_000_000, distribution, device)
    if size == "default":
        yield masks_case(8, 10_000_000, device)
        yield overlap_case(40, 20_000_000, device)
        yield pair_sums_case(16, 1 << 20, device)
        return
    yield threshold_case(418_000_000, "squares of normal", device)
    yield masks_case(40, 110_000_000, device)
    yield overlap_case(40, 20_000_000, device)
    yield overlap_case(100, 110_000_000, device)
    yield overlap_case(200, 418_000_000, device)
    yield pair_sums_case(40, 10_000_000, device)
    yield streamed_case(100, 110_000_000, device)


def _linear_cross_entropy(device: str, size: str) -> Cases:
    if size == "quick":
        yield cross_entropy_case(64, 500, 32, "fp32", smoothed=False)
        return
    if size == "default":
        yield cross_entropy_case(2048, 32_000, 512, "fp32", smoothed=False)
        yield cross_entropy_case(2048, 32_000, 512, "bf16", compile_rival=True)
        return
    for T in TOKENS:
        for V in VOCABULARIES:
            for H in WIDTHS:
                yield cross_entropy_case(T, V, H, "bf16", compile_rival=T == 16384 and H == 512)
    for dtype in ("bf16", "fp32"):
        yield cross_entropy_case(16384, 64_000, 512, dtype, smoothed=False, compile_rival=True)


def _linear_distillation(device: str, size: str) -> Cases:
    if size == "quick":
        for C in (1, 4):
            yield distillation_case(64, 500, 32, C, "fp32")
        return
    if size == "default":
        for C, dtype in ((1, "fp32"), (4, "fp32"), (1, "bf16"), (8, "bf16")):
            yield distillation_case(2048, 32_000, 512, C, dtype, compile_rival=(C, dtype) == (1, "bf16"))
        return
    for C in TEACHERS:
        for T in TOKENS:
            for V in VOCABULARIES:
                yield distillation_case(T, V, 512, C, "bf16", compile_rival=(T, V) == (16384, 64_000))
    for V in VOCABULARIES:
        yield distillation_case(16384, V, 1024, 4, "bf16")


def _segmented_wgrad(device: str, size: str) -> Cases:
    if size == "quick":
        yield segmented_linear_case(3, 64, 16, 24, "fp32")
        yield segmented_step_case(3, 64, 500, 16, "fp32")
        return
    if size == "default":
        for dtype in ("fp32", "bf16"):
            yield segmented_linear_case(4, 4096, 512, 2048, dtype)
            yield segmented_step_case(4, 2048, 8_000, 512, dtype)
        return
    for K in TASKS:
        for T in TOKENS:
            for H in WIDTHS:
                yield segmented_linear_case(K, T, H, 4 * H, "bf16")
    for K in TASKS:
        yield segmented_step_case(K, 16384, 64_000, 512, "bf16")


OPS: dict[str, Callable[[str, str], Cases]] = {
    "task_gram": _task_gram,
    "fisher_accumulate": _fisher_accumulate,
    "fisher_similarity": _fisher_similarity,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_distillation": _linear_distillation,
    "segmented_wgrad": _segmented_wgrad,
}
"""Name for ``--ops`` -> its cases by kind of device and size of the set."""
