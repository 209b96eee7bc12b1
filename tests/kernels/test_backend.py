"""Which implementation runs, what forces it, and what is said when a kernel cannot run here."""

import logging
import threading

import pytest
import torch

from mnmt_scale.errors import MnmtError
from mnmt_scale.kernels import backend, native


@pytest.fixture(autouse=True)
def free_choice(monkeypatch):
    monkeypatch.delenv("MNMT_KERNELS", raising=False)
    monkeypatch.setattr(backend, "_said", set())


def test_compiled_where_it_was_built():
    assert backend.implementation("task_gram", "cpu") == "native"
    assert backend.problem("task_gram", "cpu") is None


def test_falls_back_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(native, "problem", "no compiler was found")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert backend.implementation("task_gram", "cpu") == "reference"
        assert backend.implementation("fisher_accumulate", "cpu") == "reference"
    assert [r.getMessage() for r in caplog.records] == [
        "task_gram on cpu runs on its torch reference: no compiler was found",
        "fisher_accumulate on cpu runs on its torch reference: no compiler was found",
    ]


def test_a_device_without_fast_version_runs_the_reference(caplog):
    assert backend.implementation("task_gram", "mps") == "reference"
    assert "task_gram on mps runs on its torch reference: it has no fast version for mps" in caplog.text


@pytest.mark.parametrize("op", sorted(backend.FAST))
def test_reference_can_always_be_forced(op, monkeypatch):
    monkeypatch.setenv("MNMT_KERNELS", "reference")
    assert backend.implementation(op, "cpu") == backend.implementation(op, "cuda") == "reference"


def test_forcing_fails_loudly_where_it_cannot_be_done(monkeypatch):
    monkeypatch.setenv("MNMT_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(MnmtError, match=r"E804.*task_gram.*triton.*cpu"):
        backend.implementation("task_gram", "cpu")
    with pytest.raises(MnmtError, match=r"E804.*vocabulary_rows.*interpreter"):
        backend.implementation("vocabulary_rows", "cpu")
    monkeypatch.setenv("MNMT_KERNELS", "native")
    assert backend.implementation("vocabulary_rows", "cpu") == "native"
    with pytest.raises(MnmtError, match=r"E804.*vocabulary_rows.*no native version for cuda"):
        backend.implementation("vocabulary_rows", "cuda")
    monkeypatch.setattr(native, "problem", "no compiler was found")
    with pytest.raises(MnmtError, match=r"E804.*no compiler was found"):
        backend.implementation("task_gram", "cpu")


def test_unknown_kind_is_refused(monkeypatch):
    monkeypatch.setenv("MNMT_KERNELS", "cuda")
    with pytest.raises(MnmtError, match=r"E804.*'cuda'.*reference, native, triton"):
        backend.implementation("task_gram", "cpu")


def test_forced_within_a_block_only():
    with backend.forced("reference"):
        assert backend.implementation("task_gram", "cpu") == "reference"
        with backend.forced("native"):
            assert backend.implementation("task_gram", "cpu") == "native"
        assert backend.implementation("task_gram", "cpu") == "reference"
    assert backend.implementation("task_gram", "cpu") == "native"


def test_a_forced_block_goes_over_the_environment(monkeypatch):
    monkeypatch.setenv("MNMT_KERNELS", "reference")
    with backend.forced("native"):
        assert backend.implementation("task_gram", "cpu") == "native"


def test_fp64_has_only_references(monkeypatch):
    assert backend.implementation("task_gram", "cpu", torch.float64) == "reference"
    with backend.forced("native"), pytest.raises(MnmtError, match=r"E804.*no native version for torch.float64"):
        backend.implementation("task_gram", "cpu", torch.float64)
    monkeypatch.setenv("MNMT_KERNELS", "foo")
    with pytest.raises(MnmtError, match="'foo'"):
        backend.implementation("task_gram", "cpu", torch.float64)


def test_threads_see_what_is_forced():
    """As autograd's do, in which the backward pass of a GPU runs."""
    seen = []
    with backend.forced("reference"):
        thread = threading.Thread(target=lambda: seen.append(backend.forced_kind()))
        thread.start()
        thread.join()
    assert seen == ["reference"]


def test_a_gpu_that_is_too_old_falls_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    assert backend.problem("vocabulary_rows", "cuda") == "Triton needs compute capability 8.0, this GPU has 7.0"
