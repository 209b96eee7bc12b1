"""Which script text is written in, by the names of its letters in the Unicode database."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

UNSEGMENTED = frozenset(
    ("THAI", "LAO", "MYANMAR", "KHMER", "TIBETAN", "HAN", "HIRAGANA", "KATAKANA", "BALINESE", "JAVANESE", "TAI")
)
"""Scripts that do not put spaces between words (TAI: Tai Le, Tai Tham, Tai Viet)."""


@lru_cache(maxsize=1 << 16)
def script_of(character: str) -> str | None:
    """``"LATIN"``, ``"HAN"``, ...; None for what is no letter (digits, signs, spaces, combining marks)."""
    if unicodedata.category(character)[0] != "L":
        return None
    words = unicodedata.name(character, "UNKNOWN").split()
    name = words[1] if words[0] in ("NEW", "HALFWIDTH", "FULLWIDTH", "OLD") and len(words) > 1 else words[0]
    return {"CJK": "HAN", "MODIFIER": None, "IDEOGRAPHIC": "HAN"}.get(name, name)


def count_scripts(lines: Iterable[str]) -> Counter[str]:
    """Letters of each script in all lines together."""
    characters: Counter[str] = Counter()
    for line in lines:
        characters.update(line)
    counts: Counter[str] = Counter()
    for character, times in characters.items():
        if script := script_of(character):
            counts[script] += times
    return counts


def scripts_of(lines: Iterable[str]) -> dict[str, float]:
    """Share of each script in the letters of ``lines``; empty where there are no letters."""
    total = count_scripts(lines)
    letters = sum(total.values())
    return {script: n / letters for script, n in sorted(total.items())} if letters else {}


def main_script(text: str) -> str | None:
    """The script of most letters, the first by name of equals; None without letters."""
    counts = count_scripts([text])
    return min(counts, key=lambda s: (-counts[s], s)) if counts else None
