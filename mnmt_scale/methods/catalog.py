"""Methods by their name in the settings: a plain dict."""

from __future__ import annotations

from collections.abc import Callable

from .joint import Joint
from .spec import Method, MethodConfig

METHODS: dict[str, Callable[[MethodConfig], Method]] = {
    "joint": lambda config: Joint(),
}


def make_method(config: MethodConfig) -> Method:
    """The method that the settings name."""
    return METHODS[config.name](config)
