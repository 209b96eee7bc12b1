"""What ``launchers/gpu_check.sh`` left in its directory, as one page (report.md) and one file (report.json).

Nothing has to be whole: a part that did not run, was stopped, or left half a file, is a line that says so. It imports neither
torch nor the settings, so that there is a report where the installation itself failed.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .table import JOURNAL, Row, describe_machine, figure, markdown, table_text
from .targets import TARGETS, UNKNOWN, Verdict, lost_ops, ours_failed, verdicts

TIMEOUT_CODES = (124, 137)
"""Exit codes of timeout(1): stopped, killed."""
REFERENCE = "-reference"
"""End of the name of a table's directory: a part once more with MNMT_KERNELS=reference, after kernels of ours failed."""
_TAIL_LINES = 12


@dataclass
class Table:
    """One benchmark's rows, and its text for people."""

    part: str
    name: str
    machine: dict[str, Any]
    rows: list[Row]
    text: str


@dataclass
class Found:
    """All that there is. ``parts`` as gpu_check.sh writes them; ``tests``: name -> outcome; ``alone``: the same of tests that
    failed and were run once more, each by itself; ``problems``: what could not be read."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    tests: dict[str, str] = field(default_factory=dict)
    alone: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def write_report(out: Path) -> dict[str, str]:
    """Write report.md and report.json into ``out``; gives their paths by suffix, and the text up to the tables as ``text``."""
    found = read(out)
    judged = verdicts(_rows_by_part(found), _absences(found, out))
    head = _head(found, judged, out)
    paths = {suffix: out / f"report.{suffix}" for suffix in ("json", "md")}
    paths["md"].write_text("\n\n".join([head, *(_table(t) for t in found.tables)]) + "\n", encoding="utf-8")
    document = {
        "machine": _machine(found),
        "parts": found.parts,
        "targets": [v.as_dict() for v in judged],
        "tests": {"outcomes": found.tests, "alone": found.alone},
        "problems": found.problems,
        "rows": [{"part": t.part, "table": t.name, **r} for t in found.tables for r in t.rows],
    }
    paths["json"].write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return {suffix: str(path) for suffix, path in paths.items()} | {"text": head}


def read(out: Path) -> Found:
    """Everything in ``out`` that can be read; what cannot is in ``problems``."""
    found = Found()
    parts = _json(out / "parts.json", found) if (out / "parts.json").is_file() else None
    found.parts = parts if isinstance(parts, list) else []
    names = [p["part"] for p in found.parts]
    folders = sorted((f for f in out.iterdir() if f.is_dir() and f.name != "logs"), key=lambda f: _place(f.name, names))
    for folder in folders:
        for place in (folder, *sorted(f for f in folder.iterdir() if f.is_dir())):
            found.tables += read_tables(place, str(place.relative_to(out)), found)
    begun = _outcomes(out / "tests" / "pytest.log", r"^()(tests\S*::.*\S) *$")
    ended = _outcomes(out / "tests" / "pytest.log", r"^\[gw\d+\] (PASSED|FAILED|ERROR|SKIPPED) (tests\S*::.*\S)")
    found.tests = dict.fromkeys(begun, "UNFINISHED") | ended
    found.alone = _outcomes(out / "tests" / "alone.txt", r"^(PASSED|FAILED) (.+)$")
    return found


def read_tables(folder: Path, name: str, found: Found) -> list[Table]:
    """Of the benchmarks that wrote into ``folder``; also of one that was killed before it could write its table."""
    part, tables = name.split("/")[0].removesuffix(REFERENCE), []
    for path in sorted(folder.glob("*.json")):
        document = _json(path, found)
        if isinstance(document, dict) and document.get("rows") and "machine" in document:
            text = _body(path.with_suffix(".md"), document["rows"])
            tables.append(Table(part, name, document["machine"], document["rows"], text))
    journal = folder / JOURNAL
    if journal.is_file():
        lines = journal.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        found.problems.append(f"{name}: killed before it wrote its table; the {len(rows)} rows that it had noted are here")
        tables += [Table(part, name, {}, rows, markdown(rows))] if rows else []
    return tables


def _json(path: Path, found: Found) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        found.problems.append(f"{path.parent.name}/{path.name} cannot be read: {problem}")
        return None


def _place(folder: str, parts: Sequence[str]) -> tuple[int, str]:
    name = folder.removesuffix(REFERENCE)
    return parts.index(name) if name in parts else len(parts), folder


def _body(path: Path, rows: Sequence[Row]) -> str:
    """What the benchmark itself shows, without its machine; every row where that file is missing."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return re.sub(r"\A.*?^Measured [^\n]*\n\n", "", text, flags=re.S | re.M).strip() or markdown(rows)


