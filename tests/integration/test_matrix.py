"""What can be combined, as a table: each row trains a few steps from the settings alone."""

import json
import math

import pytest

from mnmt_scale.train.train import train
from tests.support.toy import load

EVERY_STEP = "method.cats.schedule=[{from_step=0,every=1}]"
ROWS = [
    # method, stage, dtype, further settings
    ("joint", 1, "fp32", []),
    ("joint", 2, "fp32", ["data.directions=one-to-many"]),
    ("joint", 3, "fp32", ["data.directions=many-to-many", "sampling.tasks_per_batch=2"]),
    ("joint", 1, "bf16", ["batch.accumulation=2"]),
    ("joint", 2, "bf16", ["model.norm=post", "sampling.within=equal"]),
    ("joint", 3, "bf16", ["model.activation_checkpointing=true", "engine.ema_decay=0.9"]),
    ("joint", 1, "fp32", ["model.norm_affine=false", "sampling.kind=uniform", "sampling.unit=sentences"]),
    ("joint", 1, "fp32", ["model.attention=packed", "model.activation=gelu"]),
    ("joint", 2, "fp32", ["engine.optimizer.name=sgd", "engine.optimizer.momentum=0.9", "engine.schedule.name=cosine"]),
    ("joint", 3, "fp32", ["engine.optimizer.name=adamw", "engine.optimizer.weight_decay=0.01", "batch.accumulation=3"]),
    ("cats", 3, "fp32", [EVERY_STEP, "batch.accumulation=2", "sampling.tasks_per_batch=2"]),
    ("cats", 1, "bf16", [EVERY_STEP, "model.activation_checkpointing=true", "engine.task_gradients.preconditioner=adam"]),
    ("cats", 2, "fp32", [EVERY_STEP, "engine.task_gradients.route=per_task", "model.norm=post", "data.directions=one-to-many"]),
    ("gradnorm", 3, "bf16", ["engine.ema_decay=0.9"]),
    ("gramian", 2, "fp32", ["method.gramian.weighting=MGDA", "batch.accumulation=2"]),
    ("gramian", 3, "fp32", ["method.gramian.weights=lagged", "model.norm_affine=false"]),
    ("multidds", 3, "fp32", ["method.multidds.every_steps=3"]),
    ("chi_ibr", 2, "bf16", ["method.chi_ibr.every_steps=3", "method.chi_ibr.warmup_steps=3", "sampling.within=equal"]),
    ("ftac", 2, "bf16", ['method.ftac.tasks=["de-en"]', "method.ftac.epoch_sentences=20", "sampling.tasks_per_batch=2"]),
    ("affinity", 3, "bf16", ["method.affinity.estimate_every=2", "batch.accumulation=2", "engine.ema_decay=0.9"]),
    ("affinity", 2, "fp32", ["method.affinity.affected=1", "method.affinity.change=ratio", "sampling.tasks_per_batch=2"]),
    ("joint", 3, "fp32", ["probe.gradients_every=8", "probe.curvature_every=8", "probe.sentences=4", "probe.lanczos_steps=4"]),
]


@pytest.mark.parametrize(
    ("method", "stage", "dtype", "more"), ROWS, ids=lambda x: str(x) if not isinstance(x, list) else "+".join(x)
)
def test_row_of_the_matrix_trains(toy, tmp_path, method, stage, dtype, more):
    overrides = [f"method.name={method}", f"engine.zero_stage={stage}", f"engine.dtype={dtype}", *more]
    result = train(load(toy, *overrides, "train.log_steps=1"), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert result.steps == 8
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
