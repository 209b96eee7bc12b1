"""A small prepared corpus of three unequal pairs, settings that train on it in seconds, and ``mnmt`` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mnmt_scale import settings
from mnmt_scale.data.build import prepare
from mnmt_scale.train.config import RunConfig
from tests.support.corpora import parallel, write_pair

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = """
name = "toy"
[data]
store = "{root}/store"
[[data.corpora]]
path = "{root}/text"
[data.tokenizer]
vocabulary_size = 340
[model]
encoder_layers = 1
decoder_layers = 1
d_model = 16
d_ffn = 32
heads = 2
[batch]
batch_tokens = 300
[engine]
clip_norm = 1.0
[engine.optimizer]
learning_rate = 0.01
[engine.schedule]
warmup_steps = 4
[engine.checkpoint]
every_steps = 4
keep_last = 3
[train]
max_steps = 8
log_steps = 2
validate_steps = 4
validate_sentences = 12
"""


def make_toy(root: Path) -> Path:
    """``root`` with text/, store/ and toy.toml; ``en-no`` has no dev set."""
    for seed, (pair, lines) in enumerate({"af-en": 120, "de-en": 40, "en-no": 20}.items()):
        held = {} if pair == "en-no" else {"dev": parallel(12, seed + 10)}
        write_pair(root / "text", pair, train=parallel(lines, seed), **held, test=parallel(9, seed + 20))
    (root / "toy.toml").write_text(SETTINGS.format(root=root), encoding="utf-8")
    prepare(load(root).data, log=lambda line: None)
    return root


def load(root: Path, *overrides: str) -> RunConfig:
    """The toy settings with overrides."""
    return settings.load(RunConfig, root / "toy.toml", overrides)


def outside_environment(**more: str) -> dict[str, str]:
    """The environment without what joining a process group in this process has put there."""
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {**{name: value for name, value in os.environ.items() if name not in own}, **more}


def mnmt(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """``mnmt`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mnmt_scale", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=ROOT,
        env=outside_environment(**environment),
    )
