"""Cases for a ``RankPool``: training by ``gramian``, on the Gram that the engine measures at every step."""

from __future__ import annotations

from typing import Any

from mnmt_scale.data.packing import only
from mnmt_scale.dist import World
from mnmt_scale.engine.config import TaskGradientsConfig
from mnmt_scale.engine.task_grads import TaskGradients
from mnmt_scale.engine.zero import seed_step
from mnmt_scale.methods.gramian.config import GramianConfig
from mnmt_scale.methods.gramian.method import Gramian
from mnmt_scale.methods.spec import Facts
from mnmt_scale.model.groups import parameter_group
from mnmt_scale.settings import validate

from .engine_cases import make_engine
from .tiny_training import TASKS, planned

SEED = 3


def train(
    world: World, settings: dict[str, Any], method: dict[str, Any], steps: int, how: dict[str, Any] | None = None
) -> dict:
    """Trains the tiny model; after each step the weights of the tasks and, from rank 0, those of the model."""
    engine = make_engine(world, settings)
    measuring = validate(TaskGradientsConfig, how or {}, "test")
    gradients = TaskGradients(engine, measuring, seed=SEED, only=only, group_of=parameter_group)
    facts = Facts(TASKS.names, (1 / 3, 1 / 3, 1 / 3), len(TASKS), SEED)
    weigher = Gramian(validate(GramianConfig, method, "test"), facts)
    rows, weights = [], [engine.weights()]
    for step in range(steps):
        (batch,) = planned(step, world.size, 1)[world.rank]
        assert weigher.wants(step).gram == "first"
        scales = weigher.weigh(gradients.measure([batch]), batch)
        seed_step(SEED, step, 0, world.rank)
        engine.backward(engine.forward(batch, scales), last=True)
        engine.step()
        rows.append([weigher.log()["weights"][task] for task in batch.tasks])
        weights.append(engine.weights())
    engine.close()
    return {"rows": rows, "weights": weights, "route": gradients.route}
