"""An engine's state as named tensors and back: fp32 masters, optimizer moments and EMA, in fragments of parameters.

Since a fragment says which elements of which parameter it holds, the shards of any ZeRO stage and number of ranks can be
read at any other: each rank collects the pieces that overlap what it now owns. On the same layout these are exactly the
pieces that it wrote, bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import MnmtError
from .ema import Ema
from .shards import Fragment

_WEIGHT, _EMA = "weight", "ema"


@dataclass(frozen=True)
class Contents:
    """What one rank has to write.

    Attributes:
        shard: ``kind/parameter`` -> fp32 fragment, kinds ``weight``, ``ema`` and the optimizer's own (``exp_avg``, ...).
        shard_metadata: where each fragment starts in its parameter.
        ema, weights: full tensors on rank 0, else empty; ``ema`` None where no average is kept.
        engine: counters, as JSON.
    """

    shard: dict[str, Tensor]
    shard_metadata: dict[str, str]
    ema: dict[str, Tensor] | None
    weights: dict[str, Tensor]
    engine: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Size on the disk, headers left out."""
        tables = (self.shard, self.ema or {}, self.weights)
        return sum(t.numel() * t.element_size() for table in tables for t in table.values())


def collect(engine: Any) -> Contents:
    """Everything that a checkpoint of ``engine`` needs. Collective."""
    shards = engine.shards
    weights = engine.weights()
    averages = engine.weights(ema=True) if engine.ema is not None else None
    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    scalars: dict[str, float] = {}
    flats: dict[str, list[Tensor]] = {_WEIGHT: shards.masters}
    if engine.ema is not None:
        flats[_EMA] = engine.ema.averages
    states = shards.optimizer_state()
    for key in states[0]:
        values = [s[key] for s in states]
        if all(torch.is_tensor(v) and v.shape == m.shape for v, m in zip(values, shards.masters, strict=True)):
            flats[key] = values
        elif values[0] is not None:  # torch keeps None for SGD without momentum
            distinct = {float(v) for v in values}
            assert len(distinct) == 1, (key, distinct)
            scalars[key] = distinct.pop()
    for kind, flat in flats.items():
        for fragment, view in shards.views(flat):
            tensors[f"{kind}/{fragment.name}"] = view
            starts[fragment.name] = fragment.start
    counters = {
        "steps": engine.steps,
        "skips_in_row": engine.skips_in_row,
        "ema_updates": engine.ema.updates if engine.ema is not None else None,
        "optimizer": engine.config.optimizer.name,
        "kinds": sorted(flats),
        "scalars": scalars,
        "shapes": {n: list(s) for n, s in shards.shapes.items()},
    }
    return Contents(tensors, {"starts": json.dumps(starts)}, averages, weights, counters)


@torch.no_grad()
def restore(engine: Any, directory: Path, shard_names: list[str], saved: dict[str, Any]) -> None:
    """Puts saved state into a fresh engine. Collective.

    Raises:
        MnmtError: E405 naming both values when model or optimizer differ.
    """
    shards = engine.shards
    _check_fit(engine, saved, str(directory))
    reader = _FragmentReader(directory, shard_names)
    _fill(reader, _WEIGHT, shards, [m.detach() for m in shards.masters])
    moments = [k for k in saved["kinds"] if k not in (_WEIGHT, _EMA)]
    flats = {kind: [torch.zeros_like(m.detach()) for m in shards.masters] for kind in moments}
    for kind, flat in flats.items():
        _fill(reader, kind, shards, flat)
    if moments or saved["scalars"]:
        for group, master in enumerate(shards.masters):
            entry: dict[str, Any] = {kind: flat[group] for kind, flat in flats.items()}
            for key, value in saved["scalars"].items():
                entry[key] = torch.tensor(value, dtype=torch.float32, device=master.device)
            shards.set_optimizer_state(group, entry)
    shards.refresh()
    engine.steps, engine.skips_in_row = saved["steps"], saved["skips_in_row"]
    if engine.ema is not None:
        engine.ema = Ema(shards.masters, engine.config.ema_decay)
        if _EMA in saved["kinds"]:
            _fill(reader, _EMA, shards, engine.ema.averages)
            engine.ema.updates = saved["ema_updates"]


def _check_fit(engine: Any, saved: dict[str, Any], where: str) -> None:
    have = {n: list(s) for n, s in engine.shards.shapes.items()}
    for name in sorted(have.keys() | saved["shapes"].keys()):
        then, now = saved["shapes"].get(name, "missing"), have.get(name, "missing")
        if then != now:
            what = f"weight {name} is {then} in the checkpoint and {now} in this run"
            raise MnmtError("E405", what, where=where, remedy="resume with the model settings that it was trained with")
    then, now = saved["optimizer"], engine.config.optimizer.name
    if {then, now} not in ({then}, {"adam", "adamw"}):
        what = f"optimizer {then} in the checkpoint and {now} in this run"
        raise MnmtError("E405", what, where=where, remedy=f"set engine.optimizer.name = '{then}'")


class _FragmentReader:
    """Finds elements of named parameters in the shards of a checkpoint."""

    def __init__(self, directory: Path, names: list[str]) -> None:
        from safetensors import SafetensorError, safe_open

        self._pieces: dict[str, list[tuple[int, int, Any]]] = {}
        for name in names:
            try:
                handle = safe_open(directory / name, framework="pt", device="cpu")
            except SafetensorError as error:
                raise MnmtError("E404", f"not a safetensors file ({error})", where=str(directory / name)) from None
            starts = json.loads(handle.metadata()["starts"])
            for key in handle.keys():  # noqa: SIM118 (no dictionary)
                start = starts[key.split("/", 1)[1]]
                length = handle.get_slice(key).get_shape()[0]
                self._pieces.setdefault(key, []).append((start, start + length, handle))

    def read(self, kind: str, fragment: Fragment, into: Tensor) -> None:
        """Fills ``into`` with the elements of ``fragment``."""
        key, filled = f"{kind}/{fragment.name}", 0
        first, last = fragment.start, fragment.start + fragment.length
        for begin, end, handle in self._pieces.get(key, ()):
            low, high = max(first, begin), min(last, end)
            if low < high:
                part = handle.get_slice(key)[low - begin : high - begin]
                into.narrow(0, low - first, high - low).copy_(part)
                filled += high - low
        assert filled == fragment.length, f"{key}: {filled} of {fragment.length} elements in the shards"


def _fill(reader: _FragmentReader, kind: str, shards: Any, flats: list[Tensor]) -> None:
    for fragment, view in shards.views(flats):
        reader.read(kind, fragment, view)
