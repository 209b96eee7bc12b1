"""Shared by all tests: one thread a process (two ranks on two cores want one each), real text, a small finished run."""

from __future__ import annotations

import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported anywhere
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MNMT_DEVICE", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402 (after the environment is set)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_text() -> Path:
    """Directory of real parallel text; tests that need it are skipped where it is absent."""
    path = ROOT.parent / "shared" / "data"
    if not (path / "lafand").is_dir():
        pytest.skip("no real text at ../shared/data")
    return path


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """Directory with text/, store/ and toy.toml of a small prepared corpus (``tests.support.toy``)."""
    from tests.support.toy import make_toy

    return make_toy(tmp_path_factory.mktemp("toy"))
