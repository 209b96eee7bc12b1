"""``mnmt export``: write aside, check against the trained model, and only then publish under the given name."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..bundle import GROUPS, is_bundle, open_bundle
from ..errors import MnmtError, nearest
from ..groups import write_groups
from ..runs import OpenedRun, open_run
from .publish import written_aside

FORMATS = ("hf", "ctranslate2", "safetensors")
RECORD_NAME = "export.json"
"""In every export: where it comes from and what the parity check found."""
_NEEDED = {"hf": ("transformers", "tokenizers", "google.protobuf"), "ctranslate2": ("ctranslate2",), "safetensors": ()}


def export(
    run: Path,
    to: Literal["hf", "ctranslate2", "safetensors"],
    out: Path,
    *,
    weights: str | None = None,
    quantization: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Exports a run, or a bundle: each of its models into ``out/cluster-k``, with the groups file beside them.

    Args:
        run: run directory, bundle, or workflow directory.
        weights: as for ``open_run``; None: what the run's evaluation settings say.
        quantization: CTranslate2 only; one of its names.
        force: replace an earlier export in ``out``, which stays until the new one has passed its check.

    Returns:
        What ``export.json`` holds, and the path. Of a bundle: ``models``, what is said of each (there too), and ``routes``,
        which of them is for which direction.

    Raises:
        MnmtError: E701 the format cannot hold the model, E702 the parity check failed (nothing is published), E704 ``out`` is
            taken, E801 a package is missing, and those of ``open_run`` and ``open_bundle``.
    """
    if to not in FORMATS:
        raise MnmtError("E701", f"no export format {to!r}", remedy=nearest(to, FORMATS))
    if quantization is not None and to != "ctranslate2":
        raise MnmtError("E104", "--quantization is for --to ctranslate2")
    require_packages(to)
    with written_aside(out, marker=RECORD_NAME, force=force) as aside:
        whole = _bundle if is_bundle(run) else _one
        record = whole(run, to, aside, weights, quantization)
    return {"path": str(out), **record}


def _one(run: Path, to: str, directory: Path, weights: str | None, quantization: str | None) -> dict[str, Any]:
    opened = open_run(run, weights)
    parity = _write_and_check(opened, to, directory, quantization)
    return _recorded(directory, _record(opened, to, weights, quantization, parity))


def _bundle(path: Path, to: str, directory: Path, weights: str | None, quantization: str | None) -> dict[str, Any]:
    bundle = open_bundle(path)
    models = {}
    for model in bundle.models:
        (directory / model).mkdir()
        models[model] = _one(bundle.path / model, to, directory / model, weights, quantization)
    write_groups(directory / GROUPS, bundle.groups.grouping, bundle.groups.about)
    record = {"format": to, "run": bundle.path.name, "directions": len(bundle.tasks), "routes": bundle.routes, "models": models}
    return _recorded(directory, record)


def _recorded(directory: Path, record: dict[str, Any]) -> dict[str, Any]:
    (directory / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _write_and_check(run: OpenedRun, to: str, directory: Path, quantization: str | None) -> dict[str, Any]:
    if to == "hf":
        from .hf import check_hf, write_hf

        write_hf(run, directory)
        return check_hf(run, directory)
    if to == "ctranslate2":
        from .ctranslate2 import QUANTIZATIONS, check_ctranslate2, write_ctranslate2

        if quantization is not None and quantization not in QUANTIZATIONS:
            raise MnmtError("E102", f"no quantization {quantization!r}", remedy=nearest(quantization, QUANTIZATIONS))
        write_ctranslate2(run, directory, quantization)
        return check_ctranslate2(run, directory, quantization)
    from .plain import check_plain, write_plain

    write_plain(run, directory)
    return check_plain(run, directory)


def _record(run: OpenedRun, to: str, weights: str | None, quantization: str | None, parity: dict[str, Any]) -> dict[str, Any]:
    packages = ("torch", *(name for name in _NEEDED[to] if name != "google.protobuf"))
    return {
        "format": to,
        "run": run.name,
        "weights": weights or run.evaluation.weights,
        "quantization": quantization,
        "directions": len(run.tasks),
        "tokenizer": run.tokenizer.fingerprint,
        "parity": parity,
        "versions": {"mnmt_scale": __version__, **{name: importlib.metadata.version(name) for name in packages}},
    }


def require_packages(to: str) -> None:
    """E801 naming the package that format ``to`` needs and that is not installed."""
    from importlib.util import find_spec

    for name in _NEEDED[to]:
        try:
            found = find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            what = f"{to} needs the package {name.removeprefix('google.')}"
            raise MnmtError("E801", what, remedy="pip install 'mnmt_scale[interchange]'")
