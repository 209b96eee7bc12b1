"""The training engine: DeepSpeed ZeRO-1, 2 and 3 behind five calls.

``forward`` and ``backward`` once per micro-batch, ``step`` once per update, ``weights`` for the full fp32 weights,
``close`` at the end. What is differentiated is the *sum* over ranks and micro-batches of ``TaskLosses.total``: the model
scales its losses by global token counts, so DeepSpeed's own division by ranks and micro-batches is cancelled here.

A loss that is not finite on one rank makes that rank's gradients NaN; the gradient norm, summed over ranks, is then NaN
on all of them before any weight or moment is touched, and every rank leaves the update out. No extra collective is
needed for the agreement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..dist import World, gather_objects, peers
from ..errors import MnmtError
from ..flow import TaskBatch, TaskLosses
from . import ds_config
from .config import EngineConfig
from .ema import Ema
from .faults import fault
from .optimizer import make_optimizer
from .schedule import rate_factor
from .seeding import seed_step
from .shards import Shards
from .step_tape import StepTape

__all__ = ["StepOutcome", "ZeroEngine", "resolve_dtype", "seed_step"]


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What an update did, equal on all ranks.

    Attributes:
        grad_norm: global norm of the summed gradient before clipping; nan when the update was left out.
        learning_rate: of this update.
        skipped: loss or gradient was not finite somewhere: neither weights, moments nor averages changed.
        bad_ranks: ranks whose own loss was not finite (empty when only a gradient was).
    """

    grad_norm: float
    learning_rate: float
    skipped: bool = False
    bad_ranks: tuple[int, ...] = ()


