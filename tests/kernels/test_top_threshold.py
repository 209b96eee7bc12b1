"""Exact thresholds against sorting: in any cut, in one reading and in three, on any instruction set."""

import numpy as np
import pytest
import torch
from torch.library import opcheck

from mnmt_scale.kernels.ops import top_threshold as threshold_ops
from mnmt_scale.kernels.ops.top_threshold import top_threshold
from mnmt_scale.kernels.reference import fisher_similarity as reference
from tests.support.fisher import KINDS, SIZES, every_kind, over_threads, small_brackets, values  # noqa: F401 (fixtures)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("every_kind")
def test_threshold_is_the_sorted_element(n, kind):
    x = values(n, kind)
    ordered = np.sort(x.numpy())[::-1]
    for count in sorted({1, (n + 1) // 2, max(1, n - 1), n}):
        t = top_threshold(x, count=count)
        assert t.shape == (1,)
        assert t.item() == ordered[count - 1]
        assert not torch.signbit(t[t == 0]).any()
        assert (x > t).sum() < count <= (x >= t).sum()


@pytest.mark.parametrize(("n", "fraction", "count"), [(10, 0.4, 4), (3, 0.1, 1), (7, 1.0, 7), (100, 0.07, 7), (5, 0.3, 2)])
def test_fraction_rounds_to_the_nearest_count_and_at_least_one(n, fraction, count):
    x = torch.randperm(n).float()
    assert top_threshold(x, fraction=fraction).item() == n - count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.0001, 0.1, 0.4, 0.9, 1.0])
@pytest.mark.usefixtures("small_brackets", "every_kind")
def test_one_reading_equals_sorting(kind, fraction):
    x = values(30011, kind, rows=3)
    expected = reference.top_threshold(x, max(1, round(fraction * 30011)))
    assert torch.equal(top_threshold(x, fraction=fraction), expected)
    cut = [part.contiguous() for part in x.split([1, 0, 20000, 9, 10001], dim=1)]
    assert torch.equal(top_threshold(cut, fraction=fraction), expected)


@pytest.mark.usefixtures("small_brackets")
def test_one_reading_is_enough_unless_the_sample_misleads(monkeypatch):
    monkeypatch.setenv("MNMT_KERNELS", "native")
    x = values(30011, rows=2)
    expected = reference.top_threshold(x, 12004)
    select, readings = threshold_ops._radix_select, []
    monkeypatch.setattr(threshold_ops, "_radix_select", lambda *a, **k: readings.append(k) or select(*a, **k))
    assert torch.equal(top_threshold(x, fraction=0.4), expected)
    assert all(k == {"finite": False} for k in readings)  # sample and candidates only
    for bad in (
        lambda sample, share, reduce: (torch.full((2,), 1e30), torch.full((2,), 2e30)),  # above all
        lambda sample, share, reduce: (torch.full((2,), -2.0), torch.full((2,), -1.0)),  # below all
        lambda sample, share, reduce: (torch.full((2,), -2.0), torch.full((2,), 1e30)),  # too wide for the room there is
        lambda sample, share, reduce: (torch.full((2,), torch.nan), torch.full((2,), torch.nan)),
    ):
        monkeypatch.setattr(threshold_ops, "_bracket", bad)
        readings.clear()
        assert torch.equal(top_threshold(x, fraction=0.4), expected)
        assert {} in readings


@pytest.mark.usefixtures("every_kind")
def test_any_cut_gives_the_same():
    x = values(5000, "constant", rows=3)
    expected = top_threshold(x, fraction=0.4)
    shards = [part.contiguous() for part in x.split([1, 7, 0, 992, 4000], dim=1)]
    assert torch.equal(top_threshold(shards, fraction=0.4), expected)
    assert torch.equal(top_threshold(lambda: iter(shards), fraction=0.4), expected)
    assert torch.equal(top_threshold(lambda: [x], fraction=0.4), expected)
    assert torch.equal(torch.cat([top_threshold(row, fraction=0.4) for row in x]), expected)


