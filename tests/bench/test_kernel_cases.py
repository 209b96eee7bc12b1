"""The cases of ``mnmt bench kernels``: their formulas, their names, and that every candidate computes the same."""

from __future__ import annotations

import pytest
import torch

from mnmt_scale.bench import timing
from mnmt_scale.bench.kernel_cases import OPS, cases_of
from mnmt_scale.bench.kernel_data import fragment_sizes, normal
from mnmt_scale.bench.kernel_parameter_cases import fisher_accumulate_case, task_gram_case
from mnmt_scale.bench.kernel_similarity_cases import masks_case, overlap_case, pair_sums_case, streamed_case, threshold_case
from mnmt_scale.bench.kernel_similarity_whole import resident_case, streamed_from_host_case
from mnmt_scale.bench.kernel_targets import target_cases
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
        (resident_case(3, 100, 10, "cuda"), 12_000, "copy"),
        (streamed_from_host_case(3, 100, 10, "cuda"), 12_000, "transfer"),
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
        for quick in (False, True):
            titles = [case.title for case in target_cases(device, quick=quick)]
            assert len(titles) == len(set(titles))


def test_every_target_is_among_the_first_cases_and_in_the_dtype_of_training():
    titles = [case.title for case in target_cases("cuda")]
    assert titles[:7] == [
        "task_gram, K=8, d=110M, bf16, flat",
        "task_gram, K=8, d=110M, bf16, 300 fragments",
        "task_gram, K=4, d=110M, bf16, flat",
        "task_gram, K=4, d=110M, bf16, 300 fragments",
        "fisher_accumulate, d=110M, bf16, flat",
        "fisher_accumulate, d=110M, bf16, 300 fragments",
        "linear_cross_entropy, T=16384, V=64k, H=512, bf16, no smoothing",
    ]
    assert titles[7:12] == [
        "linear_distillation, C=1, T=16384, V=64k, H=512, bf16",
        "linear_distillation, C=4, T=16384, V=64k, H=512, bf16",
        "fisher_similarity, resident, P=100, d=110M",
        "fisher_similarity, streamed from host memory, P=100, d=110M",
        "segmented_wgrad, step through all layers, K=4, T=16384, V=64k, H=512, bf16",
    ]


def test_the_size_of_all_logits_is_said():
    """Extra memory below it shows that no [T, V] tensor was made."""
    for case in (cross_entropy_case(16, 1024, 8, "bf16"), distillation_case(16, 1024, 8, 2, "bf16")):
        assert case.shape["whole_logits_mib"] == 1 / 32


def test_whole_similarity_repeats_its_block():
    """The truth of the block is that of the rows; so is what a reader finds that passes over the blocks."""
    peaks = Peaks(rates={"read": 1e9})
    for case in (resident_case(4, 300, 3, "cpu"), streamed_from_host_case(4, 300, 6, "cpu")):
        rows = measure_case(case, timing.Clock(CPU, flush=False), peaks, 0.0)
        assert [r["settings"]["error"] for r in rows if "error" in r["settings"]] == []
        work = case.build(CPU)
        found, truth = work.candidates[0].start()(), work.truth()
        x = normal((4, 300), CPU).square_().repeat(1, case.shape["d"] // 300).double()
        squares = ((x[:, None] - x[None]) ** 2).mean(dim=2)
        for outputs in (found, truth):
            torch.testing.assert_close(outputs["mse"].double(), squares, rtol=1e-5, atol=1e-8)
            assert outputs["thresholds"].tolist() == x.sort(descending=True).values[:, case.shape["d"] * 2 // 5 - 1].tolist()
    assert any(r["metric"] == "speed-up over the transfer alone" for r in rows)


def test_sums_by_products_are_those_of_differences():
    from mnmt_scale.bench.kernel_similarity_cases import _sums_by_products, true_sums

    values = normal((3, 400), CPU).square_()
    found, truth = _sums_by_products(values), true_sums(values)
    for name in ("squares", "divergence"):
        torch.testing.assert_close(found[name], truth[name], rtol=1e-5, atol=1e-4)


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
        absent = ("need a GPU", "not installed", "(2.13 has)")
        assert [p for p in problems.values() if not any(words in p for words in absent)] == [], case.title
        assert any(r["metric"].startswith("speed-up") for r in rows)
