"""A learner: model, engine and batch stream of one model in training. Several can live in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data.packing import only
from ..data.store import TokenStore
from ..data.stream import BatchStream, evaluation_batches
from ..dist import World, all_sum
from ..engine.checkpoint import load_weights
from ..engine.task_grads import TaskGradients, Watch
from ..engine.zero import ZeroEngine, seed_step
from ..errors import MnmtError
from ..flow import StepReport, TaskBatch, TaskGram, TaskLosses
from ..model.attention import uses_buckets
from ..model.groups import parameter_group
from ..model.transformer import Transformer
from ..runs import build_model, load_tokenizer
from ..settings import user_path
from ..tasks import Task, TaskSet
from .config import RunConfig


@dataclass
class Learner:
    """What the loop moves.

    Attributes:
        step: optimizer updates that were planned, skipped ones included.
        bad_observations, bad_in_row: Grams that were not finite, in all and since the last finite one.
    """

    config: RunConfig
    tasks: TaskSet
    store: TokenStore
    engine: ZeroEngine
    stream: BatchStream
    world: World
    step: int = 0
    bad_observations: int = 0
    bad_in_row: int = 0

    @classmethod
    def build(cls, config: RunConfig, store: TokenStore, tasks: TaskSet, world: World) -> Learner:
        """Model with fresh weights (or those of ``train.init_from``), engine and stream at step 0.

        Raises:
            MnmtError: E306 when ``init_from`` has another vocabulary, E405 when its weights do not fit.
        """
        torch.manual_seed(config.train.seed)
        torch.use_deterministic_algorithms(config.train.deterministic, warn_only=True)
        # torch would also write into every tensor before it is used, for the sake of programs that read what they never
        # wrote: thousands of fills a step, and nothing here depends on them
        torch.utils.deterministic.fill_uninitialized_memory = False
        model = _fresh_model(config, store)
        engine = ZeroEngine(
            model, config.engine, world=world, max_steps=config.train.max_steps, accumulation=config.batch.accumulation
        )
        stream = BatchStream(
            store,
            tasks,
            config.sampling,
            config.batch,
            max_tokens=config.data.max_tokens,
            seed=config.train.seed,
            rank=world.rank,
            size=world.size,
            bucketed=uses_buckets(config.model, world.device, engine.dtype),
            single_every=config.method.affinity.every_steps if config.method.name == "affinity" else 0,
        )
        return cls(config, tasks, store, engine, stream, world)

    @property
    def served(self) -> list[Task]:
        """The directions that the model is for: those of ``method.ftac.tasks`` where that is the method, else all."""
        method = self.config.method
        only = method.ftac.tasks if method.name == "ftac" else None
        return [task for task in self.tasks if only is None or task.name in only]

    @cached_property
    def task_gradients(self) -> TaskGradients:
        """Measures the gradients of single tasks; made when first asked for."""
        settings = self.config.engine.task_gradients
        return TaskGradients(self.engine, settings, seed=self.config.train.seed, only=only, group_of=parameter_group)

    def update(
        self,
        batches: list[TaskBatch],
        scales: tuple[float, ...],
        flag: int = 0,
        *,
        gram: str = "",
        weigh: Callable[[TaskGram], tuple[float, ...]] | None = None,
    ) -> tuple[StepReport, int, TaskGram | None]:
        """One optimizer step over this rank's micro-batches.

        Args:
            scales: [K] factor of each task's summed token losses.
            flag: number to be summed over ranks in the same reduction (requests to stop).
            gram: as in ``flow.Request``: "", "beside" or "first".
            weigh: gives the ``scales`` where the Gram comes first, if it is finite.

        Returns:
            The report, equal on all ranks, the sum of the flags, and the Gram where one was asked for.
        """
        start = time.perf_counter()
        watch = seen = None
        if gram == "first" or (gram and self.task_gradients.route == "per_task"):
            seen = self.task_gradients.measure(batches)
            if gram == "first" and weigh is not None and not seen.bad:
                scales = weigh(seen)
        elif gram:
            watch = self.task_gradients.watch(batches, scales)
        sums = self._backward(batches, scales, watch)
        if watch is not None:
            seen = watch.finish()
        outcome = self.engine.step(tolerate=seen is not None and bool(seen.bad))
        message = all_sum(torch.cat([sums.flatten().cpu(), torch.tensor([float(flag)], dtype=torch.float64)]))
        totals = message[:-1].reshape(3, -1)
        self.step += 1
        counts = totals[2].clamp(min=1)
        report = StepReport(
            step=self.step,
            tasks=batches[0].tasks,
            losses=tuple((totals[0] / counts).tolist()),
            nlls=tuple((totals[1] / counts).tolist()),
            tokens=tuple(int(n) for n in totals[2]),
            learning_rate=outcome.learning_rate,
            grad_norm=outcome.grad_norm,
            skipped=outcome.skipped,
            seconds=time.perf_counter() - start,
        )
        return report, int(message[-1]), seen

    def _backward(self, batches: Sequence[TaskBatch], scales: tuple[float, ...], watch: Watch | None) -> Tensor:
        """Forward and backward over the micro-batches; [3, K] this rank's loss sums, nll sums and token counts, on the device:
        who reads them waits for it, and until the update is under way a GPU would stand still meanwhile."""
        sums = torch.zeros(3, len(scales), dtype=torch.float64, device=self.engine.device)
        for batch in batches:
            seed_step(self.config.train.seed, batch.step, batch.micro, self.world.rank)
            here = batch.to(self.engine.device)
            if watch is None:
                losses = self.engine.forward(here, scales)
            else:
                losses = self.engine.forward(here, watch.scales, watch.tape(batch.micro))
            self.engine.backward(losses, last=batch.micro == len(batches) - 1)
            sums += _sums(losses)
        return sums

    def validation_nll(self, task: Task, limit: int) -> tuple[float, int]:
        """Negative log-likelihood (sum in nats) and predicted tokens of the first ``limit`` dev sentences of a task.

        Batches go round the ranks; where they do not come out even, a rank repeats one without counting it, since under
        ZeRO-3 all ranks must run the model equally often.
        """
        batches = list(
            evaluation_batches(
                self.store,
                task,
                "dev",
                max_tokens=self.config.data.max_tokens,
                batch_tokens=max(4096, self.config.batch.batch_tokens // self.world.size),
                limit=limit,
                bucketed=uses_buckets(self.config.model, self.engine.device, self.engine.dtype),
            )
        )
        sums = torch.zeros(2, dtype=torch.float64)
        for first in range(0, len(batches), self.world.size):
            mine = first + self.world.rank
            batch = batches[min(mine, len(batches) - 1)].to(self.engine.device)
            with torch.no_grad():
                losses = self.engine.forward(batch, (0.0,))
            if mine < len(batches):
                sums += _sums(losses)[1:, 0].cpu()
        nll, tokens = all_sum(sums).tolist()
        return nll, int(tokens)

    def close(self) -> None:
        """Ends the stream's thread and frees the engine's buffers."""
        self.stream.close()
        self.engine.close()

    def state(self) -> dict[str, Any]:
        """Position in the data, as JSON; weights and optimizer are the engine's."""
        bad = [self.bad_observations, self.bad_in_row]
        return {"step": self.step, "stream": self.stream.state_dict(), "bad_observations": bad}

    def load_state(self, state: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        self.step = int(state["step"])
        self.bad_observations, self.bad_in_row = state.get("bad_observations", (0, 0))
        self.stream.load_state_dict(state["stream"])


def _sums(losses: TaskLosses) -> Tensor:
    """[3, K] fp64: loss sums, nll sums, token counts."""
    return torch.stack([losses.sums.double(), losses.nlls.double(), losses.tokens.double()]).detach()


def _fresh_model(config: RunConfig, store: TokenStore) -> Transformer:
    tokenizer = store.tokenizer
    smoothing = config.train.label_smoothing
    if config.train.init_from is None:
        return Transformer(config.model, tokenizer.vocabulary_size, pad_id=tokenizer.pad, label_smoothing=smoothing)
    source = user_path(config.train.init_from)
    theirs = load_tokenizer(source)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise MnmtError(
            "E306",
            f"train.init_from has another vocabulary ({theirs.fingerprint[:12]}) than the store ({tokenizer.fingerprint[:12]})",
            where=str(source),
            remedy="prepare the store with data.tokenizer.path set to that run's tokenizer.model",
        )
    state = load_weights(source, config.train.init_weights, config.evaluation.average)
    model = build_model(config.model, tokenizer.vocabulary_size, tokenizer.pad, state, where=str(source))
    model.label_smoothing = smoothing
    return model
