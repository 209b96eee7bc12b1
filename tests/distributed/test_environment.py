"""What a launcher's environment says, and what of it is refused."""

from __future__ import annotations

import os

import pytest

from mnmt_scale import dist
from mnmt_scale.errors import MnmtError

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16"}


@pytest.fixture
def environment(monkeypatch):
    """Sets exactly these launcher variables."""

    def put(variables):
        for name in (*TORCHRUN, *MPI, *SLURM):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (0, 1, 0)),
        (TORCHRUN, (1, 4, 1)),
        (MPI, (3, 4, 1)),
        (SLURM, (5, 8, 1)),
        ({**SLURM, **TORCHRUN}, (1, 4, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1, 0)),
        # a batch script without srun: Slurm's variables are there, but there is no step
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}, (0, 1, 0)),
    ],
)
def test_place(environment, variables, place):
    environment(variables)
    assert dist.environment_world() == place


def without(table, *names):
    return {k: v for k, v in table.items() if k not in names}


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        (without(TORCHRUN, "LOCAL_RANK"), "LOCAL_RANK"),
        (without(TORCHRUN, "MASTER_PORT"), "MASTER_PORT"),
        ({**TORCHRUN, "RANK": "4"}, "rank 4"),
        ({**TORCHRUN, "RANK": "one"}, "RANK='one'"),
        (without(MPI, "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_SIZE"),
        (without(SLURM, "SLURM_LOCALID"), "SLURM_LOCALID"),
    ],
)
def test_unusable(environment, variables, named):
    environment(variables)
    with pytest.raises(MnmtError) as caught:
        dist.environment_world()
    assert caught.value.code == "E803"
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[03-05,9],cpu1", "gpu03"), ("n1", "n1"), ("a-b-7.x.org,c", "a-b-7.x.org"), ("r[1-2]-ib,s", "r1-ib")],
)
def test_first_host_of_a_slurm_list(nodes, first):
    assert dist.first_host(nodes) == first


def test_unknown_device_and_device_that_is_not_there(environment, monkeypatch):
    environment({})
    with pytest.raises(MnmtError, match="E102"):
        dist.join("tpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MnmtError, match="E802"):
        dist.join("cuda")


@pytest.mark.parametrize(
    ("device", "set_before", "found"), [("cuda", None, ":4096:8"), ("cuda", ":16:8", ":16:8"), ("cpu", None, None)]
)
def test_products_on_a_gpu_are_deterministic(environment, monkeypatch, device, set_before, found):
    """cuBLAS is told so before anything uses it; who has set it, and a CPU, is left alone."""
    environment({})
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is restored
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    if set_before:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", set_before)
    seen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda d: None)
    monkeypatch.setattr(dist, "_export", lambda *a: None)
    monkeypatch.setattr(dist.td, "is_initialized", lambda: False)
    monkeypatch.setattr(dist.td, "init_process_group", lambda *a, **k: seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
    monkeypatch.setenv("DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR", "cpu"))
    dist.join(device)
    assert seen == [found]


def test_without_a_group_the_collectives_are_no_ops():
    import torch

    assert dist.any_rank(True) is True
    assert dist.gather_objects("x") == ["x"]
    assert dist.broadcast_object(3) == 3
    assert dist.all_sum(torch.ones(2)).tolist() == [1.0, 1.0]
    dist.barrier()
