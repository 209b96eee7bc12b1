"""Masks, overlaps and sums over pairs against numpy's fp64: in any cut, on any instruction set and over ranks."""

import numpy as np
import pytest
import torch
from torch.library import opcheck

from mnmt_scale.kernels.ops import fisher_similarity as ops
from tests.support.fisher import SIZES, every_kind, over_ranks, over_threads, small_brackets, values  # noqa: F401 (fixtures)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("every_kind")
def test_masks_against_numpy(n):
    x = values(n, "zeros", rows=3)
    thresholds = torch.tensor([0.0, 0.3, -1.0])
    masks = ops.pack_masks(x, thresholds)
    assert masks.shape == (3, (n + 63) // 64)
    bits = np.unpackbits(masks.numpy().view(np.uint8), axis=1, bitorder="little")
    assert (bits[:, :n] == (x >= thresholds[:, None]).numpy()).all()
    assert not bits[:, n:].any()
    assert torch.equal(ops.pack_masks(x[1], thresholds[1:2]), masks[1:2])


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("words", [0, 1, 7, 8, 9, 515, 2100])
@pytest.mark.usefixtures("every_kind")
def test_overlap_against_numpy(rows, words):
    masks = torch.randint(-(2**63), 2**63 - 1, (rows, words), generator=torch.Generator().manual_seed(1))
    m = masks.numpy()
    expected = np.array([[np.bitwise_count((a & b).view(np.uint64)).sum(dtype=np.int64) for b in m] for a in m])
    for counts in over_threads(lambda: ops.mask_overlap(masks)):
        assert counts.dtype == torch.int64
        assert (counts.numpy() == expected).all()


@pytest.mark.usefixtures("every_kind")
def test_overlap_of_equation_6_by_hand():
    """Top 2 of 5; row 2 has a tie, so three of its elements are active and its row is divided by 3."""
    fisher = torch.tensor([[5.0, 4, 1, 1, 0], [9.0, 0, 8, 1, 1], [3.0, 2, 2, 1, 0]])
    s = ops.fisher_similarity(fisher, fraction=0.4)
    assert s.n == 5
    assert s.thresholds.tolist() == [4.0, 8.0, 2.0]
    assert s.active.tolist() == [2, 2, 3]
    third = 1 / 3
    torch.testing.assert_close(s.overlap, torch.tensor([[1, 0.5, 1], [0.5, 1, 1], [2 * third, 2 * third, 1]]).double())
    assert s.mse[0].tolist() == pytest.approx([0.0, (16 + 16 + 49 + 0 + 1) / 5, (4 + 4 + 1) / 5], rel=1e-6)
    assert torch.equal(s.mse, s.mse.t())


# -------------------------------------------------------------------------------------------------------- sums over pairs


def truth(x, eps=1e-16):
    """MSE and KL sums, and the sums of the terms' magnitudes, in numpy's fp64."""
    wide = x.numpy().astype(np.float64)
    logs = np.log(wide + eps)
    P = len(wide)
    mse, kl, size = np.zeros((P, P)), np.zeros((P, P)), np.zeros((P, P))
    for t in range(P):
        for a in range(P):
            mse[t, a] = ((wide[t] - wide[a]) ** 2).sum()
            terms = wide[a] * (logs[a] - logs[t])
            kl[t, a], size[t, a] = terms.sum(), np.abs(terms).sum()
    return mse, kl, size


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
@pytest.mark.parametrize("n", [0, *SIZES])
@pytest.mark.usefixtures("every_kind")
def test_pair_sums_against_fp64(n, rows):
    x = values(n, rows=rows)
    mse, kl = ops.pair_sums(x)
    true_mse, true_kl, size = truth(x)
    np.testing.assert_allclose(mse.numpy(), true_mse, rtol=2e-6)
    assert (np.abs(kl.numpy() - true_kl) <= 1e-6 * size + 3e-7 * x.numpy().sum(dtype=np.float64)).all()


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1.0, 1e30])
@pytest.mark.usefixtures("every_kind")
def test_pair_sums_at_any_magnitude(magnitude):
    """Squares of 1e-30 and of 1e30 are beyond fp32."""
    x = values(1000, "uniform", rows=3) * magnitude
    mse, kl = ops.pair_sums(x, eps=1e-35)
    true_mse, true_kl, size = truth(x, eps=1e-35)
    np.testing.assert_allclose(mse.numpy(), true_mse, rtol=2e-6)
    assert (np.abs(kl.numpy() - true_kl) <= 2e-6 * size).all()


