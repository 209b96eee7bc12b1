"""The cases of ``mnmt bench kernels``: their formulas, their names, and that every candidate computes the same."""

from __future__ import annotations

import pytest
import torch

from mnmt_scale.bench import timing
from mnmt_scale.bench.kernel_cases import OPS, cases_of
from mnmt_scale.bench.kernel_data import fragment_sizes, normal
from mnmt_scale.bench.kernel_parameter_cases import fisher_accumulate_case, task_gram_case
from mnmt_scale.bench.kernel_similarity_cases import masks_case, overlap_case, pair_sums_case, streamed_case, threshold_case
from mnmt_scale.bench.kernel_tied_cases import segmented_step_case
from mnmt_scale.bench.kernel_vocabulary_cases import cross_entropy_case, distillation_case
from mnmt_scale.bench.kernel_wgrad_cases import segmented_linear_case
from mnmt_scale.bench.kernels import measure_case
from mnmt_scale.bench.peaks import Peaks

CPU = torch.device("cpu")


def test_bytes_and_flops_by_hand():
    costs = [
        (task_gram_case(4, 1000, "bf16", "cpu"), 8000, "read"),
        (task_gram_case(4, 1000, "fp32", "cpu", variant="diagonal"), 20_000, "read"),
        (task_gram_case(4, 1000, "fp32", "cuda", variant="combination"), 20_000, "copy"),
        (fisher_accumulate_case(1000, "bf16", "cpu", ragged=True), 10_000, "update"),
        (threshold_case(1000, "lognormal", "cpu"), 4000, "read"),
        (masks_case(2, 640, "cpu"), 2 * 640 * 4 + 2 * 80, "read"),
        (overlap_case(3, 100, "cpu"), 3 * 16, "read"),
        (pair_sums_case(3, 100, "cpu"), 1200, "read"),
        (streamed_case(3, 1000, "cpu", block=100), 12_000, "read"),
        (cross_entropy_case(10, 100, 8, "bf16"), 48_000, "product bf16"),
        (distillation_case(10, 100, 8, 4, "fp32"), 14 * 8000, "product fp32"),
        (segmented_linear_case(4, 10, 8, 16, "fp32"), 6 * 1280, "product fp32"),
        (segmented_step_case(2, 10, 30, 8, "fp32"), 6 * 10 * 8 * 38, "product fp32"),
    ]
    assert [(c.title, c.cost.amount, c.cost.peak) for c, _, _ in costs] == [(c.title, n, peak) for c, n, peak in costs]
    assert {case.op for case, _, _ in costs} == set(OPS)


def test_every_case_has_a_name_of_its_own():
    for device in ("cpu", "cuda"):
        for size in ("quick", "default", "full"):
            titles = [case.title for case in cases_of(OPS, torch.device(device), size)]
            assert len(titles) == len(set(titles))


def test_fragments_make_up_the_parameters():
    sizes = fragment_sizes(20_000_000)
    assert (len(sizes), sum(sizes)) == (300, 20_000_000)
    assert min(sizes) < 1000 < 1_000_000 < max(sizes)
    assert sum(n % 2 for n in sizes) > 50
    x = normal(9_000_001, CPU)
    assert float(x.std()) == pytest.approx(1.03, abs=0.03)
    assert not torch.equal(x[:1000], x[(1 << 22) + 3 :][:1000])


@pytest.mark.parametrize("op", ["task_gram", "fisher_accumulate", "fisher_similarity", "linear_cross_entropy",
                                "linear_distillation", "segmented_wgrad"])  # fmt: skip
def test_rivals_agree_with_the_truth(op):
    """Each quick case's rivals, ours among them: the cases themselves are right."""
    peaks = Peaks(rates={"read": 1e9, "update": 1e9, "product fp32": 1e9, "product bf16": 1e9})
    for case in cases_of([op], CPU, "quick"):
        rows = measure_case(case, timing.Clock(CPU, flush=False), peaks, 0.0)
        problems = {r["candidate"]: r["settings"]["error"] for r in rows if "error" in r["settings"]}
        assert [p for p in problems.values() if "need a GPU" not in p and "not installed" not in p] == [], case.title
        assert any(r["metric"].startswith("speed-up") for r in rows)
