"""The pools of ranks, for resuming what was killed."""

from __future__ import annotations

from tests.distributed.conftest import one_rank, two_ranks  # noqa: F401 (fixtures)
