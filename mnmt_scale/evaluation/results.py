"""The files of an evaluation: ``eval/STEM.json`` and, side by side for metrics outside this system,
``eval/STEM.DIRECTION.{src,ref,hyp}``. STEM is the split, or ``NAME.SPLIT`` for the test sets of another corpus."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bundle import bundle_directory, is_bundle
from ..errors import MnmtError
from .config import EvaluationConfig
from .score import compare
from .testsets import TestSet


@dataclass(frozen=True, slots=True)
class Files:
    """Where one evaluation's files lie."""

    folder: Path
    stem: str

    @classmethod
    def of(cls, path: Path, stem: str) -> Files:
        """Those of a run, of a bundle, or of the bundle that a workflow directory stands for."""
        return cls((bundle_directory(path) if is_bundle(path) else path) / "eval", stem)

    @property
    def table(self) -> Path:
        return self.folder / f"{self.stem}.json"

    def lines(self, direction: str, kind: str) -> Path:
        """``kind``: src, ref or hyp."""
        return self.folder / f"{self.stem}.{direction}.{kind}"

    def make_folder(self) -> None:
        """E401 when it cannot be made."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise MnmtError("E401", f"evaluation cannot be written: {error.strerror}", where=str(self.folder)) from None

    def write_lines(self, direction: str, test: TestSet, hypotheses: list[str]) -> None:
        """Source, reference and translation of a direction."""
        for kind, lines in (("src", test.source), ("ref", test.reference), ("hyp", hypotheses)):
            _write(self.lines(direction, kind), "".join(line + "\n" for line in lines))

    def write_table(self, result: dict[str, Any]) -> None:
        """What all directions gave."""
        _write(self.table, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def compare_with(
    baseline: Files, direction: str, target: str, test: TestSet, hypotheses: list[str], config: EvaluationConfig
) -> list[dict[str, Any]] | None:
    """Paired bootstrap against another evaluation's translations; None where it has none of this direction.

    Raises:
        MnmtError: E603 when that was made on other lines.
    """
    if not baseline.lines(direction, "hyp").is_file():
        return None
    others, *lines = (read_lines(baseline.lines(direction, kind)) for kind in ("hyp", "ref", "src"))
    if lines != [test.reference, test.source]:
        where = str(baseline.lines(direction, "ref"))
        raise MnmtError("E603", f"the runs were evaluated on different lines of {direction}", where=where)
    return [asdict(d) for d in compare(others, hypotheses, test.reference, target, config)]


def read_lines(path: Path) -> list[str]:
    """Lines that an evaluation wrote; E603 when they cannot be read."""
    try:
        return path.read_bytes().decode("utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise MnmtError("E603", f"an evaluation's lines cannot be read: {error}", where=str(path)) from None


def _write(path: Path, text: str) -> None:
    """The whole file or none of it."""
    aside = path.with_name(path.name + ".partial")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(aside, path)
    except OSError as error:
        raise MnmtError("E401", f"evaluation cannot be written: {error.strerror}", where=str(path)) from None
