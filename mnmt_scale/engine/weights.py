"""Full weights of a run, read for inference: safetensors only, verified against the manifest, no DeepSpeed."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from ..errors import MnmtError, nearest
from .manifest import check_file, committed, partial_remedy, ranked_by_metric, read_manifest, read_pointer

log = logging.getLogger(__name__)


def load_weights(run: str | Path, which: str = "best", average: int = 5) -> dict[str, Tensor]:
    """Full fp32 weights of a run, for inference and as a start; verified against the manifest.

    Args:
        which: ``best`` (lowest validation loss; the last one where none was measured), ``last``, ``average`` (mean of the
            last ``average`` checkpoints), ``average_best`` (of the best ones), ``ema`` (moving average kept in the best
            one) or ``step-N``.

    Raises:
        MnmtError: E403 when there is no such checkpoint or no EMA in it, E404 when its file is damaged.
    """
    root = Path(run) / "checkpoints"
    directories = committed(root)
    if not directories:
        raise MnmtError("E403", "no checkpoint here", where=str(root), remedy=partial_remedy(root))
    if which == "ema":
        return _read_weights(_best(root, directories, 1)[0], "ema.safetensors")
    if which.startswith("step-"):
        chosen = [d for d in directories if d.name.removeprefix("step-").lstrip("0") == which[5:].lstrip("0")]
        if not chosen:
            near = nearest(which, [d.name for d in directories]) or f"there is {directories[-1].name}"
            raise MnmtError("E403", f"no checkpoint {which!r}", where=str(root), remedy=near)
        return _read_weights(chosen[0])
    if which in ("best", "average_best"):
        chosen = _best(root, directories, 1 if which == "best" else average)
    elif which in ("last", "average"):
        chosen = directories[-1:] if which == "last" else directories[-average:]
    else:
        raise MnmtError("E403", f"weights {which!r} are unknown", remedy=nearest(which, ["best", "last", "average", "ema"]))
    total = _read_weights(chosen[0])
    for directory in chosen[1:]:
        for name, tensor in _read_weights(directory).items():
            total[name] += tensor
    return total if len(chosen) == 1 else {n: t / len(chosen) for n, t in total.items()}


def _best(root: Path, directories: list[Path], count: int) -> list[Path]:
    ranked = ranked_by_metric(directories)
    if not ranked:
        return directories[-count:]
    _, complaint = read_pointer(root, "best")
    if complaint:
        log.warning(complaint)
    return ranked[:count]


def _read_weights(directory: Path, name: str = "weights.safetensors") -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    info = read_manifest(directory)
    record = next((f for f in info.files if f.name == name), None)
    if record is None:
        remedy = "train with engine.ema_decay, or choose other weights" if name.startswith("ema") else None
        raise MnmtError("E403", f"no {name} in this checkpoint", where=str(directory), remedy=remedy)
    check_file(directory, record)
    try:
        return {n: t.float() for n, t in load_file(directory / name).items()}
    except SafetensorError as error:
        raise MnmtError("E404", f"not a safetensors file ({error})", where=str(directory / name)) from None
