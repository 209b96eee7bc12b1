"""Cases around Hessians and probes that a ``RankPool`` runs, and the truth: one plain process over all ranks' sentences."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnmt_scale.data.packing import only
from mnmt_scale.dist import World
from mnmt_scale.engine.config import TaskGradientsConfig
from mnmt_scale.engine.state import collect
from mnmt_scale.engine.task_grads import TaskGradients
from mnmt_scale.engine.zero import ZeroEngine
from mnmt_scale.errors import MnmtError
from mnmt_scale.methods.cats.hessian import gradient_and_product
from mnmt_scale.methods.cats.probe import Sample, make_hessian, measure_curvature, measure_gradients, untouched
from mnmt_scale.methods.cats.probe_config import ProbeConfig
from mnmt_scale.model.groups import parameter_group

from .engine_cases import make_engine, make_model, run_steps
from .tiny_training import TASKS, planned

STEP = 50
QUICK = dict(lanczos_steps=4, hutchinson_samples=2)


def samples_of(world: World, slots: tuple[int, ...] = (0, 1)) -> list[Sample]:
    """A fixed step's sentences of some tasks, dealt over the ranks; rank 0 has none of them where there are several."""
    mine = planned(STEP, world.size, 1, "empty" if world.size > 1 else "even")[world.rank][0]
    return [Sample(TASKS[k], [only(mine, k)], mine.step_tokens[k]) for k in slots]


def gradients_of(engine: ZeroEngine) -> TaskGradients:
    return TaskGradients(engine, TaskGradientsConfig(), seed=1, only=only, group_of=parameter_group)


def product(
    world: World, settings: dict[str, Any], kind: str, steps: int = 2, relative_step: float = 5e-4, **model: Any
) -> dict[str, Any]:
    """Trains a little, then one Hessian-vector product and Lanczos for task 0; everything as full tensors."""
    engine = make_engine(world, settings, **model)
    run_steps(engine, world, 0, steps)
    weights = engine.weights()
    config = ProbeConfig(product=kind, difference_step=relative_step)
    try:
        hessian = make_hessian(engine, gradients_of(engine), config)
    except MnmtError as error:
        engine.close()
        return {"error": str(error)}
    sample = samples_of(world, (0,))[0]
    multiply = hessian.of(sample.batches, sample.tokens)
    vector = hessian.pieces.normal(5)
    found = {name: t.clone() for name, t in hessian.pieces.whole(multiply(vector)).items()}
    direction = {name: t.clone() for name, t in hessian.pieces.whole(vector).items()}
    fits = not getattr(hessian, "_apart", False)
    hessian.close()
    spectrum, _ = measure_curvature(engine, gradients_of(engine), [sample], config, lambda line: None)
    after = engine.weights()
    engine.close()
    return {
        "product": found,
        "direction": direction,
        "weights": weights,
        "same": all(torch.equal(weights[n], after[n]) for n in weights),
        "kind": hessian.kind,
        "fits": fits,
        "spectrum": {name: t.tolist() for name, t in spectrum.items()},
        "tokens": sample.tokens,
    }


def truth(weights: dict[str, Tensor], direction: dict[str, Tensor], ranks: int, **model: Any) -> dict[str, Tensor]:
    """The same product in this process, over the sentences of ``ranks`` ranks, in fp64."""
    plain = make_model(**model).double().eval()
    plain.load_state_dict({n: w.double() for n, w in weights.items()})
    batches = [only(rank[0], 0) for rank in planned(STEP, ranks, 1, "empty" if ranks > 1 else "even")]
    tokens = batches[0].step_tokens[0]
    used = [b for b in batches if b.num_sentences]
    return gradient_and_product(plain, used, tokens, {n: d.double() for n, d in direction.items()})


def training_with_probes(world: World, settings: dict[str, Any], probes: tuple[str, ...], **chosen: Any) -> dict[str, Any]:
    """Two steps, the probes, two steps; every optimizer tensor of this rank, and the generators after the probes. Dropout is
    on, and a last draw without a seed of its own shows whether the generators moved."""
    engine = make_engine(world, {**settings, "ema_decay": 0.9}, dropout=0.1)
    run_steps(engine, world, 0, 2)
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    config = ProbeConfig(**QUICK, **chosen)
    measured = {}
    for kind in probes:
        with untouched(engine):
            samples = samples_of(world)
            if kind == "gradients":
                groups = measure_gradients(gradients_of(engine), samples, config, lambda line: None)
                measured[kind] = {name: gram.tolist() for name, gram in groups.items()}
            else:
                found, used = measure_curvature(engine, gradients_of(engine), samples, config, lambda line: None)
                measured[kind] = {name: t.tolist() for name, t in found.items()} | {"product": used}
    drawn = (torch.randn(3).tolist(), np.random.rand(3).tolist(), random.random(), engine.module.training)
    mode = all(m.training for m in engine.module.modules())
    run_steps(engine, world, 2, 4)
    shard = {k: t.clone() for k, t in collect(engine).shard.items()}
    weights = engine.weights()
    engine.close()
    return {"shard": shard, "weights": weights, "drawn": drawn, "training": mode, "measured": measured}


def nowhere_finite(world: World, settings: dict[str, Any], kind: str) -> dict[str, Any]:
    """Curvature where a weight is infinite on all ranks: nan, not an endless search, and the same on all."""
    engine = make_engine(world, settings)
    with torch.no_grad():
        for _, view in engine.shards.views(engine.shards.masters):
            view.fill_(float("inf"))
    engine.shards.refresh()
    found, _ = measure_curvature(
        engine, gradients_of(engine), samples_of(world), ProbeConfig(product=kind, **QUICK), lambda line: None
    )
    engine.close()
    return {name: t.tolist() for name, t in found.items()}
