"""A profiler window: a few steps of a training, as a Chrome trace and a table of operators."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ..errors import MnmtError


def parse_window(text: str | None) -> tuple[int, int] | None:
    """``"100-105"`` -> (100, 105), ``"100"`` -> (100, 100); steps count from 1. E102 for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if not match:
        raise MnmtError(
            "E102", f"{text!r} is not a window of steps", where="--profile", remedy="write FIRST-LAST, as in 100-105"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last:
        raise MnmtError("E102", f"the window {text!r} ends before it begins", where="--profile")
    return first, last


class ProfileWindow:
    """Asked before and after every step; on only within the window. Writes RUN/profile/steps-A-B.rank-R.{json,txt}."""

    def __init__(self, window: tuple[int, int] | None, run: Path, rank: int) -> None:
        self.window, self.directory, self.rank = window, run / "profile", rank
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """``step`` is about to be done, counted from 1."""
        if self.window is None or self._profile is not None or not self.window[0] <= step <= self.window[1]:
            return
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self._profile = profile(activities=activities)
        self._profile.__enter__()

    def after(self, step: int) -> None:
        """``step`` is done."""
        if self.window is not None and step == self.window[1]:
            self.finish()

    def finish(self) -> None:
        """Write what was profiled; also when training ends within the window."""
        if self._profile is None or self.window is None:
            return
        self._profile.__exit__(None, None, None)
        self.directory.mkdir(exist_ok=True)
        stem = self.directory / f"steps-{self.window[0]}-{self.window[1]}.rank-{self.rank}"
        self._profile.export_chrome_trace(f"{stem}.json")
        key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self._profile.key_averages().table(sort_by=key, row_limit=40)
        stem.with_suffix(f"{stem.suffix}.txt").write_text(table + "\n", encoding="utf-8")
        self._profile = None
