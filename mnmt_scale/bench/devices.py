"""What accelerators can do, for estimates: datasheet figures, and the shares of them that training really gets.

Peaks are the vendors' dense matrix-product rates (no sparsity), memory is what the card has, ``link`` an attainable
collective bandwidth per GPU inside a node (NVLink where the usual machine has it, else PCI Express). All of it can be
overridden on the command line; ``mnmt bench`` measures the machine at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MnmtError, nearest


@dataclass(frozen=True)
class Device:
    """One rank's device. Rates in FLOP/s, memory in bytes, link in bytes/s; ``bf16_rate`` None: no native bf16."""

    kind: str
    name: str
    memory_bytes: int | None
    fp32_rate: float
    bf16_rate: float | None
    link_rate: float

    @property
    def is_gpu(self) -> bool:
        return self.kind != "cpu"


def _gpu(kind: str, name: str, gib: int, fp32_tera: float, bf16_tera: float | None, link_giga: float) -> Device:
    bf16 = bf16_tera * 1e12 if bf16_tera else None
    return Device(kind, name, gib << 30, fp32_tera * 1e12, bf16, link_giga * 1e9)


DEVICES = {
    device.kind: device
    for device in (
        _gpu("v100", "NVIDIA V100 16 GB", 16, 15.7, None, 100),
        _gpu("v100-32", "NVIDIA V100 32 GB", 32, 15.7, None, 100),
        _gpu("a10g", "NVIDIA A10G 24 GB", 22, 31.2, 70, 10),
        _gpu("l4", "NVIDIA L4 24 GB", 22, 30.3, 121, 10),
        _gpu("a100-40", "NVIDIA A100 40 GB", 40, 19.5, 312, 220),
        _gpu("a100-80", "NVIDIA A100 80 GB", 80, 19.5, 312, 220),
        _gpu("h100", "NVIDIA H100 SXM 80 GB", 80, 67, 989, 360),
        _gpu("h200", "NVIDIA H200 141 GB", 139, 67, 989, 360),
        # per rank of two cores of a server processor with AVX-512, as measured here: 87 to 107 GFLOP/s fp32
        Device("cpu", "two cores of a server processor", None, 0.1e12, 0.2e12, 1e9),
    )
}
"""By the names that ``mnmt estimate --gpu`` takes. fp32 is without TF32, which the engine does not turn on."""

NODE_GPUS, NODE_LINK_RATE = 8, 40e9
"""Beyond this many GPUs the network between machines bounds collectives: bytes/s per GPU (a 400 Gbit/s card each)."""

MFU_ANCHORS = ((512, 0.11), (1024, 0.30))
"""(d_model, share of the peak) of published Transformer trainings on GPUs: fairseq base on 4 V100 (160,000 target
tokens/s), NVIDIA's Transformer-big on 8 V100 (235,077 target tokens/s). Between them linear, beyond them constant."""

CPU_MFU = 0.6
"""Share of the matrix-product rate on CPU, where launching operations costs nothing to speak of."""


def device_of(kind: str) -> Device:
    """The device called ``kind``.

    Raises:
        MnmtError: E102 naming the nearest one.
    """
    found = DEVICES.get(kind.lower())
    if found is None:
        longer = " or ".join(f"'{name}'" for name in DEVICES if name.startswith(kind.lower()))
        remedy = f"did you mean {longer}?" if kind and longer else nearest(kind.lower(), DEVICES)
        remedy = remedy or f"known: {', '.join(DEVICES)}; or give the nearest with --rate and --memory"
        raise MnmtError("E102", f"no device is called '{kind}'", where="--gpu", remedy=remedy)
    return found


def assumed_mfu(device: Device, d_model: int) -> float:
    """Share of the peak rate that a training step is assumed to reach."""
    if not device.is_gpu:
        return CPU_MFU
    (narrow, low), (wide, high) = MFU_ANCHORS
    return low + (high - low) * min(max((d_model - narrow) / (wide - narrow), 0.0), 1.0)


def assumed_link(device: Device, gpus: int) -> float:
    """Bytes/s per rank of a collective over ``gpus`` ranks."""
    return min(device.link_rate, NODE_LINK_RATE) if device.is_gpu and gpus > NODE_GPUS else device.link_rate
