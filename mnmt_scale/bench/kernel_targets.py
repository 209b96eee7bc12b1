"""The shapes that targets are set for, on one H100 or H200, the most valuable first: who has 100 seconds stops anywhere.

What a case costs there is its compilations (about 10 s the first, 5 s a further one), its fp64 truth and five rounds; hence
one compiled rival an op, and no second size. The order: each target once in the dtype of training, then what takes long,
then variants and the parts of what is measured whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from .kernel_case import Case
from .kernel_parameter_cases import fisher_accumulate_case, task_gram_case
from .kernel_similarity_cases import overlap_case, pair_sums_case
from .kernel_similarity_whole import resident_case, streamed_from_host_case
from .kernel_tied_cases import segmented_step_case
from .kernel_vocabulary_cases import cross_entropy_case, distillation_case


def target_cases(device: str, *, quick: bool = False) -> Iterator[Case]:
    """The cases for a kind of device; ``quick``: the same ones, tiny, to see that they run."""
    d, T, V, H = (50_001, 64, 500, 32) if quick else (110_000_000, 16_384, 64_000, 512)
    pairs, columns, times = (5, 4000, 3) if quick else (100, 1_000_000, 110)

    def parameters(dtype: str, compiled: bool) -> Iterator[Case]:
        for K in (8, 4):
            yield task_gram_case(K, d, dtype, device, compile_rival=compiled and K == 8)
            yield task_gram_case(K, d, dtype, device, ragged=True)
        yield fisher_accumulate_case(d, dtype, device, ragged=False, compile_rival=compiled)
        yield fisher_accumulate_case(d, dtype, device, ragged=True)

    yield from parameters("bf16", compiled=not quick)
    yield cross_entropy_case(T, V, H, "bf16", smoothed=False, compile_rival=not quick)
    for C in (1, 4):
        yield distillation_case(T, V, H, C, "bf16")
    yield resident_case(pairs, columns, times, device)
    yield streamed_from_host_case(pairs, columns, times, device)
    yield segmented_step_case(4, T, V, H, "bf16")
    yield from parameters("fp32", compiled=False)
    yield cross_entropy_case(T, V, H, "bf16")
    yield pair_sums_case(pairs, 2 * columns, device)
    yield overlap_case(pairs, columns * times, device)
