"""Small contests of ``mnmt bench train``: two sets of sentences, a model of one layer."""

import torch

from mnmt_scale.bench.timing import Clock
from mnmt_scale.bench.train_cases import Contest, TextCase
from mnmt_scale.bench.train_data import (
    equal_batches,
)
from mnmt_scale.flow import IGNORE
from mnmt_scale.model.config import ModelConfig
from tests.support.batches import batch_of, random_lengths

V, BUDGET = 60, 48
SMALL = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=16, d_ffn=32, heads=2)
CPU = torch.device("cpu")
OURS, RIVAL = "mnmt_scale model + torch Adam", "Hugging Face M2M100"
SPEED = "target tokens per second"


def text():
    return [batch_of(random_lengths(9, tasks=2, seed=i), tasks=2, vocabulary=V, seed=i) for i in range(3)]


def cases():
    return TextCase("real text", text()), TextCase("equal lengths", equal_batches(V, BUDGET, 12, 1), unpadded=True)


def contest(tmp_path, who=("model", "huggingface"), *, joeynmt=None, dtype="fp32", rounds=2, **more):
    clock = Clock(CPU, flush=False)
    return Contest(SMALL, V, dtype, clock, BUDGET, rounds, who, joeynmt, tmp_path, lambda text: None, **more)


def by_name(rows):
    found = {(r["case"], r["candidate"], r["metric"]): r for r in rows}
    assert len(found) == len(rows), "a row stands twice"
    return found


def as_set(sentences):
    return sorted((tuple(s.tolist()), tuple(t.tolist())) for s, t, *_ in sentences)


def unpad(batches):
    for b in batches:
        for ids, mask, labels in zip(b.inputs["input_ids"], b.inputs["attention_mask"], b.inputs["labels"], strict=True):
            yield ids[mask.bool()], labels[labels != IGNORE]