@pytest.mark.usefixtures("every_kind")
def test_histograms_are_added_to():
    x = values(300001, "normal", rows=2)
    keys = reference.radix_keys(x)
    assert torch.equal(reference.values_of_keys(keys), x)
    assert torch.equal(keys.argsort(stable=True), (x.double() - (torch.signbit(x) & (x == 0)) * 1e-300).argsort(stable=True))
    for level, prefix in enumerate([[0, 0], [1532, 515], [1532 << 11 | 7, 515 << 11 | 2000]]):
        prefix = torch.tensor(prefix)
        expected = torch.zeros(2, 2048, dtype=torch.int64)
        reference.radix_histogram(x, prefix, level, expected)
        assert expected.sum(dim=1).gt(0).all()

        def added(prefix=prefix, level=level):
            histogram = torch.full((2, 2048), 5)
            threshold_ops.radix_histogram(x, prefix, level, histogram)
            return histogram

        for ours in over_threads(added):
            assert torch.equal(ours, expected + 5)


def test_operator_is_sound():
    x = values(130, rows=3)
    prefix, histogram = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2048, dtype=torch.int64)
    opcheck(threshold_ops.radix_histogram, (x, prefix, 0, histogram))


# -------------------------------------------------------------------------------------------------------------- bad input


ONES = torch.ones(2, 6)


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        (ONES.double(), {}, "blocks is torch.float64, but must be one of torch.float32"),
        ([ONES, ONES.bfloat16()], {}, r"blocks\[1\] is torch.bfloat16"),
        (ONES.t(), {}, "blocks is not contiguous"),
        ([ONES, torch.ones(3, 6)], {}, r"blocks\[1\] has 3 rows, but blocks\[0\] has 2"),
        (torch.ones(2, 3, 4), {}, r"blocks has shape \[2, 3, 4\]"),
        (torch.ones(0, 6), {}, "at least 1 row"),
        ([], {}, "blocks has 0 tensors"),
        (list, {}, "blocks has 0 tensors"),
        ((x for x in [ONES]), {}, "blocks is a generator"),
        (ONES[:, :0].contiguous(), {}, "n = 0"),
        (ONES, {"fraction": 0.0}, "fraction is 0.0"),
        (ONES, {"fraction": 1.01}, "fraction is 1.01"),
        (ONES, {"fraction": float("nan")}, "fraction is nan"),
        (ONES, {"fraction": None}, "fraction is None and count is None"),
        (ONES, {"count": 3}, "fraction is 0.5 and count is 3"),
        (ONES, {"fraction": None, "count": 0}, "count is 0, but must be between 1 and the n = 6"),
        (ONES, {"fraction": None, "count": 7}, "count is 7, but must be between 1 and the n = 6"),
        (torch.tensor([1.0, float("nan")]), {}, "1 of the 2 values of row 0"),
        (torch.tensor([[1.0, 2.0], [float("inf"), float("-inf")]]), {}, "2 of the 2 values of row 1"),
    ],
)
def test_bad_blocks(blocks, options, message):
    with pytest.raises(ValueError, match=message):
        top_threshold(blocks, **{"fraction": 0.5, **options})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.usefixtures("small_brackets")
def test_values_that_are_not_finite_are_found_in_one_reading_too(bad):
    x = values(30011)
    x[-1] = bad
    with pytest.raises(ValueError, match="1 of the 30011 values of row 0 are infinite or NaN"):
        top_threshold(x, fraction=0.4)


def test_a_stream_that_changes_between_readings():
    readings = iter([torch.arange(64.0), torch.ones(64) * 70, torch.arange(64.0)])
    with pytest.raises(ValueError, match="when read first"):
        top_threshold(lambda: [next(readings)], count=3)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(default):
    row = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0))
    expected = row.sort(descending=True).values[(4 << 20) // 10 - 1]
    torch.set_default_dtype(default)
    try:
        found = top_threshold(row, count=(4 << 20) // 10)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert found.item() == expected.item()
