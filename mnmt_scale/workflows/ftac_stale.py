"""Takes away, before Snakemake begins, what says that something is done which is not, or is not what is asked for now.

Snakemake makes what is missing only where something that is wanted *and not there* needs it: beside a finished report it
would miss neither a model nor translations. So what hangs on something that is gone goes as well, down to the report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.store import is_store
from ..runlog import TRAINING_MARK
from ..settings import user_path
from .config import Workflow
from .ftac_plan import order
from .ftac_stages import FROM_FTAC, KIND_OF, number_of_clusters
from .plan import read_json

REPORT = "report.html"


def take_away(workflow: Workflow, out: Path) -> None:
    """Marks of OUT that do not hold: the store's, groups decided from what is gone, translations of models that are gone or
    made otherwise, the report."""
    config = workflow.config
    if not is_store(user_path(workflow.trainings["universal"].data.store)):
        (out / "marks" / "store").unlink(missing_ok=True)
    for seed in config.seeds:
        universal = out / "multilingual" / f"seed-{seed}" / "cluster-0" / TRAINING_MARK
        for system in order(config.systems):
            groups = out / system / f"seed-{seed}" / "groups.json"
            needed = [universal] if system not in KIND_OF else []
            needed += [out / "ftac" / f"seed-{seed}" / "groups.json"] if system in FROM_FTAC else []
            if not all(path.is_file() for path in needed):
                groups.unlink(missing_ok=True)
                for mark in groups.parent.glob(f"cluster-*/{TRAINING_MARK}"):  # of the same groups it is soon there again
                    mark.unlink()
            if system in config.systems:
                _of_bundle(workflow, groups.parent, out)


def _of_bundle(workflow: Workflow, bundle: Path, out: Path) -> None:
    config = workflow.config
    whole = _is_trained(bundle)
    for tests in (None, config.tests) if config.tests is not None else (None,):
        path = bundle / "eval" / f"{f'{tests.name}.' if tests else ''}{config.split}.json"
        found = read_json(path)
        if found is None or not whole or not _is_asked(found, workflow, bundle, tests and tests.path):
            path.unlink(missing_ok=True)
            (out / REPORT).unlink(missing_ok=True)


def _is_trained(bundle: Path) -> bool:
    if not (bundle / "groups.json").is_file():
        return False
    return all((bundle / f"cluster-{k}" / TRAINING_MARK).is_file() for k in range(number_of_clusters(bundle / "groups.json")))


def _is_asked(found: dict[str, Any], workflow: Workflow, bundle: Path, tests: str | None) -> bool:
    """Whether translations are of the lines asked for, decoded as the settings say and with the weights that they say."""
    kind = KIND_OF.get(bundle.parent.name, "clusters")
    evaluation = workflow.trainings[kind].evaluation
    asked = {
        "limit": workflow.config.limit,
        "only": None,
        "decoding": _decoding(evaluation.model_dump(mode="json")),
        "weights": evaluation.weights,
    }
    had = {**found, "decoding": _decoding(found["decoding"])} if isinstance(found.get("decoding"), dict) else found
    directory = (found.get("tests") or {}).get("directory", tests)
    return directory == tests and all(had.get(key, want) == want for key, want in asked.items())


def _decoding(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Without the resource classes, of which a model keeps those of its own directions; ``check_same`` has compared them."""
    return {key: value for key, value in evaluation.items() if key != "classes"}
