"""Settings of a training whose directions come from a groups file: what they are for one of its clusters."""

from __future__ import annotations

from ..data.config import SamplingConfig
from ..data.store import TokenStore
from ..errors import MnmtError, nearest
from ..evaluation.resources import check_classes, covered_classes
from ..flow import Grouping
from ..groups import GroupsFile, read_groups
from ..settings import user_path
from ..tasks import directions_of
from .config import RunConfig


def of_cluster(config: RunConfig, store: TokenStore) -> tuple[RunConfig, GroupsFile | None]:
    """The settings with the directions of the chosen cluster in place of the groups file, and that file; as they are, and
    None, where ``method.ftac.groups`` names none.

    ``data.tasks`` becomes g_k, sorted, and ``method.ftac.tasks`` c_k. One settings file does for all clusters: what it says
    about directions of others (``sampling.weights``, ``evaluation.classes``) is left out, and ``sampling.tasks_per_batch``
    is all where the cluster has no more.

    Raises:
        MnmtError: E606 no groups file, E105 it names a direction without a corpus, or one that ``data.tasks`` lacks where
            that is given, E104 it has no such cluster.
    """
    settings = config.method.ftac
    if config.method.name != "ftac" or settings.groups is None:
        return config, None
    known = config.data.tasks or [f"{s}-{t}" for s, t in directions_of(store.pairs("train"), "many-to-many")]
    groups = read_groups(user_path(settings.groups), known)
    grouping = groups.grouping
    if settings.cluster >= len(grouping.clusters):
        what = f"method.ftac.cluster = {settings.cluster}, but there are {len(grouping.clusters)} clusters, numbered from 0"
        raise MnmtError("E104", what, where=str(groups.path))
    served = sorted(grouping.clusters[settings.cluster])
    tasks = sorted((*served, *grouping.helpers[settings.cluster]))
    check_classes(grouping.tasks, config.data.pivot, config.evaluation)
    changes = {
        "data": config.data.model_copy(update={"tasks": tasks}),
        "sampling": _sampling(config.sampling, grouping, tasks),
        "evaluation": config.evaluation.model_copy(update={"classes": covered_classes(tasks, config.evaluation)}),
        "method": config.method.model_copy(update={"ftac": settings.model_copy(update={"groups": None, "tasks": served})}),
    }
    return config.model_copy(update=changes), groups


def check_served(config: RunConfig, names: list[str]) -> None:
    """Refuses a training of method ``ftac`` that does not say what it is for.

    Raises:
        MnmtError: E104 neither ``method.ftac.groups`` nor ``method.ftac.tasks``, E105 the latter names a direction that is
            not among ``names``, those trained, E208 one twice.
    """
    if config.method.name != "ftac":
        return
    served = config.method.ftac.tasks
    if served is None:
        remedy = "set method.ftac.groups (mnmt cluster writes it) and method.ftac.cluster, or method.ftac.tasks"
        raise MnmtError("E104", "which directions is the model for?", where="method 'ftac'", remedy=remedy)
    for name in served:
        if name not in names:
            what = f"{name!r} is not among the directions trained"
            raise MnmtError("E105", what, where="method.ftac.tasks", remedy=nearest(name, names))
        if served.count(name) > 1:
            raise MnmtError("E208", f"direction {name} is given twice", where="method.ftac.tasks")


def _sampling(sampling: SamplingConfig, grouping: Grouping, tasks: list[str]) -> SamplingConfig:
    """Without the weights of directions that this cluster does not have; unknown ones stay, to be refused."""
    if sampling.tasks_per_batch >= len(tasks):
        sampling = sampling.model_copy(update={"tasks_per_batch": 0})
    if sampling.weights is None:
        return sampling
    others = set(grouping.tasks) - set(tasks)
    kept = {name: weight for name, weight in sampling.weights.items() if name not in others}
    return sampling.model_copy(update={"weights": kept})