def _outcomes(path: Path, line: str) -> dict[str, str]:
    """Of tests, by name; an error (in a fixture) after a pass stands."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return {name: outcome for outcome, name in re.findall(line, text, flags=re.M)}


def _rows_by_part(found: Found) -> dict[str, list[Row]]:
    """Of our own kernels: what ran on the references meets no target."""
    rows: dict[str, list[Row]] = {}
    for t in found.tables:
        if REFERENCE not in t.name:
            rows.setdefault(t.part, []).extend(t.rows)
    return rows


def _absences(found: Found, out: Path) -> dict[str, str]:
    ran = {p["part"]: p for p in found.parts}
    reasons = {}
    for part in dict.fromkeys(target.part for target in TARGETS):
        if part not in ran:
            reasons[part] = f"part {part} did not run"
        elif ran[part]["rc"] != 0:
            reasons[part] = f"part {part} {_ending(ran[part])}"
            last = _tail(out, ran[part], 1)
            reasons[part] += f": {last[0][:160]}" if last else ""
    return reasons


def _ending(part: dict[str, Any]) -> str:
    if part["rc"] == 0:
        return "ended well"
    if part["rc"] in TIMEOUT_CODES:
        return f"was stopped after {part['seconds']} s" if part["seconds"] else "had no time left"
    return f"failed with exit code {part['rc']}"


def _tail(out: Path, part: dict[str, Any], lines: int) -> list[str]:
    """The last lines of a part's log; of one that was stopped those before the stack, which is as long as they are."""
    path, stopped = out / "logs" / f"{part['part']}.log", part["rc"] in TIMEOUT_CODES
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    text = re.sub(r"^(Current thread|  File) .*\n", "", text, flags=re.M) if stopped else text
    return [line.strip() for line in text.splitlines() if line.strip()][-lines:]


def _machine(found: Found) -> dict[str, Any] | None:
    return next((t.machine for t in found.tables if t.machine), None)


def _head(found: Found, judged: Sequence[Verdict], out: Path) -> str:
    parts = ["# GPU check"]
    if here := _machine(found):
        parts.append(describe_machine(here).strip())
    parts.append("## Targets\n\n" + _targets(judged))
    parts.append("## Parts\n\n" + _parts(found, out))
    if found.tests:
        parts.append("## Tests\n\n" + _tests(found))
    if found.problems:
        parts.append("## Not readable\n\n" + "\n".join(f"- {problem}" for problem in found.problems))
    return "\n\n".join(parts)


def _targets(judged: Sequence[Verdict]) -> str:
    lines = []
    for v in judged:
        bound = f"{'>=' if v.target.least else '<='} {figure(v.target.bound)} {v.target.unit}"
        seen = "" if v.verdict == UNKNOWN else figure(v.seen)
        lines.append([v.target.what, v.which, bound, seen, v.verdict, v.note])
    counts = Counter(v.verdict for v in judged)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return table_text(["target", "of", "bound", "seen", "verdict", "note"], lines) + f"\n\n{said}."


def _parts(found: Found, out: Path) -> str:
    if not found.parts:
        return "There is no list of parts: gpu_check.sh did not get so far."
    lines = [[p["part"], _ending(p), str(p["seconds"]), str(p["limit"])] for p in found.parts]
    text = table_text(["part", "how it ended", "seconds", "limit"], lines)
    for p in found.parts:
        last = _tail(out, p, _TAIL_LINES) if p["rc"] != 0 else []
        if last:
            text += f"\n\nThe end of logs/{p['part']}.log:\n\n" + "\n".join(f"    {line[:200]}" for line in last)
    return text


def _tests(found: Found) -> str:
    counts = Counter(found.tests.values())
    text = ", ".join(f"{count} {outcome.lower()}" for outcome, count in counts.items()) + "."
    bad = [name for name, outcome in found.tests.items() if outcome in ("FAILED", "ERROR", "UNFINISHED")]
    for name in bad:
        again = {"PASSED": "; passes by itself", "FAILED": "; by itself too"}.get(found.alone.get(name, ""), "")
        text += f"\n- {found.tests[name].lower()}: `{name}`{again}"
    return text.replace(".\n-", ".\n\n-", 1)


def _table(table: Table) -> str:
    heading = f"# {table.name}" + (" (MNMT_KERNELS=reference)" if REFERENCE in table.name else "")
    return f"{heading}\n\n{table.text}"


def rows_in(folder: Path) -> list[Row]:
    """All rows that a benchmark wrote there."""
    return [r for table in read_tables(folder, folder.name, Found()) for r in table.rows]


def main(verb: str, directory: Path) -> str:
    """What gpu_check.sh asks: ``report``; whether our kernels ``failed`` in a benchmark (yes or nothing); the ops whose
    figures an error of another one took away (``lost``)."""
    if verb == "failed":
        return "yes" if ours_failed(rows_in(directory)) else ""
    if verb == "lost":
        return " ".join(lost_ops(rows_in(directory)))
    report = write_report(directory)
    return f"{report['text']}\n\nwritten: {report['md']}, {report['json']}"


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2])))