@pytest.mark.usefixtures("every_kind")
def test_rows_near_each_other_do_not_cancel():
    """Rows 1e-4 apart: their products agree to eight digits, and the logarithms (about -23) to five."""
    base = values(70001, "uniform") * 1e-10
    x = torch.stack([base, base * (1 + 1e-4 * values(70001, "uniform", seed=1)), base.clone()])
    mse, kl = ops.pair_sums(x)
    true_mse, true_kl, _ = truth(x)
    np.testing.assert_allclose(mse.numpy(), true_mse, rtol=1e-5)
    np.testing.assert_allclose(kl.numpy(), true_kl, rtol=1e-4, atol=1e-20)
    assert mse[0, 2] == kl[0, 2] == kl[2, 0] == 0
    assert not mse.diagonal().any()


@pytest.mark.usefixtures("every_kind")
def test_pair_sums_are_bitwise_the_same_over_threads():
    x = values(100003, rows=5)
    first, *others = over_threads(lambda: ops.pair_sums(x), (1, 2, 3, 2))
    for other in others:
        assert torch.equal(first[0], other[0])
        assert torch.equal(first[1], other[1])


# -------------------------------------------------------------------------------------------------------------- all of it


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.usefixtures("every_kind")
def test_similarity_in_blocks(streamed):
    x = values(9001, rows=4)
    blocks = [part.contiguous() for part in x.split([4000, 0, 1, 5000], dim=1)]
    s = ops.fisher_similarity((lambda: iter(blocks)) if streamed else blocks)
    thresholds = torch.from_numpy(np.sort(x.numpy())[:, ::-1][:, 3600 - 1].copy())
    active = x >= thresholds[:, None]
    true_mse, true_kl, size = truth(x)
    assert torch.equal(s.thresholds, thresholds)
    assert torch.equal(s.active, active.sum(dim=1))
    assert torch.equal(s.overlap, (active.double() @ active.double().t()) / active.sum(dim=1)[:, None])
    np.testing.assert_allclose(s.mse.numpy(), true_mse / 9001, rtol=2e-6)
    assert (np.abs(s.kl.numpy() - np.abs(true_kl)) <= 1e-6 * size + 1e-6 * x.sum().item()).all()


def test_kl_takes_the_absolute_value_of_the_whole():
    """The blocks' sums are log(2) and -log(4) * 2: taken alone, their absolute values would add up to more."""
    blocks = [torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [1.0]])]
    kl = ops.fisher_similarity(blocks, metrics=["kl"]).kl
    assert kl[0, 1].item() == pytest.approx(abs(2 * np.log(2) - np.log(4)), abs=1e-6)
    assert kl[1, 0].item() == pytest.approx(abs(-np.log(2) + 4 * np.log(4)), rel=1e-6)


def test_only_the_metrics_asked_for():
    x = values(500, "normal", rows=2)  # negative values are nothing to Overlap
    s = ops.fisher_similarity(x, metrics=("overlap",))
    assert s.mse is None
    assert s.kl is None
    assert s.overlap[0, 0] == 1
    s = ops.fisher_similarity(x.abs(), metrics=("mse",))
    assert s.thresholds is s.active is s.overlap is s.kl is None
    assert s.mse[0, 1] > 0
    assert ops.fisher_similarity([x[:, :0].contiguous(), x], metrics=("overlap",)).n == 500


