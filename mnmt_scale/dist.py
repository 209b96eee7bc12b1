"""Ranks: who started this process, how many there are, and the few collectives that the rest needs.

``join`` understands torchrun and the ``deepspeed`` launcher (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT),
Open MPI (OMPI_COMM_WORLD_*), Slurm steps (SLURM_PROCID, SLURM_STEP_NUM_TASKS) and a process that nobody launched, which
becomes a group of one rank. Without an accelerator, or with MNMT_DEVICE=cpu, the group speaks gloo, else NCCL.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

from .errors import MnmtError

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_GONE = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "Timed out waiting")
_saved_environment: dict[str, str | None] = {}


@dataclass(frozen=True, slots=True)
class World:
    """This process among all: ``rank`` of ``size``, ``local_rank`` on its machine, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Place:
    rank: int
    size: int
    local_rank: int
    launcher: str


def environment_world() -> tuple[int, int, int]:
    """(rank, size, local_rank) as the launcher's environment says, without starting a process group.

    Raises:
        MnmtError: E803 when the environment is incomplete or contradicts itself.
    """
    place = _place(os.environ)
    return place.rank, place.size, place.local_rank


def join(device: str | None = None) -> World:
    """Joins the process group of whatever launched this process; alone, makes a group of one.

    Args:
        device: "cpu" or "cuda"; None takes MNMT_DEVICE, else the accelerator where there is one.

    Raises:
        MnmtError: E803 for a launcher environment that cannot be used, E802 for a device that is not there.
    """
    place = _place(os.environ)
    chosen = _device(device or os.environ.get("MNMT_DEVICE") or None, place)
    if td.is_initialized():
        if td.get_world_size() != place.size and place.launcher != "none":
            raise MnmtError("E803", "a process group of another size is running already", where=place.launcher)
        return World(td.get_rank(), td.get_world_size(), place.local_rank, chosen)
    if chosen.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    else:
        # cuBLAS reads it once, when it is first used; without it torch warns at every product of a deterministic training
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(chosen)
    address, port = _rendezvous(place)
    _export(place, address, port)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    store = td.HashStore() if place.size == 1 else None
    try:
        td.init_process_group(
            backend,
            store=store,
            init_method=None if store else "env://",
            rank=place.rank,
            world_size=place.size,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise MnmtError(
            "E803",
            f"rank {place.rank} of {place.size} could not join the group: {str(error).splitlines()[0]}",
            where=f"{place.launcher}, MASTER_ADDR={address} MASTER_PORT={port}",
            remedy="see that the address can be reached and the port is free",
        ) from error
    return World(place.rank, place.size, place.local_rank, chosen)


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Around collectives: when another rank died or hangs, gloo's or NCCL's complaint becomes one line, E504."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(mark in text for mark in _GONE):
            raise
        detail = text.split("] ", 1)[-1].split(". ", 1)[0].split("\n", 1)[0]
        what = f"another rank is gone or does not answer ({detail})"
        raise MnmtError("E504", what, where=f"rank {td.get_rank()}", remedy="see what the other ranks said first") from error


def leave() -> None:
    """Leaves the group and restores the environment; harmless when none was joined."""
    if td.is_initialized():
        td.destroy_process_group()
    for name, value in _saved_environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _saved_environment.clear()


def barrier() -> None:
    """Waits for all ranks."""
    if not _many():
        return
    with peers():
        if td.get_backend() == "nccl":
            td.barrier(device_ids=[torch.cuda.current_device()])
        else:
            td.barrier()


def any_rank(flag: bool) -> bool:
    """True on all ranks when ``flag`` is true on any."""
    if not _many():
        return bool(flag)
    value = torch.tensor([int(flag)], dtype=torch.int32, device=_collective_device())
    with peers():
        td.all_reduce(value, op=td.ReduceOp.MAX)
    return bool(value.item())


def all_sum(tensor: Tensor) -> Tensor:
    """Elementwise sum over ranks, in place; the same tensor is returned. On the host or on this rank's device."""
    if not _many():
        return tensor
    with peers():
        if td.get_backend() == "nccl" and tensor.device.type == "cpu":
            moved = tensor.to(_collective_device())
            td.all_reduce(moved)
            return tensor.copy_(moved)
        td.all_reduce(tensor)
    return tensor


def broadcast_object(obj: Any, src: int = 0) -> Any:
    """What rank ``src`` holds, on all ranks. For what this program made itself: it travels as a pickle."""
    if not _many():
        return obj
    box = [obj]
    with peers():
        td.broadcast_object_list(box, src=src, device=_collective_device())
    return box[0]


def gather_objects(obj: Any) -> list[Any]:
    """The objects of all ranks, by rank, on all ranks."""
    if not _many():
        return [obj]
    out: list[Any] = [None] * td.get_world_size()
    with peers():
        td.all_gather_object(out, obj)
    return out


def _many() -> bool:
    return td.is_initialized() and td.get_world_size() > 1


def _collective_device() -> torch.device:
    if td.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _place(env: Mapping[str, str]) -> _Place:
    """Who launched us. RANK goes first: torchrun may run inside a Slurm step or under mpirun."""
    if "RANK" in env or "WORLD_SIZE" in env:
        place = _numbers(env, "torchrun or deepspeed", "RANK", "WORLD_SIZE", "LOCAL_RANK")
        missing = [n for n in ("MASTER_ADDR", "MASTER_PORT") if n not in env]
        if place.size > 1 and missing:
            raise _unusable(place.launcher, f"WORLD_SIZE is {place.size} but {' and '.join(missing)} not set")
        return place
    if "OMPI_COMM_WORLD_RANK" in env or "OMPI_COMM_WORLD_SIZE" in env:
        return _numbers(env, "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:  # a batch script without srun is no step: it runs alone
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        return _numbers(env, "srun", "SLURM_PROCID", size, "SLURM_LOCALID")
    return _Place(0, 1, 0, "none")


def _numbers(env: Mapping[str, str], launcher: str, *names: str) -> _Place:
    missing = [n for n in names if n not in env]
    if missing == ["LOCAL_RANK"] and env.get("WORLD_SIZE") == "1":
        missing, env = [], {**env, "LOCAL_RANK": "0"}
    if missing:
        given = [n for n in names if n in env]
        raise _unusable(launcher, f"{' and '.join(given)} set but {' and '.join(missing)} not")
    try:
        rank, size, local_rank = (int(env[n]) for n in names)
    except ValueError:
        text = ", ".join(f"{n}={env[n]!r}" for n in names)
        raise _unusable(launcher, f"{text} are not all whole numbers") from None
    if not (0 <= rank < size and local_rank >= 0):
        raise _unusable(launcher, f"rank {rank} (local {local_rank}) of {size} ranks is impossible")
    return _Place(rank, size, local_rank, launcher)


def _unusable(launcher: str, what: str) -> MnmtError:
    remedy = "start through one launcher (torchrun, deepspeed, mpirun, srun), or unset these variables to train alone"
    return MnmtError("E803", what, where=f"the environment of {launcher}", remedy=remedy)


def _device(name: str | None, place: _Place) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name.split(":")[0] != "cuda":
        raise MnmtError("E102", f"device {name!r} is unknown", where="MNMT_DEVICE", remedy="cpu or cuda")
    if not torch.cuda.is_available():
        raise MnmtError("E802", "no CUDA device here", where=f"device {name}", remedy="set MNMT_DEVICE=cpu")
    count = torch.cuda.device_count()
    # A launcher that binds each rank to one device (CUDA_VISIBLE_DEVICES, --gpus-per-task) shows only that one.
    index = 0 if count == 1 and place.local_rank > 0 and place.launcher in ("srun", "mpirun") else place.local_rank
    if index >= count:
        raise _unusable(place.launcher, f"local rank {place.local_rank} but only {count} CUDA devices visible")
    return torch.device("cuda", index)


def _rendezvous(place: _Place) -> tuple[str, int]:
    """Where the ranks meet: (MASTER_ADDR, MASTER_PORT)."""
    env = os.environ
    if place.size == 1:
        return "127.0.0.1", int(env.get("MASTER_PORT", 0)) or _free_port()
    if "MASTER_ADDR" in env and "MASTER_PORT" in env:
        try:
            return env["MASTER_ADDR"], int(env["MASTER_PORT"])
        except ValueError:
            raise _unusable(place.launcher, f"MASTER_PORT={env['MASTER_PORT']!r} is not a port") from None
    if place.launcher == "srun":
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
        job = int(env.get("SLURM_JOB_ID", "0")) * 7 + int(env.get("SLURM_STEP_ID", "0"))
        address = env.get("MASTER_ADDR") or first_host(nodes)
        return address, int(env.get("MASTER_PORT", 0)) or 15000 + job % 45000
    return _meet_by_mpi(place)


def _meet_by_mpi(place: _Place) -> tuple[str, int]:
    """Rank 0 picks a free port on its machine and tells the others through MPI itself."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise _unusable("mpirun", f"mpi4py cannot be used ({error}), so MASTER_ADDR and MASTER_PORT are needed") from None
    comm = MPI.COMM_WORLD
    if comm.Get_size() != place.size:
        raise _unusable("mpirun", f"mpi4py sees {comm.Get_size()} ranks, mpirun says {place.size}; another MPI library?")
    alone = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "0")) == place.size
    address = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if alone else _own_address())
    return comm.bcast((address, _free_port()) if place.rank == 0 else None, root=0)


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: ``"gpu[03-05,9],cpu1"`` -> ``"gpu03"``."""
    match = re.match(r"([^\[,\s]+)(?:\[(\d+)[^\]]*\]([^,\[\s]*))?", nodelist)
    if not match:
        raise _unusable("srun", f"node list {nodelist!r} names no host")
    stem, number, rest = match.groups()
    return stem + (number or "") + (rest or "")


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("10.255.255.255", 1))  # sends nothing: asks the routing table for the outgoing interface
            return s.getsockname()[0]
        except OSError:
            return socket.gethostbyname(socket.gethostname())


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def _export(place: _Place, address: str, port: int) -> None:
    """DeepSpeed reads these from the environment, whoever launched us; ``leave`` takes them back."""
    values = (place.rank, place.size, place.local_rank, address, port)
    for name, value in zip(_ENVIRONMENT, values, strict=True):
        _saved_environment.setdefault(name, os.environ.get(name))
        os.environ[name] = str(value)
