"""Methods by their name in the settings: a plain dict."""

from __future__ import annotations

from collections.abc import Callable

from .affinity.ftac import Ftac
from .affinity.method import Affinity
from .cats.method import Cats
from .chi_ibr.method import ChiIbr
from .gradnorm.method import GradNorm
from .gramian.method import Gramian
from .joint import Joint
from .multidds.method import MultiDds
from .spec import Facts, Method, MethodConfig

METHODS: dict[str, Callable[[MethodConfig, Facts], Method]] = {
    "joint": lambda config, facts: Joint(),
    "cats": lambda config, facts: Cats(config.cats, facts),
    "gradnorm": lambda config, facts: GradNorm(config.gradnorm, facts),
    "gramian": lambda config, facts: Gramian(config.gramian, facts),
    "multidds": lambda config, facts: MultiDds(config.multidds, facts),
    "chi_ibr": lambda config, facts: ChiIbr(config.chi_ibr, facts),
    "ftac": lambda config, facts: Ftac(config.ftac, facts),
    "affinity": lambda config, facts: Affinity(config.affinity, facts),
}


def make_method(config: MethodConfig, facts: Facts) -> Method:
    """The method that the settings name."""
    return METHODS[config.name](config, facts)
