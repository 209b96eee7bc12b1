"""Hessians and probes under ZeRO: a plain process' numbers at any stage and rank count, and a training left as it was."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.probe_cases import truth

CASES = "tests.support.probe_cases:"


def distance(found, expected) -> float:
    """Relative, over all weights."""
    a, b = (torch.cat([t[n].double().reshape(-1) for n in expected]) for t in (found, expected))
    return float((a - b).norm() / b.norm())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("stage", "dtype", "kind"), [(1, "fp32", "auto"), (2, "fp32", "auto"), (1, "bf16", "auto"), (3, "fp32", "replicated")]
)
def test_replicated_products_are_those_of_a_plain_process(one_rank, two_ranks, stage, dtype, kind):
    settings = {"zero_stage": stage, "dtype": dtype}
    for ranks, pool in ((1, one_rank), (2, two_ranks)):
        results = pool.run(CASES + "product", settings=settings, kind=kind, dropout=0.1)
        first = results[0]
        assert first["kind"] == "replicated"
        assert distance(first["product"], truth(first["weights"], first["direction"], ranks)) < 2e-6
        assert all(r["same"] for r in results)
        assert all(same(r["product"], first["product"]) for r in results)
        assert all(r["spectrum"] == first["spectrum"] for r in results)


@pytest.mark.parametrize("stage", [1, 3])
def test_differences_are_the_replicated_products(one_rank, two_ranks, three_ranks, stage):
    """A smooth activation: over ReLUs that switch within the step differences see curvature that no second backward pass
    does. At ZeRO-3 the cut of vectors is DeepSpeed's cut of the weights; at ZeRO-1 on several ranks it is not."""
    for ranks, pool in ((1, one_rank), (2, two_ranks), (3, three_ranks)):
        model = dict(activation="gelu")
        result = pool.run(CASES + "product", settings={"zero_stage": stage}, kind="differences", dropout=0.1, **model)[0]
        assert result["kind"] == "differences"
        assert result["fits"] == (stage == 3 or ranks == 1)
        assert result["same"], "the weights were not put back"
        assert distance(result["product"], truth(result["weights"], result["direction"], ranks, **model)) < 1e-3


def test_the_spectrum_does_not_depend_on_stage_ranks_or_product(one_rank, two_ranks):
    runs = [
        pool.run(CASES + "product", settings={"zero_stage": stage}, kind=kind, steps=0, activation="gelu")[0]["spectrum"]
        for pool, stage, kind in ((one_rank, 1, "replicated"), (two_ranks, 2, "replicated"), (two_ranks, 3, "auto"))
    ]
    for other, exact in zip(runs[1:], (1e-4, 1e-2), strict=True):
        for name in ("largest", "smallest", "top", "trace", "trace_error"):
            assert other[name] == pytest.approx(runs[0][name], rel=exact), name
    assert runs[0]["residual"][0] < 0.01


def test_differences_in_bf16_are_refused_on_all_ranks(two_ranks):
    for kind in ("auto", "differences"):
        results = two_ranks.run(CASES + "product", settings={"zero_stage": 3, "dtype": "bf16"}, kind=kind)
        assert results[0] == results[1]
        assert results[0]["error"].startswith("MNMT-E507: gradients in bfloat16")
        assert "probe.product = 'replicated'" in results[0]["error"]


@pytest.mark.parametrize(("stage", "product"), [(1, "auto"), (2, "differences"), (3, "auto"), (3, "replicated")])
def test_a_training_that_was_probed_goes_on_bit_for_bit(two_ranks, stage, product):
    settings = {"zero_stage": stage}
    plain = two_ranks.run(CASES + "training_with_probes", settings=settings, probes=())
    probed = two_ranks.run(
        CASES + "training_with_probes", settings=settings, probes=("gradients", "curvature"), product=product
    )
    for a, b in zip(plain, probed, strict=True):
        assert any(k.startswith("exp_avg_sq/") for k in a["shard"])
        assert any(k.startswith("ema/") for k in a["shard"])
        assert same(a["shard"], b["shard"]), "masters, moments and averages"
        assert a["drawn"] == b["drawn"], "random generators"
        assert b["training"]
    assert same(plain[0]["weights"], probed[0]["weights"])
    assert probed[0]["measured"] == probed[1]["measured"], "ranks disagree"
    assert all(math.isfinite(x) for x in probed[0]["measured"]["curvature"]["top"])


def test_probes_in_bf16_leave_the_training_alone(two_ranks):
    settings = {"zero_stage": 1, "dtype": "bf16"}
    plain = two_ranks.run(CASES + "training_with_probes", settings=settings, probes=())
    probed = two_ranks.run(CASES + "training_with_probes", settings=settings, probes=("gradients", "curvature"))
    assert all(same(a["shard"], b["shard"]) for a, b in zip(plain, probed, strict=True))


def test_groups_add_up_and_neither_stage_nor_memory_changes_gradients(two_ranks):
    first, *others = (
        two_ranks.run(
            CASES + "training_with_probes", settings={"zero_stage": stage}, probes=("gradients",), host_memory=host_memory
        )[0]["measured"]["gradients"]
        for stage, host_memory in ((1, False), (1, True), (3, False))
    )
    grams = {name: torch.tensor(gram) for name, gram in first.items()}
    total = grams.pop("all")
    torch.testing.assert_close(sum(grams.values()), total)
    assert set(grams) == {"E.SA", "E.FC", "E.LN", "D.SA", "D.EA", "D.FC", "D.LN", "embeddings"}
    assert others[0] == first
    torch.testing.assert_close(torch.tensor(others[1]["all"]), total, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("stage", "kind"), [(1, "replicated"), (3, "differences")])
def test_curvature_that_is_not_finite_is_nan_on_all_ranks(two_ranks, stage, kind):
    for result in two_ranks.run(CASES + "nowhere_finite", settings={"zero_stage": stage}, kind=kind):
        assert all(math.isnan(x) for name in ("largest", "smallest", "top", "trace") for x in result[name])
