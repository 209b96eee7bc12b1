"""Which weightings of torchjd need nothing but a Gram matrix, what arguments they take, and why the others are left out.

Kept apart from torchjd so that settings can be read, and a typing error named, where it is not installed. Made from
torchjd 0.18.0; ``docs/rivals.md`` has the same as a table with the papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["number", "count", "vector", "mode", "name", "table"]
"""Of an argument: a number; a whole number >= 0; one number for each task of the training, in their order; torchjd's
``scale_mode``; another weighting; a table of arguments for that one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A weighting that can be used.

    Attributes:
        arguments: name -> kind of what may be set; all else stays as torchjd has it.
        defaults: for arguments that torchjd wants but gives no value for.
        state: what it remembers from call to call: numbers per task, per pair of tasks, or nothing.
    """

    arguments: Mapping[str, Kind] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    state: Literal["none", "task", "pair"] = "none"


_PROJECTION: dict[str, Kind] = {"pref_vector": "vector", "norm_eps": "number", "reg_eps": "number"}

WEIGHTINGS: dict[str, Entry] = {
    "UPGrad": Entry(_PROJECTION),
    "DualProj": Entry(_PROJECTION),
    "MGDA": Entry({"epsilon": "number", "max_iters": "count"}),
    "PCGrad": Entry(),
    "GradVac": Entry({"beta": "number", "eps": "number"}, state="pair"),
    "CAGrad": Entry({"c": "number", "norm_eps": "number"}, {"c": 0.5}),
    "NashMTL": Entry({"max_norm": "number", "optim_niter": "count"}, state="task"),
    "AlignedMTL": Entry({"pref_vector": "vector", "scale_mode": "mode"}),
    "IMTLG": Entry(),
    "FairGrad": Entry({"alpha": "number", "max_iters": "count"}, {"alpha": 2.0}),
    "ConFIG": Entry({"pref_vector": "vector"}),
    "Krum": Entry({"n_byzantine": "count", "n_selected": "count"}, {"n_byzantine": 0}),
    "CRMOGM": Entry({"weighting": "name", "weighting_arguments": "table", "alpha": "number"}, {"weighting": "MGDA"}, "task"),
    "Mean": Entry(),
    "Sum": Entry(),
    "Random": Entry(),
    "Constant": Entry({"weights": "vector"}),
}

_TWO_BATCHES = "it needs inner products between the gradients of two independent batches, and a step has one"

REFUSED: dict[str, str] = {
    "PCD": "it is not symmetric: it follows one primary task, and the tasks of a batch change from step to step",
    "ExcessMTL": "it sums the squares of every gradient element of every task, which a Gram matrix does not hold",
    "MoDo": _TWO_BATCHES,
    "SDMGrad": _TWO_BATCHES,
    "GradDrop": "it decides element by element of the gradients, which a Gram matrix does not hold",
    "TrimmedMean": "it sorts element by element of the gradients, which a Gram matrix does not hold",
}


def fold(name: str) -> str:
    """How names are compared: ``IMTL-G``, ``imtl_g`` and ``IMTLGWeighting`` are one."""
    return "".join(c for c in name.casefold() if c not in "-_ ").removesuffix("weighting")


def takes(kind: Kind, value: Any) -> bool:
    """Whether a value from the settings is of that kind; ranges are torchjd's to judge."""
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "count":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind == "vector":
        return isinstance(value, list) and bool(value) and all(takes("number", v) for v in value)
    if kind == "table":
        return isinstance(value, dict)
    return isinstance(value, str)
