"""A token store of three small pairs and the settings of a training on it that takes a second."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from mnmt_scale.data.build import prepare
from tests.support.corpora import settings_for, write_tree

_TRAINING = """
name = "tiny"
[data]
store = "{store}"
max_tokens = 48
[batch]
batch_tokens = 256
[model]
encoder_layers = 1
decoder_layers = 1
d_model = 16
d_ffn = 32
heads = 2
dropout = 0.1
max_positions = 64
[engine]
dtype = "fp32"
ema_decay = 0.9
clip_norm = 1.0
schedule = {{ warmup_steps = 3 }}
checkpoint = {{ every_steps = 3 }}
deepspeed = {{ zero_optimization = {{ stage3_param_persistence_threshold = 0 }} }}
[train]
max_steps = 6
log_steps = 1
validate_steps = 6
"""


def make_store(directory: Path) -> Path:
    """Writes corpora, prepares them; returns the settings file of a training."""
    tree = write_tree(directory / "tree", {"de-en": 120, "en-fr": 60, "en-ru": 20})
    prepare(settings_for(tree, directory / "store"), log=lambda text: None)
    config = directory / "tiny.toml"
    config.write_text(_TRAINING.format(store=directory / "store"))
    return config


def mnmt(arguments: list[str], output: str = os.devnull) -> None:
    """The command line in this process, as ``python -m mnmt_scale`` would run it; its standard output into a file."""
    from mnmt_scale.cli.main import main

    sys.argv = ["mnmt", *arguments]
    with open(output, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        main()
