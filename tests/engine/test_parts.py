"""Seeds, fault hook, moving average and durable files, each by itself."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors import safe_open

from mnmt_scale.engine.ema import Ema, ema_decay
from mnmt_scale.engine.faults import fault
from mnmt_scale.engine.files import write_tensors, write_text
from mnmt_scale.engine.seeding import seed_step
from mnmt_scale.engine.zero import resolve_dtype
from mnmt_scale.errors import MnmtError


def drawn(*position):
    seed_step(*position)
    return torch.rand(4)


def test_seeds_depend_on_the_position_and_on_nothing_else():
    position = (1, 2, 3, 4)
    first = drawn(*position)
    drawn(9, 9, 9, 9)
    assert torch.equal(first, drawn(*position))
    for i in range(4):
        other = list(position)
        other[i] += 1
        assert not torch.equal(first, drawn(*other))


def test_fault_hook_is_for_tests_only(monkeypatch):
    assert fault("save.begin", rank=0) is False
    monkeypatch.setenv("MNMT_FAULT", "save.begin:ENOSPC")
    with pytest.raises(MnmtError, match="E104"):
        fault("save.begin", rank=0)
    monkeypatch.setenv("MNMT_TESTING", "1")
    with pytest.raises(OSError, match="No space left"):
        fault("save.begin", rank=0)
    assert fault("save.after_shard", rank=0) is False


def test_fault_conditions_and_mistakes(monkeypatch):
    monkeypatch.setenv("MNMT_TESTING", "1")
    monkeypatch.setenv("MNMT_FAULT", "train.loss:rank=1:step=3:NAN; save.begin:rank=0:EIO")
    assert fault("train.loss", rank=1, step=3) is True
    assert fault("train.loss", rank=1, step=4) is False
    assert fault("train.loss", rank=0, step=3) is False
    with pytest.raises(OSError, match="Input/output"):
        fault("save.begin", rank=0)
    for wrong in ("nowhere:SIGKILL", "save.begin:SIGNOTHING", "save.begin:rank:SIGKILL", "save.begin"):
        monkeypatch.setenv("MNMT_FAULT", wrong)
        with pytest.raises(MnmtError, match="E104"):
            fault("save.begin", rank=0)


def test_ema_by_hand():
    weights = [torch.tensor([1.0, 2.0])]
    ema = Ema(weights, 0.5)
    weights[0].fill_(11.0)
    ema.update(weights)  # decay min(0.5, 1/10)
    assert ema.averages[0].tolist() == pytest.approx([0.1 * 1 + 0.9 * 11, 0.1 * 2 + 0.9 * 11])
    assert [ema_decay(0.5, n) for n in (0, 1, 7, 8, 100)] == pytest.approx([0.1, 2 / 11, 8 / 17, 0.5, 0.5])
    before = ema.averages[0].clone(), weights[0].clone()
    ema.swap(weights)
    assert torch.equal(weights[0], before[0])
    ema.swap(weights)
    assert torch.equal(ema.averages[0], before[0])
    assert torch.equal(weights[0], before[1])


def test_tensors_are_written_as_safetensors_with_their_hash(tmp_path):
    big = torch.randn(3, 1_500_000)  # several chunks
    tensors = {"b/x": big, "a/y": torch.randn(2, 3).t(), "c": torch.zeros(0)}
    record = write_tensors(tmp_path, "t.safetensors", tensors, {"starts": "{}"})
    data = (tmp_path / "t.safetensors").read_bytes()
    assert (record.name, record.bytes) == ("t.safetensors", len(data))
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    with safe_open(tmp_path / "t.safetensors", framework="pt") as f:
        assert f.metadata() == {"starts": "{}"}
        assert set(f.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(f.get_tensor(name), tensor)


def test_a_file_is_never_written_over(tmp_path):
    write_text(tmp_path, "a", "x")
    with pytest.raises(FileExistsError):
        write_text(tmp_path, "a", "y")


def test_dtype():
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) is torch.float32
    assert resolve_dtype("bf16", cpu) is torch.bfloat16
    assert resolve_dtype("fp32", cpu) is torch.float32
