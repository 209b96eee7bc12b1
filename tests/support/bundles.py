"""A bundle of untrained cluster models over the store of ``small_run.prepared_run``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import tomli_w

from mnmt_scale.flow import Grouping
from mnmt_scale.groups import write_groups
from tests.support.small_run import prepared_run

CLUSTERS = (("de-en", "it-en"), ("fr-en",), ("en-de",))
HELPERS = (("fr-en",), (), ())
"""it-en has no test set."""


def make_bundle(directory: Path, name: str = "ftac/seed-1", *, clusters=CLUSTERS, helpers=HELPERS, method="ftac") -> Path:
    """``directory/name`` with groups.json and a run of random weights a cluster, all different, and all other than those of
    another bundle; ``directory`` has corpus/ and store/."""
    bundle = directory / name
    bundle.mkdir(parents=True)
    for k, (cluster, others) in enumerate(zip(clusters, helpers, strict=True)):
        run = prepared_run(directory, f"{name}/cluster-{k}", seed=10 * len(clusters) + k)
        more = {"ftac": {"tasks": list(cluster), "cluster": k}} if method == "ftac" else {}
        change_settings(run, data={"tasks": sorted([*cluster, *others])}, method={"name": method, **more})
    write_groups(bundle / "groups.json", Grouping(method, tuple(clusters), tuple(helpers)), {"source": "made up"})
    return bundle


def make_workflow(directory: Path, serve: str | None = "ftac/seed-1") -> Path:
    """``workflow.json`` into ``directory``, as ``mnmt workflow ftac`` has it."""
    table = {"version": 1, "kind": "workflow", "workflow": "ftac", "name": "w", **({"serve": serve} if serve else {})}
    (directory / "workflow.json").write_text(json.dumps(table))
    return directory


def change_settings(run: Path, **sections: dict) -> None:
    """Puts settings into the ``config.toml`` of a run, section by section."""
    table = tomllib.loads((run / "config.toml").read_text())
    for section, changes in sections.items():
        table[section] = {**table.get(section, {}), **changes}
    (run / "config.toml").write_text(tomli_w.dumps(table))