def test_operators_are_sound():
    x = values(130, rows=3)
    opcheck(ops._pack_masks, (x, torch.zeros(3)))
    opcheck(ops._mask_overlap, (ops.pack_masks(x, torch.zeros(3)),))
    opcheck(ops._pair_sums, (x, 1e-16, x.max().item()))


@pytest.mark.parametrize("parts", [(2500, 2500), (4999, 0, 1)])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.usefixtures("small_brackets")
def test_over_ranks_as_on_one(parts, streamed):
    x = values(5000, "zeros", rows=3).abs()
    expected = ops.fisher_similarity(x, fraction=0.2)

    def run(part, reduce):
        return ops.fisher_similarity((lambda: [part]) if streamed else part, fraction=0.2, reduce=reduce)

    for ours in over_ranks(run, [part.contiguous() for part in x.split(parts, dim=1)]):
        assert ours.n == 5000
        for name in ("thresholds", "active", "overlap"):
            assert torch.equal(getattr(ours, name), getattr(expected, name))
        torch.testing.assert_close(ours.mse, expected.mse, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours.kl, expected.kl, rtol=1e-6, atol=1e-6)


ONES = torch.ones(2, 6)


def test_bad_masks_sums_and_metrics():
    with pytest.raises(ValueError, match=r"thresholds has shape \[3\], but values of 2 rows needs \[2\]"):
        ops.pack_masks(ONES, torch.ones(3))
    with pytest.raises(ValueError, match="thresholds is torch.float64, but values is torch.float32"):
        ops.pack_masks(ONES, torch.ones(2).double())
    with pytest.raises(ValueError, match="masks is torch.float32"):
        ops.mask_overlap(ONES)
    with pytest.raises(ValueError, match=r"masks has shape \[4\]"):
        ops.mask_overlap(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="must not be negative .* but holds -1.0"):
        ops.pair_sums(-ONES)
    with pytest.raises(ValueError, match=r"blocks\[1\] must not be negative"):
        ops.fisher_similarity([ONES, -ONES], metrics=["kl"])
    with pytest.raises(ValueError, match="must be finite, but its values run from"):
        ops.pair_sums(ONES * float("inf"))
    for eps in (0.0, -1.0, 1e-40, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"eps is {eps}"):
            ops.fisher_similarity(ONES, eps=eps)
    with pytest.raises(ValueError, match=r"metrics is \['cosine'\], but must be some of \['overlap', 'mse', 'kl'\]"):
        ops.fisher_similarity(ONES, metrics=["cosine"])
    with pytest.raises(ValueError, match="metrics is"):
        ops.fisher_similarity(ONES, metrics=[])


@pytest.mark.parametrize("metrics", [["overlap", "mse"], ["kl"], ["overlap"]])
def test_sums_are_made_once_and_in_the_first_reading_of_a_function(monkeypatch, metrics):
    log: list[str] = []

    def pair_sums(block, eps, largest):
        assert largest == float(block.max()), "what the CUDA kernel scales by"
        log.append("sums")
        return tuple(torch.ones(2, 3, 3).double())

    monkeypatch.setattr(ops, "_pair_sums", pair_sums)

    def read():
        for _ in range(2):
            log.append("block")
            yield values(200, rows=3)
        log.append("end")

    s = ops.fisher_similarity(read, metrics=metrics)
    reading, with_sums = ["block", "block", "end"], ["block", "sums", "block", "sums", "end"]
    expected = {1: with_sums, 4: with_sums + 3 * reading}
    assert log == ([*4 * reading] if metrics == ["overlap"] else expected[1 if metrics == ["kl"] else 4])
    for found, divisor in ((s.mse, 400), (s.kl, 1)):
        assert found is None or torch.equal(found, torch.full((3, 3), 2.0 / divisor, dtype=torch.float64))
    assert s.n == 400
