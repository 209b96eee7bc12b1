"""Fuzzy task clustering: the paper's example, its rules taken literally, and what they come to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mnmt_scale.methods.affinity.fuzzy import fuzzy_clusters, helpers_of, random_helpers, remarks, score

FIGURE_1 = np.array([[1.1, 0.2, 0.2], [0.3, 0.9, -0.2], [-0.2, 0.1, 1.2]])
"""Row = trained task j, column = affected task i."""


def S(affinity, cluster):
    return score(affinity, cluster, helpers_of(affinity, cluster))


def groups_of(affinity, clusters):
    return [tuple(sorted((*c, *helpers_of(affinity, c)))) for c in clusters]


def test_figure_1_with_rows_as_trained_tasks():
    singles = [(0,), (1,), (2,)]
    assert [S(FIGURE_1, c) for c in singles] == pytest.approx([0.7, 0.4, 0.7])
    assert groups_of(FIGURE_1, singles) == [(0, 1), (0, 1, 2), (0, 2)]
    assert [S(FIGURE_1, c) for c in [(0, 1), (0, 2), (1, 2)]] == pytest.approx([1.25, 1.15, 0.8])
    assert groups_of(FIGURE_1, [(0, 1), (0, 2), (1, 2)]) == [(0, 1), (0, 2), (0, 1, 2)]
    assert S(FIGURE_1, (0, 1, 2)) == pytest.approx(1.2)
    found = fuzzy_clusters(FIGURE_1)
    assert (found.clusters, found.helpers) == (((0, 1), (2,)), ((), (0,)))
    assert found.scores == pytest.approx((1.25, 0.7))
    assert found.total == pytest.approx(1.95)
    (merge,) = found.merges
    assert (merge.first, merge.second, merge.forced, merge.ties) == (0, 1, False, 0)
    assert merge.gain == pytest.approx(1.25 - 0.7 - 0.4)


def test_figure_1_transposed_has_the_same_clusters_and_other_scores():
    """So the clusters alone would not show which way round the matrix is read."""
    other = FIGURE_1.T
    assert [S(other, c) for c in [(0,), (1,), (2,)]] == pytest.approx([0.5, 0.6, 0.65])
    assert groups_of(other, [(0,), (1,), (2,)]) == [(0, 1, 2), (0, 1), (1, 2)]
    found = fuzzy_clusters(other)
    assert (found.clusters, found.helpers) == (((0, 1), (2,)), ((), (1,)))
    assert found.total == pytest.approx(1.90)


def literally(Z, at_most=None, at_least=1):
    """Equations 10 to 13 as they stand, on sets; every union computed anew each time. Equal ones: the first in order."""
    N, nothing = len(Z), 1e-9 * np.abs(Z).max()
    C = [frozenset([i]) for i in range(N)]
    G = [c | {j for j in range(N) for i in c if Z[j, i] > 0} for c in C]

    def value(c, g):
        return sum(Z[j, i] for i in c for j in g) / len(g)

    while len(C) > at_least:
        unions = []
        for a, b in itertools.combinations(range(len(C)), 2):
            c = C[a] | C[b]
            g = c | {j for j in range(N) if (j in G[a] or j in G[b]) and all(Z[j, i] > 0 for i in c)}
            unions.append((value(c, g) - value(C[a], G[a]) - value(C[b], G[b]), a, b, c, g))
        most = max(gain for gain, *_ in unions)
        if most <= nothing and (at_most is None or len(C) <= at_most):
            break
        _, a, b, c, g = next(union for union in unions if union[0] >= most - nothing)
        C[a], G[a] = c, g  # a < b: clusters stay in the order of their smallest task
        del C[b], G[b]
    return {(tuple(sorted(c)), tuple(sorted(g - c))): value(c, g) for c, g in zip(C, G, strict=True)}


def affinities(count=40):
    """Random matrices of several kinds: few and many helpers, heavy and light diagonals, families."""
    for seed in range(count):
        random = np.random.default_rng(seed)
        N = int(random.integers(2, 12))
        Z = random.normal(random.choice([-0.5, 0.0, 0.5]), 1.0, (N, N)) + random.choice([0, 1, 5]) * np.eye(N)
        if seed % 2:
            family = random.integers(0, 3, N)
            Z += 1.5 * (family[:, None] == family)
        yield seed, Z * 10.0 ** random.integers(-6, 3)


@pytest.mark.parametrize("bounds", [{}, {"at_most": 2}, {"at_least": 2}, {"at_most": 1}])
def test_it_is_the_rules_taken_literally(bounds):
    unions = 0
    for seed, Z in affinities():
        found, truth = fuzzy_clusters(Z, **bounds), literally(Z, **bounds)
        assert set(zip(found.clusters, found.helpers, strict=True)) == set(truth), seed
        assert found.total == pytest.approx(sum(truth.values()), rel=1e-9), seed
        unions += len(found.merges)
    assert unions > 100


def test_properties_of_every_result():
    for seed, Z in affinities():
        found = fuzzy_clusters(Z)
        assert sorted(i for c in found.clusters for i in c) == list(range(len(Z))), seed
        for cluster, helpers in zip(found.clusters, found.helpers, strict=True):
            assert not set(cluster) & set(helpers)
            assert (Z[np.ix_(helpers, cluster)] > 0).all()
        singles = sum(S(Z, (i,)) for i in range(len(Z)))
        assert found.total == pytest.approx(singles + sum(m.gain for m in found.merges))
        assert all(merge.gain > 0 and not merge.forced for merge in found.merges)
        for a, b in itertools.combinations(found.clusters, 2):  # Eq. 13: it stops where no union helps
            assert S(Z, (*a, *b)) <= S(Z, a) + S(Z, b) + 1e-12 * np.abs(Z).max()


def test_permuted_tasks_permute_the_result_where_there_are_no_ties():
    compared = 0
    for seed, Z in affinities():
        order = np.random.default_rng(1000 + seed).permutation(len(Z))
        found, moved = fuzzy_clusters(Z), fuzzy_clusters(Z[np.ix_(order, order)])
        if any(merge.ties for merge in found.merges):
            continue
        compared += len(found.merges) > 0
        back = {
            (tuple(sorted(order[list(c)].tolist())), tuple(sorted(order[list(h)].tolist())) if h else ())
            for c, h in zip(moved.clusters, moved.helpers, strict=True)
        }
        assert back == set(zip(found.clusters, found.helpers, strict=True)), seed
    assert compared > 15


BLOCKS = [(0, 1, 2), (3, 4), (5, 6, 7, 8), (9,)]


def blocks(inside=1.0, outside=0.0):
    Z = np.full((10, 10), outside)
    for block in BLOCKS:
        Z[np.ix_(block, block)] = inside
    return Z


@pytest.mark.parametrize("inside", [1.0, 0.1, 3e-7, "random"])
@pytest.mark.parametrize("outside", [0.0, -0.01])
def test_a_block_matrix_gives_singletons_and_bounded_the_blocks(inside, outside):
    scale = 1.0 if inside == "random" else inside
    values = np.random.default_rng(3).uniform(0.6, 1.0, (10, 10)) if inside == "random" else inside
    Z = np.where(blocks() > 0, values, outside * scale)
    alone = fuzzy_clusters(Z)
    assert alone.clusters == tuple((i,) for i in range(10))
    assert alone.helpers == tuple(tuple(j for j in b if j != i) for b in BLOCKS for i in b)
    bounded = fuzzy_clusters(Z, at_most=len(BLOCKS))
    assert bounded.clusters == tuple(BLOCKS)
    assert bounded.helpers == ((),) * 4
    assert all(merge.forced for merge in bounded.merges)
    assert bounded.total == pytest.approx(alone.total)


def test_an_affinity_that_is_positive_everywhere_gives_singletons():
    Z = np.random.default_rng(5).uniform(0.01, 1.0, (8, 8))
    found = fuzzy_clusters(Z)
    assert len(found.clusters) == 8
    assert all(len(helpers) == 7 for helpers in found.helpers)
    (text,) = remarks(Z, np.zeros((8, 8)), found, list("abcdefgh"))
    assert "cluster of its own" in text
    assert "every cell is positive" in text


def test_a_heavy_diagonal_unites_tasks_that_share_nothing():
    """By hand: alone S = (1 + 2 * 0.1) / 3 = 0.4; across blocks g drops the helpers, S = (1 + 1) / 2 = 1, a gain of 0.2."""
    Z = np.kron(np.eye(2), np.full((3, 3), 0.1)) + 0.9 * np.eye(6)
    assert S(Z, (0,)) == pytest.approx(0.4)
    assert S(Z, (0, 3)) == pytest.approx(1.0)
    found = fuzzy_clusters(Z)
    assert found.clusters == ((0, 3), (1, 4), (2, 5))
    assert "6 pairs inside a cluster do not help" in remarks(Z, 0 * Z, found, list("abcdef"))[-1]


def test_equal_means_stop_even_where_scores_cancel():
    """Tasks 0 and 1 have S = 0 alone (-0.3 + 0.1 + 0.2) and together; what is left of that in floating point is no gain."""
    Z = np.full((4, 4), -1.0) + 2.0 * np.eye(4)
    Z[:, 0], Z[:, 1] = [-0.3, 0.0, 0.1, 0.2], [0.0, -0.7, 0.3, 0.4]
    scales = np.random.default_rng(0).uniform(1e-3, 1e3, 60)
    assert any(fuzzy_clusters(Z * scale, tolerance=0.0).merges for scale in scales)  # rounding alone does unite them
    assert not any(fuzzy_clusters(Z * scale).merges for scale in scales)


@pytest.mark.parametrize("size", [1.0, 1e-8, 1e9])
def test_the_tolerance_is_relative(size):
    """The union gains 0.15. The larger of its absolute score (2.5 / 2) and of both alone (1.4 / 2 + 1.4 / 3) is 1.25: 12 %."""
    assert len(fuzzy_clusters(FIGURE_1 * size, tolerance=0.119).merges) == 1
    assert fuzzy_clusters(FIGURE_1 * size, tolerance=0.121).merges == ()


def test_ties_are_counted_and_the_first_in_order_is_taken():
    twice = np.full((6, 6), -1.0)
    twice[:3, :3] = twice[3:, 3:] = FIGURE_1
    found = fuzzy_clusters(twice)
    assert found.clusters == ((0, 1), (2,), (3, 4), (5,))
    assert [(m.first, m.second, m.ties, m.tied) for m in found.merges] == [(0, 1, 1, ((3, 4),)), (3, 4, 0, ())]
    text = "\n".join(remarks(twice, 0 * twice, found, list("abcdef")))
    assert "1 of 2 unions were tied with others: a + b like d + e" in text


def test_remarks_name_cells_within_their_standard_error():
    error = np.full((3, 3), 0.05)
    assert remarks(FIGURE_1, error, fuzzy_clusters(FIGURE_1), ["x", "y", "z"]) == []
    error[0, 2] = 0.2  # the helper of z, whose affinity is 0.2
    error[2, 1] = 0.3
    (text,) = remarks(FIGURE_1, error, fuzzy_clusters(FIGURE_1), ["x", "y", "z"])
    assert "2 of 9 cells lie within their standard error of zero" in text
    assert "(1 of 1 helpers rest on such cells): x -> z, z -> y" in text
    error[1, 1] = np.nan
    assert "1 of 9 cells were measured too seldom" in remarks(FIGURE_1, error, fuzzy_clusters(FIGURE_1), "xyz")[-1]


def test_remarks_tell_of_degeneration_and_of_forced_unions():
    bounded = fuzzy_clusters(blocks(), at_most=1)
    text = "\n".join(remarks(blocks(), 0 * blocks() - 1, bounded, list("abcdefghij")))
    assert "all directions are one cluster" in text
    assert "9 of 9 unions gained nothing" in text
    alone = remarks(blocks(), 0 * blocks() - 1, fuzzy_clusters(blocks()), list("abcdefghij"))
    assert len(alone) == 1
    assert "every cell is positive" not in alone[0]
    assert remarks(np.ones((1, 1)), np.zeros((1, 1)), fuzzy_clusters(np.ones((1, 1))), ["a"]) == []


def test_random_helpers_are_as_many_never_of_the_cluster_and_repeat():
    clusters = ((0, 1), (2,), (3, 4, 5))
    drawn = random_helpers(clusters, [3, 5, 0], seed=7)
    assert [len(h) for h in drawn] == [3, 5, 0]
    assert all(not set(c) & set(h) and len(set(h)) == len(h) for c, h in zip(clusters, drawn, strict=True))
    assert drawn == random_helpers(clusters, [3, 5, 0], seed=7)
    often = [random_helpers(clusters, [1, 0, 0], seed=s)[0][0] for s in range(200)]
    assert set(often) == {2, 3, 4, 5}
