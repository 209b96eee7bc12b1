"""What the decoding benchmark decodes: random weights and sentences, or a trained run and its test set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..data.config import DataConfig
from ..data.packing import FRAME
from ..data.store import TokenStore
from ..errors import MnmtError
from ..evaluation.config import EvaluationConfig
from ..evaluation.decode import Special, decoding_batches, length_limit
from ..evaluation.testsets import find_test_set
from ..model.config import ModelConfig
from ..model.transformer import Transformer
from ..runs import OpenedRun, open_run
from ..settings import user_path
from ..tasks import Task, TaskSet


@dataclass(frozen=True)
class Case:
    """What is decoded: encoded sources ``[tag, w.., eos]`` of one direction and the limits of their outputs (tag counted).
    The opened model is in fp32 and on the CPU: candidates copy it to where they decode."""

    name: str
    opened: OpenedRun
    sources: list[list[int]]
    limits: list[int]
    task: Task
    natural_end: bool

    @property
    def tag(self) -> int:
        """Id of the target language's tag."""
        return self.opened.tokenizer.tag_id(self.task.target)

    @property
    def special(self) -> Special:
        return Special.of(self.opened.tokenizer)

    def batches(self, beam: int) -> list[list[int]]:
        """The batches that all candidates decode."""
        return decoding_batches([len(s) for s in self.sources], self.opened.tokenizer.vocabulary_size, self.config(beam))

    def config(self, beam: int) -> EvaluationConfig:
        """The run's decoding settings at another beam."""
        return EvaluationConfig.model_validate({**self.opened.evaluation.model_dump(), "beam": beam})


class _WordTokenizer:
    """Stands in for a tokenizer where there is no text: special symbols, two tags, numbered pieces."""

    bos, pad, eos, unk = 0, 1, 2, 3
    languages = ("xx", "yy")

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size

    def tag_id(self, language: str) -> int:
        return 4 + self.languages.index(language)


def random_case(preset: str, vocabulary_size: int, sentences: int, batch_tokens: int, seed: int = 1) -> Case:
    """Random weights and sentences of log-normal length (median 22 tokens), as news text has."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config, tokenizer = ModelConfig.model_validate({"preset": preset}), _WordTokenizer(vocabulary_size)
    model = Transformer(config, vocabulary_size).eval().requires_grad_(False)
    _liven(model)
    model.shared.weight[tokenizer.eos] = 0.0
    lengths = np.clip(np.exp(rng.normal(np.log(22.0), 0.5, sentences)), 3, 100).astype(int)
    sources = [[4, *rng.integers(6, vocabulary_size, n).tolist(), tokenizer.eos] for n in lengths]
    limits = [1 + max(2, round(n * rng.uniform(0.8, 1.2))) for n in lengths]
    settings = EvaluationConfig(batch_tokens=batch_tokens)
    opened = OpenedRun(
        Path(preset),
        preset,
        model,
        tokenizer,
        TaskSet([("xx", "yy")]),
        DataConfig(),
        config,
        settings,  # type: ignore[arg-type]
    )
    return Case(f"{preset}, V {vocabulary_size}, {sentences} random sentences", opened, sources, limits, opened.tasks[0], False)


def _liven(model: Transformer) -> None:
    """Random weights that decode like trained ones, as far as a decoder can go wrong.

    With the weights of the start the best token is always the last one again, whatever caches and masks hold. Random signs
    in the last norm end that (the embeddings are tied), stronger blocks make each token depend on source and history, and
    the norm's size gives a peaked distribution, so that beams differ.
    """
    for name, weight in model.decoder.layers.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight")):
            weight.mul_(4.0)
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.mul_(2.0)
    last = model.decoder.layer_norm
    assert last is not None, "the presets are pre-norm"
    last.weight.mul_(2.0 * torch.randint(0, 2, last.weight.shape).mul(2).sub(1))


def run_case(run: Path, sentences: int, direction: str | None = None, batch_tokens: int | None = None) -> Case:
    """The first test sentences of a trained run's direction (the first one by default), in the run's own batches or others.

    Raises:
        MnmtError: E105 when the direction or its test set is not there, and what ``open_run`` raises.
    """
    opened = open_run(run)
    if batch_tokens is not None:
        settings = EvaluationConfig.model_validate({**opened.evaluation.model_dump(), "batch_tokens": batch_tokens})
        opened = replace(opened, evaluation=settings)
    task = opened.tasks.by_name(direction) if direction else opened.tasks[0]
    test = find_test_set(TokenStore.open(user_path(opened.data.store)), task.source, task.target, "test")
    if test is None:
        raise MnmtError("E105", f"direction {task.name} has no test set", where=str(run))
    tokenizer, most = opened.tokenizer, opened.model_config.max_positions
    tag = tokenizer.tag_id(task.source)
    encoded = [ids for ids in tokenizer.encode(test.source[:sentences]) if ids]
    sources = [[tag, *ids[: most - FRAME], tokenizer.eos] for ids in encoded]
    limits = [length_limit(len(s) - FRAME, opened.evaluation, most) for s in sources]
    name = f"{opened.name} {task.name}, {len(sources)} test sentences"
    return Case(name, opened, sources, limits, task, True)
