"""What the kernels and trainings are to reach on an H200, and whether the rows of a run say so.

A target is a row that is looked for in the tables, and a bound. Where several rows are meant (two numbers of tasks, two
dtypes) each gets a verdict; where one of several candidates is to be beaten, the worst figure counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .table import Row, row

MET, MISSED, UNKNOWN = "met", "missed", "not measured"
OPEN = "met by what was measured"
_ENGINE = "mnmt_scale engine"
_TEXT = "(real|constructed) text"
_VOCABULARY = {"T": 16384, "V": 64_000, "H": 512, "dtype": "bf16"}
_BASE = {"preset": "base", "vocabulary": 64_000, "batch_tokens": 32_768, "dtype": "bf16"}
_DEVICE_ERROR = re.compile(r"CUDA error|AcceleratorError|illegal (memory|instruction)|launch failure|misaligned address")
_LOGITS_MIB = 16384 * 64_000 * 2 / 2**20


@dataclass(frozen=True)
class Target:
    """One line of the list of targets.

    Attributes:
        what: for people.
        part: of ``launchers/gpu_check.sh`` that measures it; its tables are searched.
        bound: in ``unit``; ``least``: the figure must be no lower, else no higher.
        metric, case, candidate: regular expressions that the row's must match from the start; the candidate wholly.
        settings: that the row must have.
        by: keys of settings; rows that differ in them get verdicts of their own.
        rival: regular expression of the candidate that a ratio needs; says why there is none.
        all_of: regular expressions of metrics: without a figure of each the target may be missed, but not met.
        inverse: the figure is one over the row's value.
    """

    what: str
    part: str
    bound: float
    unit: str
    metric: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    least: bool = False
    case: str = ""
    candidate: str = "mnmt_scale"
    by: tuple[str, ...] = ()
    rival: str = ""
    all_of: tuple[str, ...] = ()
    inverse: bool = False


def _flat(op: str, cut: str, bound: float, by: tuple[str, ...], **settings: Any) -> Target:
    wanted = {"op": op, "d": 110_000_000, "cut": cut, **settings}
    return Target(f"{op}, d = 110M, {cut}", "kernels", bound, "% of copy", "share of peak", wanted, True, by=by)


def _cross_entropy(what: str, bound: float, unit: str, metric: str, **more: Any) -> Target:
    settings = {"op": "linear_cross_entropy", **_VOCABULARY}
    return Target(f"linear_cross_entropy, T = 16k, V = 64k: {what}", "kernels", bound, unit, metric, settings, **more)


def _distillation(what: str, bound: float, unit: str, metric: str, **more: Any) -> Target:
    settings = {"op": "linear_distillation", **_VOCABULARY}
    return Target(f"linear_distillation, same shape: {what}", "kernels", bound, unit, metric, settings, **more)


def _similarity(kind: str, what: str, bound: float, unit: str, metric: str, **more: Any) -> Target:
    settings = {"op": "fisher_similarity", "P": 100, "d": 110_000_000}
    name = f"fisher_similarity, 100 pairs x 110M: {what}"
    return Target(name, "kernels", bound, unit, metric, settings, case=f"(fisher_similarity, )?{kind}", **more)


# fmt: off
TARGETS: tuple[Target, ...] = (
    _flat("task_gram", "flat", 85, ("K", "dtype"), variant="plain"),
    _flat("task_gram", "300 fragments", 70, ("K", "dtype"), variant="plain"),
    _flat("fisher_accumulate", "flat", 85, ("dtype",)),
    _flat("fisher_accumulate", "300 fragments", 70, ("dtype",)),
    _cross_entropy("over Liger", 1.0, "x", "speed-up over Liger", least=True, rival="Liger.*"),
    _cross_entropy("over torch's own", 1.0, "x", "speed-up over torch linear", least=True, rival="torch linear.*"),
    _cross_entropy("no [T, V] tensor in memory", _LOGITS_MIB - 1, "MiB extra", "extra memory"),
    _distillation("rate", 50, "% of product", "share of peak", least=True, by=("C",)),
    _distillation("memory of C = 4 over C = 1", 1.02, "x", "extra memory of C = 4 over C = 1"),
    _similarity("resident", "resident", 250, "ms", "time"),
    _similarity(
        "streamed", "streamed, over the transfer alone", 1.3, "x", "speed-up over the transfer alone",
        inverse=True, rival="the transfer alone",
    ),
    Target(
        "training base, V = 64k, 32k tokens a step, bf16", "train-base", 400_000, "target tokens/s",
        "target tokens per second", _BASE, True, _TEXT, _ENGINE,
    ),
    Target(
        "training base, over the faster of M2M100 eager and compiled", "train-base", 1.5, "x", "speed over (?!JoeyNMT)",
        _BASE, True, _TEXT, _ENGINE, rival="(?!mnmt_scale|JoeyNMT|matrix products).*",
        all_of=("speed over Hugging Face M2M100,", "speed over Hugging Face M2M100 compiled,"),
    ),
    Target(
        "training m2m418", "train-presets", 35, "% MFU", "MFU", {"preset": "m2m418", "dtype": "bf16"}, True,
        _TEXT, _ENGINE,
    ),
    Target(
        "CATS, m = 1, over a plain step", "methods", 1.3, "x", "times a plain step", {"dtype": "bf16"},
        candidate="cats, (observed step, segmented|m = 1)", by=("K",),
    ),
    Target(
        "CATS, m = 10, over joint training", "methods", 1.03, "x", "training over joint", {"dtype": "bf16"},
        candidate="cats, m = 10", by=("K",),
    ),
    Target(
        "beam 5, base, 500 sentences", "decode", 3.0, "x", "speed over hf-generate", least=True, case=".*beam 5",
        by=("dtype",), rival="hf-generate.*",
    ),
)
# fmt: on


@dataclass(frozen=True)
class Verdict:
    """What became of a target. ``seen`` is None where it was not measured; then ``note`` says why."""

    target: Target
    which: str
    seen: float | None
    verdict: str
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        t = self.target
        return {
            "target": t.what, "which": self.which, "bound": t.bound, "direction": "at least" if t.least else "at most",
            "unit": t.unit, "seen": self.seen, "verdict": self.verdict, "note": self.note,
        }  # fmt: skip


def verdicts(
    rows_of: Mapping[str, Sequence[Row]], absent: Mapping[str, str], targets: Iterable[Target] = TARGETS
) -> list[Verdict]:
    """One or more for every target, in their order.

    Args:
        rows_of: part -> its rows; those measured on a CPU do not count, and those of a reference say so instead of a figure.
        absent: part -> why it has no rows.
    """
    found = []
    for target in targets:
        rows = [_of_kernels(target, r) for r in rows_of.get(target.part, ()) if r["settings"].get("device", "cuda") == "cuda"]
        found += judge(target, [*rows, *memory_ratios(rows)], absent.get(target.part, "there is no such row"))
    return found


def _of_kernels(target: Target, r: Row) -> Row:
    """The row; without its figure where a torch reference ran in place of a kernel of ours."""
    if r["settings"].get("runs") != "reference" or not re.fullmatch(target.candidate, r["candidate"]):
        return r
    return r | {"value": None, "settings": {"error": "ran on the torch reference", **r["settings"]}}


def judge(target: Target, rows: Sequence[Row], otherwise: str) -> list[Verdict]:
    """The verdicts of one target; ``otherwise``: why there is nothing, where no row says so."""
    here = [r for r in rows if _is_about(target, r)]
    groups: dict[str, list[Row]] = {}
    for r in here:
        ours = re.fullmatch(target.candidate, r["candidate"]) and re.match(target.metric, r["metric"])
        failed = r["value"] is None and _concerns(target, r["candidate"])
        if ours or failed:
            groups.setdefault(", ".join(f"{key} = {r['settings'].get(key, '?')}" for key in target.by), []).append(r)
    return [_verdict(target, which, group) for which, group in groups.items()] or [
        Verdict(target, "", None, UNKNOWN, otherwise)
    ]


def _is_about(target: Target, r: Row) -> bool:
    settings = r["settings"]
    return bool(re.match(target.case, r["case"])) and all(settings.get(k) == v for k, v in target.settings.items())


def _concerns(target: Target, candidate: str) -> bool:
    return bool(re.fullmatch(target.candidate, candidate) or (target.rival and re.fullmatch(target.rival, candidate)))


def _verdict(target: Target, which: str, group: Sequence[Row]) -> Verdict:
    errors = dict.fromkeys(f"{r['candidate']}: {r['settings'].get('error', 'failed')}" for r in group if r["value"] is None)
    measured = [r for r in group if r["value"] is not None and re.match(target.metric, r["metric"])]
    if not measured:
        return Verdict(target, which, None, UNKNOWN, "; ".join(errors))
    figures = {1 / r["value"] if target.inverse else r["value"]: r for r in measured}
    seen = min(figures) if target.least else max(figures)
    met = seen >= target.bound if target.least else seen <= target.bound
    notes = [figures[seen]["metric"]] if len(measured) > 1 else []
    notes += [figures[seen]["case"]] if target.case == _TEXT else []
    lacking = [m.rstrip(",") for m in target.all_of if not any(re.match(m, r["metric"]) for r in measured)]
    if met and lacking:
        notes = [*notes, *(f"no {metric}" for metric in lacking)]
    verdict = MISSED if not met else OPEN if lacking else MET
    return Verdict(target, which, seen, verdict, "; ".join([*notes, *errors]))


def memory_ratios(rows: Sequence[Row]) -> list[Row]:
    """``linear_distillation``: extra memory with four teachers over that with one, each shape and dtype."""
    found: dict[tuple, dict[int, Row]] = {}
    for r in rows:
        s = r["settings"]
        if s.get("op") == "linear_distillation" and r["metric"] == "extra memory" and r["candidate"] == "mnmt_scale":
            found.setdefault(tuple(s.get(key) for key in ("T", "V", "H", "dtype")), {})[s.get("C")] = r
    return [
        row("kernels", by[4]["case"], "mnmt_scale", "extra memory of C = 4 over C = 1", by[4]["value"] / by[1]["value"], "x",
            **by[4]["settings"])
        for by in found.values()
        if 1 in by and 4 in by and by[1]["value"] and by[4]["value"] is not None
    ]  # fmt: skip


def ours_failed(rows: Iterable[Row]) -> bool:
    """Whether a candidate of ours gave no figure for another reason than memory: what the references may still give."""
    return any(
        r["candidate"].startswith("mnmt_scale") and r["value"] is None and "out of memory" not in r["settings"].get("error", "")
        for r in rows
    )


def lost_ops(rows: Iterable[Row]) -> list[str]:
    """Ops of ``mnmt bench kernels`` with a row that failed by an error of the device. After an illegal access nothing runs any
    more in a process: the first of them is to blame, the others may be well."""
    errors = [(r["settings"].get("op"), r["settings"].get("error", "")) for r in rows if r["value"] is None]
    return list(dict.fromkeys(op for op, error in errors if op and op != "machine" and _DEVICE_ERROR.search(error)))
