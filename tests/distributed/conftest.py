"""Pools of ranks, started at first use and kept for the session."""

from __future__ import annotations

import pytest

from tests.support.ranks import RankPool


@pytest.fixture(scope="session")
def two_ranks():
    """Two gloo ranks on the CPU."""
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def one_rank():
    """A group of one rank."""
    pool = RankPool(1)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def three_ranks():
    """Three gloo ranks: no parameter divides evenly."""
    pool = RankPool(3)
    yield pool
    pool.close()
