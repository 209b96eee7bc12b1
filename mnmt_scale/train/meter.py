"""Means over a logging interval."""

from __future__ import annotations

import math
import time
from typing import Any

from ..flow import StepReport


class Meter:
    """Means over a logging interval; tokens per second are predicted target tokens, waiting for data included, validation
    and checkpoints not."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._rows: dict[int, list[float]] = {}
        self._last: StepReport | None = None

    def add(self, report: StepReport) -> None:
        self._last = report
        for task, loss, nll, tokens in zip(report.tasks, report.losses, report.nlls, report.tokens, strict=True):
            row = self._rows.setdefault(task, [0.0, 0.0, 0.0])
            if tokens and not report.skipped:
                row[0], row[1], row[2] = row[0] + loss * tokens, row[1] + nll * tokens, row[2] + tokens

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self._since += seconds

    def take(self, names: list[str]) -> dict[str, Any]:
        """The interval's means, and a fresh interval."""
        now = time.perf_counter()
        total = [sum(row[i] for row in self._rows.values()) for i in range(3)]
        tokens = max(total[2], 1.0)
        assert self._last is not None
        values = {
            "loss": total[0] / tokens,
            "nll": total[1] / tokens,
            "learning_rate": self._last.learning_rate,
            "grad_norm": json_float(self._last.grad_norm) or 0.0,
            "tokens_per_second": total[2] / max(now - self._since, 1e-9),
            "seconds": now - self._since,
            "tasks": {
                names[k]: {"loss": row[0] / row[2], "nll": row[1] / row[2], "tokens": int(row[2])}
                for k, row in sorted(self._rows.items())
                if row[2]
            },
        }
        self._since, self._rows = now, {}
        return values


def json_float(value: float) -> float | None:
    """None for what JSON cannot hold."""
    return value if math.isfinite(value) else None
