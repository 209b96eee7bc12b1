"""Constructed languages: families with a known tree, whose sentences are translations of each other by meaning.

``generate`` writes a corpus that the OPUS-100 reader takes; ``construct`` gives the speakers themselves.
"""

from .config import SyntheticConfig
from .text import generate
from .truth import Truth
from .world import World, construct

__all__ = ["SyntheticConfig", "Truth", "World", "construct", "generate"]
