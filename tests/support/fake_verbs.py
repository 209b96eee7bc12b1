"""``mnmt`` verbs that only write what a workflow waits for, for the processes that its stages start.

``install`` puts a ``sitecustomize`` on their path: a process that was started as ``python -m mnmt_scale VERB ...`` runs the
fake instead, notes its words in a file, and fails where it is told to.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

SITE = """
import json, os, sys
words = sys.orig_argv
if words[1:3] == ["-m", "mnmt_scale"]:
    sys.path.insert(0, {root!r})
    namespace = {{"__name__": "fake"}}
    with open({source!r}) as file:
        exec(compile(file.read(), {source!r}, "exec"), namespace)
    os._exit(namespace["fake"](words[3:], {folder!r}))
"""


def install(folder: Path, monkeypatch) -> Path:
    """Makes the verbs of later processes fakes; the file in which their words will stand, a JSON list a line. ``folder`` may
    hold ``fail``: words, any of which makes a verb fail whose command line holds it."""
    folder.mkdir()
    source = str(Path(__file__).resolve())
    text = SITE.format(root=str(Path(__file__).resolve().parents[2]), source=source, folder=str(folder))
    (folder / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "calls"


def calls_of(path: Path) -> list[list[str]]:
    """What the fakes were called with, in order; the file is emptied."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.write_text("")
    return found


def fake(words: list[str], folder: str) -> int:
    """Runs one verb: the exit code."""
    with open(Path(folder) / "calls", "a") as file:
        file.write(json.dumps(words) + "\n")
    told = Path(folder) / "fail"
    if told.exists() and any(word in " ".join(words) for word in told.read_text().split()):
        print("MNMT-E501: loss is not finite")
        return 2
    option = dict(itertools.pairwise(words))
    if words[0] == "train":
        run = Path(option["--run-dir"])
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.toml").write_text("")
        (run / "training.json").write_text('{"stopped": "steps"}')
    elif words[0] == "cluster":
        names = ["en-de", "en-fr", "en-it"]
        clusters, helpers = {"lec": ([names], [[]])}.get(words[1], ([names[:2], names[2:]], [[], names[:1]]))
        table = {"version": 1, "kind": "groups", "method": words[1], "clusters": clusters, "helpers": helpers, "about": {}}
        Path(option["--out"]).write_text(json.dumps(table))
    elif words[0] == "evaluate":
        name = f"{option['--tests-name']}." if "--tests" in option else ""
        (Path(words[1]) / "eval").mkdir(exist_ok=True)
        table = {"limit": int(option["--limit"]) if "--limit" in option else None, "only": None}
        table |= {"tests": {"directory": option["--tests"]}} if "--tests" in option else {}
        (Path(words[1]) / "eval" / f"{name}{option['--split']}.json").write_text(json.dumps(table))
    elif words[0] == "report":
        Path(option["--out"]).write_text("page")
    return 0
