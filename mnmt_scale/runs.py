"""A finished (or imported) run, opened for reading: what translation, evaluation and export start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from . import settings
from .data.config import DataConfig
from .data.tokenizer import Tokenizer
from .engine.checkpoint import load_weights
from .engine.manifest import newest_unchecked
from .errors import MnmtError, nearest
from .evaluation.config import EvaluationConfig
from .model.config import ModelConfig
from .model.transformer import Transformer
from .tasks import Task, TaskSet, parse_direction


@dataclass(frozen=True)
class OpenedRun:
    """Model in evaluation mode with everything that reading its output needs.

    Attributes:
        weights: which of the run's these are; "" where that is not known.
        trained_steps: step of the run's newest checkpoint when it was opened, None without one.
        helpers: names of the directions that were trained for the sake of others alone (method ``ftac``).
    """

    path: Path
    name: str
    model: Transformer
    tokenizer: Tokenizer
    tasks: TaskSet
    data: DataConfig
    model_config: ModelConfig
    evaluation: EvaluationConfig
    weights: str = ""
    trained_steps: int | None = None
    helpers: tuple[str, ...] = ()

    @property
    def served(self) -> list[Task]:
        """The directions that the model is for: all but the helpers."""
        return [task for task in self.tasks if task.name not in self.helpers]


def run_table(run: Path) -> dict:
    """The resolved settings of a run, as a table.

    Raises:
        MnmtError: E407 when the directory is not a run; the nearest one beside it is named.
    """
    if not (run / "config.toml").is_file():
        beside = [p.parent.name for p in run.parent.glob("*/config.toml")] if run.parent.is_dir() else []
        models = "a bundle of models: give one of its cluster directories" if (run / "groups.json").is_file() else None
        remedy = models or nearest(run.name, beside)
        raise MnmtError("E407", "not a run directory (it has no config.toml)", where=str(run), remedy=remedy)
    return settings.read_table(run / "config.toml")


def open_run(
    run: str | Path,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> OpenedRun:
    """Open a run directory for inference.

    Args:
        weights: ``best``, ``last``, ``average``, ``average_best``, ``ema`` or ``step-N``; None: ``evaluation.weights``.
        dtype: of the weights; None: fp32.

    Raises:
        MnmtError: E407 not a run, E302 no tokenizer, E403, E404 no such or damaged weights, E405 weights that do not fit.
    """
    run = Path(run)
    table = run_table(run)
    where = str(run / "config.toml")
    data = settings.validate(DataConfig, table.get("data", {}), where)
    model_config = settings.validate(ModelConfig, table.get("model", {}), where)
    evaluation = settings.validate(EvaluationConfig, table.get("evaluation", {}), where)
    tasks = TaskSet(parse_direction(name) for name in data.tasks or [])
    method = table.get("method", {})
    served = method.get("ftac", {}).get("tasks") if method.get("name") == "ftac" else None
    tokenizer = load_tokenizer(run)
    which = weights or evaluation.weights
    state = load_weights(run, which, evaluation.average)
    model = build_model(model_config, tokenizer.vocabulary_size, tokenizer.pad, state, where=f"{run} ({which})")
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    newest = newest_unchecked(run / "checkpoints")
    return OpenedRun(
        run,
        str(table.get("name", run.name)),
        model,
        tokenizer,
        tasks,
        data,
        model_config,
        evaluation,
        which,
        None if newest is None else newest.step,
        tuple(name for name in tasks.names if served is not None and name not in served),
    )


def load_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer kept in a run directory; E302 when the run has none (weights imported alone)."""
    vocabulary = run / "vocabulary.json"
    return Tokenizer.load(run / "tokenizer.model", vocabulary if vocabulary.exists() else None)


def build_model(
    config: ModelConfig, vocabulary_size: int, pad_id: int, state: dict[str, torch.Tensor], *, where: str
) -> Transformer:
    """A Transformer with given weights; E405 naming the first difference when they do not fit."""
    model = Transformer(config, vocabulary_size, pad_id=pad_id)
    expected = model.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        have = tuple(state[name].shape) if name in state else "missing"
        want = tuple(expected[name].shape) if name in expected else "unknown"
        if have != want:
            raise MnmtError("E405", f"weight {name} is {have} in the checkpoint and {want} in the settings", where=where)
    model.load_state_dict(state)
    return model