class ZeroEngine:
    """One model in training, sharded over the ranks of the process group.

    Args:
        model: on any device, fp32, the same on all ranks; moved and partitioned in place.
        max_steps: where ``linear`` and ``cosine`` schedules end.
        accumulation: micro-batches per update on each rank.

    Attributes:
        module: the model. device, dtype: what it computes on and in. steps: updates so far, skipped ones included.

    Raises:
        MnmtError: E104 for ``engine.deepspeed`` keys that are decided elsewhere, E503 for an unexpected optimizer class.
    """

    def __init__(self, model: nn.Module, config: EngineConfig, *, world: World, max_steps: int, accumulation: int) -> None:
        self.config, self.world, self.device = config, world, world.device
        self.max_steps, self.accumulation = max_steps, accumulation
        self.dtype = resolve_dtype(config.dtype, world.device)
        self.steps = self.skips_in_row = self.failed_saves = 0
        self.module = model
        named = dict(model.named_parameters())
        shapes = {n: p.shape for n, p in named.items()}
        _check_names(model, shapes)
        self._losses: TaskLosses | None = None
        self._inside_forward = self._evaluating = False
        self._totals: list[Tensor] = []
        originals = {n: p.detach().float().clone() for n, p in named.items()} if self.dtype is torch.bfloat16 else None
        # DeepSpeed's hooks look for tensors in a module's output and cannot look into a dataclass: between these two
        # hooks the output is the one tensor that has a graph.
        self._hooks = [model.register_forward_hook(self._give_total)]
        self._ds = self._initialize(model, list(named.values()))
        self._hooks.append(model.register_forward_hook(self._give_losses))
        self.shards = Shards(self._ds.optimizer, named, shapes)
        if originals is not None:  # DeepSpeed made its fp32 masters from weights that it had rounded to bf16
            self.shards.set_from_full(originals)
        self.ema = Ema(self.shards.masters, config.ema_decay) if config.ema_decay else None

    def _initialize(self, model: nn.Module, parameters: list[nn.Parameter]) -> Any:
        deepspeed = _deepspeed()
        if self.device.type == "cpu":
            # A shared-memory all-reduce for inference, which training never calls and DeepSpeed would compile for a minute.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if self.device.type != "cpu":
            model.to(self.device)
        name = "bf16" if self.dtype is torch.bfloat16 else "fp32"
        settings = ds_config.deepspeed_config(
            self.config,
            name,
            num_parameters=sum(p.numel() for p in parameters),
            accumulation=self.accumulation,
            world_size=self.world.size,
        )
        optimizer = make_optimizer(self.config.optimizer, parameters, self.device)
        with contextlib.redirect_stdout(io.StringIO()):  # BF16_Optimizer prints its memory use, whatever the log level
            engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
        offload = bool(settings["zero_optimization"].get("offload_optimizer"))
        ds_config.check_optimizer(engine.optimizer, self.config.zero_stage, name, offload=offload)
        return engine

    def forward(self, batch: TaskBatch, scales: Tensor | tuple[float, ...], tape: StepTape | None = None) -> TaskLosses:
        """The model's losses for one micro-batch on the engine's device. Under ZeRO-3 all ranks must call it equally often,
        a rank without sentences with an empty batch. ``tape`` goes to the model and is told the losses (``task_grads``)."""
        self._inside_forward = True
        try:
            with peers():
                total = self._ds(batch, scales) if tape is None else self._ds(batch, scales, tape)
        finally:
            self._inside_forward = False
        losses = self._taken(total)
        if tape is not None:
            tape.note(losses)
        return losses

    def backward(self, losses: TaskLosses, last: bool) -> None:
        """Adds the gradient of ``losses.total``; ``last`` marks the step's last micro-batch on this rank."""
        total = losses.total
        if fault("train.loss", rank=self.world.rank, step=self.steps):
            total = total * math.nan
        self._totals.append(total.detach())
        scale = torch.full_like(total.detach(), self.world.size)  # DeepSpeed averages over ranks
        spoil = torch.full_like(scale, math.nan)
        self._ds.set_gradient_accumulation_boundary(last)
        with peers():
            self._ds.backward(total * torch.where(torch.isfinite(total.detach()), scale, spoil), scale_wrt_gas=False)

    def step(self, tolerate: bool = False) -> StepOutcome:
        """Clips and applies the accumulated gradient.

        Args:
            tolerate: leave an update that is not finite out, whatever ``on_nan`` and ``max_skips`` say; who asks counts.

        Raises:
            MnmtError: E501, on all ranks, when loss or gradient was not finite and ``on_nan`` is ``stop``, or it was so
                more than ``max_skips`` times in a row.
        """
        self.steps += 1
        rate = self.config.optimizer.learning_rate
        rate *= rate_factor(self.config.schedule, self.steps, self.max_steps)
        for group in self._ds.optimizer.param_groups:
            group["lr"] = rate
        with peers():
            self._ds.step()
        totals, self._totals = self._totals, []
        if self._ds.optimizer.overflow:
            return self._left_out(rate, totals, tolerate)
        self.skips_in_row = 0
        if self.ema is not None:
            self.ema.update(self.shards.masters)
        return StepOutcome(float(self._ds.get_global_grad_norm()), rate)

    def _left_out(self, rate: float, totals: list[Tensor], tolerate: bool) -> StepOutcome:
        self.skips_in_row += 1
        gradients = getattr(self._ds.optimizer, "averaged_gradients", {})
        for group in gradients:  # DeepSpeed 0.19.8 keeps them under offload with bf16: all later steps would add to NaN
            gradients[group] = None
        mine = not all(bool(torch.isfinite(t)) for t in totals)
        bad = tuple(rank for rank, flag in enumerate(gather_objects(mine)) if flag)
        stop = self.config.on_nan == "stop" and not tolerate
        if stop or (self.skips_in_row > self.config.max_skips and not tolerate):
            what = f"loss not finite on rank {', '.join(map(str, bad))}" if bad else "gradient not finite"
            if not stop:
                what += f", {self.skips_in_row} updates in a row"
            raise MnmtError(
                "E501",
                what,
                where=f"step {self.steps}",
                remedy="no weight was changed; look at the batch that was written down, lower the learning rate, "
                "or set engine.on_nan = 'skip'",
            )
        return StepOutcome(math.nan, rate, skipped=True, bad_ranks=bad)

    def evaluate_begin(self) -> None:
        """Evaluation mode; with an EMA the model now computes with the averages. Collective."""
        assert not self._evaluating
        self._evaluating = True
        self.module.eval()
        if self.ema is not None:
            self.ema.swap(self.shards.masters)
            self.shards.refresh()

    def evaluate_end(self) -> None:
        """Back to training mode and to the training weights, bit for bit. Collective."""
        assert self._evaluating
        self._evaluating = False
        if self.ema is not None:
            self.ema.swap(self.shards.masters)
            self.shards.refresh()
        self.module.train()

    def weights(self, ema: bool = False) -> dict[str, Tensor]:
        """Full fp32 weights on the host of rank 0 under their ``state_dict`` names, ``{}`` elsewhere. Collective.

        At every stage and in bf16 too they come from the fp32 masters, so nothing is rounded.
        """
        assert not self._evaluating
        if ema:
            assert self.ema is not None, "no EMA is kept"
            return self.shards.gather(self.ema.averages)
        return self.shards.gather([m.detach() for m in self.shards.masters])

    def close(self) -> None:
        """Frees DeepSpeed's hooks and buffers; the process group stays."""
        for hook in self._hooks:
            hook.remove()
        self._ds.destroy()

    def _give_total(self, module: nn.Module, inputs: Any, losses: TaskLosses) -> Tensor:
        self._losses = losses
        return losses.total

    def _give_losses(self, module: nn.Module, inputs: Any, total: Tensor) -> Tensor | TaskLosses:
        return total if self._inside_forward else self._taken(total)

    def _taken(self, total: Tensor) -> TaskLosses:
        assert self._losses is not None
        losses, self._losses = self._losses, None
        return dataclasses.replace(losses, total=total)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto``: bf16 on an accelerator that computes it natively, else fp32."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def _check_names(model: nn.Module, shapes: dict[str, torch.Size]) -> None:
    """Checkpoints hold parameters: a model with aliases or persistent buffers would come back incomplete."""
    extra = model.state_dict().keys() ^ shapes.keys()
    assert not extra, f"state_dict and parameters differ: {sorted(extra)}"
    assert all(p.requires_grad and p.dtype is torch.float32 for p in model.parameters()), "fp32 and trainable, all"


class _Quiet(logging.Filter):
    """Drops what DeepSpeed says about things that are as they should be."""

    _expected = ("A module has unknown inputs or outputs type", "untested optimizer", "untested ZeRO", "OVERFLOW")

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in self._expected)


def _deepspeed() -> Any:
    """The package, imported without the complaints of a linker with which it probes for libraries nobody asked for."""
    if "deepspeed" not in sys.modules:
        terminal = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            import deepspeed
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            os.close(nowhere)
    import deepspeed

    _quieten()
    return deepspeed


def _quieten() -> None:
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    if not any(isinstance(f, _Quiet) for f in logger.filters):
        logger.addFilter(_Quiet())
    for handler in logger.handlers:  # standard output is for results
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)
    # DeepSpeed calls collectives by names that torch 2.13 is about to change.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
