"""Imported once by the fork server of ``ranks``: what building the first DeepSpeed engine would import for seconds."""

import importlib
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

for _name in (
    "torch._dynamo",  # any torch optimizer imports it
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "mnmt_scale.engine.checkpoint",
    "mnmt_scale.engine.zero",
    "mnmt_scale.model.transformer",
):
    importlib.import_module(_name)
