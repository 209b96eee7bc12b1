"""Settings of gramian."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ...errors import MnmtError, nearest
from ...settings import Section
from .table import REFUSED, WEIGHTINGS, fold, takes

_WHERE = "method.gramian"


class GramianConfig(Section):
    """Any weighting of torchjd that needs only the Gram matrix of the tasks' gradients. Needs the extra ``gramian``."""

    weighting: str = "UPGrad"
    """Name of the aggregator in torchjd, in any case, with or without hyphens: UPGrad, DualProj, MGDA, PCGrad, GradVac,
    CAGrad, Nash-MTL, Aligned-MTL, IMTL-G, FairGrad, ConFIG, Krum, CR-MOGM, Mean, Sum, Random, Constant."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """For the weighting, by torchjd's names, such as ``{ c = 0.4 }`` for CAGrad. A vector (``pref_vector``, ``weights``)
    has one number for each task of the training. What is not given stays as torchjd has it; where torchjd has no value,
    ours are CAGrad ``c = 0.5``, FairGrad ``alpha = 2``, Krum ``n_byzantine = 0``, CR-MOGM ``weighting = "MGDA"``."""
    weights: Literal["current", "lagged"] = "current"
    """``current``: from this step's Gram, which costs a second forward and backward pass at every step (the Gram, then the
    weighted sum). ``lagged``: from the last Gram that was observed beside an update; another method, and tables call it
    so."""
    every: Annotated[int, Field(gt=0)] = 1
    """``lagged`` only: observe a Gram every this many steps. ``current`` needs one at every step."""
    max_failures: Annotated[int, Field(ge=0)] = 10
    """Steps in a row at which the weighting may find no solution (the plain mean of the tasks is used, or under
    ``lagged`` the weights before) until training stops with E506."""

    @field_validator("weighting")
    @classmethod
    def _named(cls, name: str) -> str:
        return canonical(name, f"{_WHERE}.weighting")

    @model_validator(mode="after")
    def _fits(self) -> GramianConfig:
        check_arguments(self.weighting, self.arguments, f"{_WHERE}.arguments")
        if self.weights == "current" and self.every != 1:
            raise ValueError("every = 1 is all that weights = 'current' can have; set weights = 'lagged'")
        return self


def canonical(name: str, where: str) -> str:
    """torchjd's spelling of a weighting.

    Raises:
        MnmtError: E102 for one that torchjd does not have (with the nearest) or that does not fit (with the reason).
    """
    for refused, reason in REFUSED.items():
        if fold(name) == fold(refused):
            raise MnmtError("E102", f"torchjd's {refused} cannot run here: {reason}", where=where)
    known = {fold(n): n for n in WEIGHTINGS}
    if fold(name) in known:
        return known[fold(name)]
    close = nearest(fold(name), known, "{}")
    remedy = f"did you mean '{known[close.strip(chr(39))]}'?" if close else f"one of {', '.join(WEIGHTINGS)}"
    raise MnmtError("E102", f"torchjd has no weighting '{name}'", where=where, remedy=remedy)


def check_arguments(weighting: str, arguments: dict[str, Any], where: str) -> None:
    """Names and kinds of the arguments of a weighting.

    Raises:
        MnmtError: E102 for an unknown one or one of the wrong kind.
    """
    kinds = WEIGHTINGS[weighting].arguments
    for name, value in arguments.items():
        if name not in kinds:
            known = f"it takes {', '.join(kinds)}" if kinds else "it takes none"
            raise MnmtError("E102", f"{weighting} has no argument '{name}'", where=where, remedy=nearest(name, kinds) or known)
        if not takes(kinds[name], value):
            raise MnmtError("E102", f"{weighting}'s {name} = {value!r} is not a {kinds[name]}", where=where)
    if weighting == "Constant" and "weights" not in arguments:
        raise MnmtError("E102", "Constant has no weights", where=where, remedy="give weights, one number for each task")
    if weighting == "CRMOGM":
        inner = smoothed(arguments)
        if WEIGHTINGS[inner].state != "none":
            raise MnmtError("E102", f"CR-MOGM cannot smooth {inner}, which remembers on its own", where=f"{where}.weighting")
        check_arguments(inner, arguments.get("weighting_arguments", {}), f"{where}.weighting_arguments")


def smoothed(arguments: dict[str, Any]) -> str:
    """torchjd's name of the weighting that CR-MOGM smooths."""
    return canonical(arguments.get("weighting", WEIGHTINGS["CRMOGM"].defaults["weighting"]), f"{_WHERE}.arguments.weighting")


def label(config: GramianConfig) -> str:
    """The name that a table must show: the weighting, and whether its weights are those of an earlier step."""
    name = config.weighting
    if name == "CRMOGM":
        name += f"({smoothed(config.arguments)})"
    return f"{name} (lagged)" if config.weights == "lagged" else name
