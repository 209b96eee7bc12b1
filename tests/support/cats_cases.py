"""For the tests of CATS: exact minima, Gram matrices of ordinary size, observations, and a made-up training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import nnls

from mnmt_scale.flow import Observation, StepReport, TaskBatch, TaskGram
from mnmt_scale.methods.cats.config import CatsConfig
from mnmt_scale.methods.cats.method import Cats
from mnmt_scale.methods.spec import Facts

from .batches import batch_of


def minimum(gram: np.ndarray, floor: float) -> np.ndarray:
    """[K] the weights of {sum = 1, alpha >= floor} with the least alpha' G alpha, by scipy's active-set solver.

    alpha = floor + (1 - K floor) beta turns the bound into beta >= 0, for gradients that each get a share of their sum; and
    the least |A beta|^2 on the simplex is, up to its length, the least |A beta|^2 + (sum beta - 1)^2 over beta >= 0.
    """
    K = len(gram)
    rest = 1.0 - K * floor
    mixed = np.eye(K) + floor / rest
    values, vectors = np.linalg.eigh(mixed @ gram @ mixed.T)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    beta, _ = nnls(np.vstack([root, np.ones(K)]), np.append(np.zeros(K), 1.0), maxiter=1000)
    return floor + rest * beta / beta.sum()


def random_gram(
    rng: np.random.Generator, K: int, norms: tuple[float, float] = (0.3, 5.0), cosines: tuple[float, float] = (0.0, 0.5)
) -> np.ndarray:
    """[K, K] of gradients with norms and cosines drawn from these ranges (norms on a logarithmic scale)."""
    while True:
        upper = np.triu(rng.uniform(*cosines, (K, K)), 1)
        cosine = upper + upper.T + np.eye(K)
        if np.linalg.eigvalsh(cosine)[0] > 0.02:
            break
    norm = np.exp(rng.uniform(*np.log(norms), K))
    return cosine * np.outer(norm, norm)


def observation(
    tasks: Sequence[int], gram: np.ndarray, losses: Sequence[float], tokens: Sequence[int] | None = None, step: int = 10
) -> Observation:
    """What the loop shows after a step, with the Gram in two groups."""
    tokens = tuple(tokens or [100] * len(tasks))
    whole = torch.tensor(gram)
    groups = {"E.SA": 0.25 * whole, "D.FC": 0.75 * whole}
    seen = TaskGram(tuple(tasks), groups, tuple(map(float, losses)), tokens, "segmented")
    report = StepReport(step, tuple(tasks), seen.losses, seen.losses, tokens, learning_rate=1e-3, grad_norm=1.0)
    return Observation(report, seen)


def batch_with(tasks: Sequence[int], tokens: Sequence[int]) -> TaskBatch:
    """A batch of these tasks, with these N_k."""
    return replace(batch_of([(3, 3, 0)]), tasks=tuple(tasks), step_tokens=tuple(tokens))


def cats(names: Sequence[str] | int, K: int | None = None, **settings) -> Cats:
    """The method on tasks of these names (or that many), K of them a batch."""
    names = [f"l{n}-en" for n in range(names)] if isinstance(names, int) else list(names)
    shares = (1.0 / len(names),) * len(names)
    return Cats(CatsConfig(**settings), Facts(tuple(names), shares, K or len(names), seed=1))


@dataclass(frozen=True)
class Course:
    """How a made-up training went: per update of alpha [updates, 8] weights and lambda_c; at its end the exact minimum,
    and alpha' G alpha of its weights and of equal weights, divided by that of the minimum."""

    weights: np.ndarray
    lambda_c: np.ndarray
    best: np.ndarray
    excess: float
    equal_excess: float
    loss: float


FINAL_LOSSES = np.array([3.0, 3.3, 4.0, 3.5, 4.5, 5.0, 4.2, 6.0])
LENGTHS = np.where(np.arange(8) % 8 < 3, 1.6, 0.8)
"""The first three tasks have gradients twice as long as the others."""


def simulate(K: int = 8, steps: int = 50_000, trained: bool = False, noise: float = 0.2, **settings) -> Course:
    """CATS on eight tasks whose losses fall from 9 to 3 .. 6 and gradient norms from 5 to 0.5 (times ``LENGTHS``), along
    log(1 + step / 500); cosines 0.35 between tasks of equal length, else 0.15; norms vary by ``noise`` from step to step.
    ``trained``: losses and norms are at their end from the start. Nothing that alpha does changes losses or gradients."""
    method, rng = cats(8, K, **settings), np.random.default_rng(0)
    cosine = np.where(LENGTHS[:, None] == LENGTHS, 0.35, 0.15)
    np.fill_diagonal(cosine, 1.0)
    weights, lambda_c = [], []
    for step in range(steps):
        if method.wants(step) is None:
            continue
        done = 1.0 if trained else np.log1p(step / 500) / np.log1p(steps / 500)
        norm = 5.0 * 0.1**done * LENGTHS
        tasks = np.sort(rng.choice(8, K, replace=False))
        seen = (norm * np.exp(noise * rng.normal(size=8)))[tasks]
        losses = (9.0 - (9.0 - FINAL_LOSSES) * done)[tasks]
        method.observe(observation(tasks.tolist(), cosine[np.ix_(tasks, tasks)] * np.outer(seen, seen), losses, step=step + 1))
        weights.append(list(method.log()["weights"].values()))
        lambda_c.append(method.lambda_c)
    gram, last = cosine * np.outer(norm, norm), np.array(weights[-1])
    best = minimum(gram, method.rates.eps_alpha)
    least = best @ gram @ best
    losses = 9.0 - (9.0 - FINAL_LOSSES) * done
    return Course(
        np.array(weights), np.array(lambda_c), best, last @ gram @ last / least, gram.mean() / least, float(last @ losses)
    )
