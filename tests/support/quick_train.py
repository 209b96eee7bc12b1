"""A plain single-process trainer for learnability experiments: the real data path, model and search, a plain loop.

    python -m tests.support.quick_train CONFIG [--set key=value ...] [--beam 1] [--minutes M]

prints one JSON line: settings that matter, seconds, target tokens, BLEU per direction. No ZeRO, no checkpoints; for
anything but experiments use ``mnmt train``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from mnmt_scale import settings
from mnmt_scale.data.build import prepare
from mnmt_scale.data.store import TokenStore, is_store
from mnmt_scale.data.stream import BatchStream
from mnmt_scale.engine.ema import Ema
from mnmt_scale.engine.schedule import rate_factor
from mnmt_scale.model.transformer import Transformer
from mnmt_scale.tasks import TaskSet, directions_of
from mnmt_scale.train.config import RunConfig


def quick_train(config: RunConfig, *, minutes: float | None = None, log=print):
    """Trains on the store of ``config`` (prepared first where there is none).

    Args:
        minutes: stop after so many minutes instead of after ``train.max_steps``.

    Returns:
        (model in eval mode, store, tasks, figures of the training).
    """
    data = config.data
    directory = Path(data.store)
    if not is_store(directory):
        prepare(data, log=log)
    store = TokenStore.open(directory)
    tasks = TaskSet(directions_of(store.pairs("train"), data.directions, data.pivot, data.tasks))
    torch.manual_seed(config.train.seed)
    smoothing = config.train.label_smoothing
    model = Transformer(config.model, store.tokenizer.vocabulary_size, label_smoothing=smoothing)
    stream = BatchStream(store, tasks, config.sampling, config.batch, max_tokens=config.data.max_tokens, seed=config.train.seed)
    o = config.engine.optimizer
    optimizer = torch.optim.Adam(model.parameters(), lr=o.learning_rate, betas=(o.beta1, o.beta2), eps=o.epsilon, foreach=True)
    decay = config.engine.ema_decay
    weights = list(model.parameters())
    ema = Ema(weights, decay) if decay else None
    began, tokens, step, recent = time.monotonic(), 0, 0, []
    while True:
        seconds = time.monotonic() - began
        done = seconds / (60 * minutes) if minutes else step / config.train.max_steps
        if done >= 1:
            break
        step += 1
        batches = stream.next()
        total = sum(batches[0].step_tokens)
        optimizer.zero_grad(set_to_none=True)
        nll = 0.0
        for batch in batches:
            losses = model(batch, [1.0 / total] * len(batch.tasks))
            losses.total.backward()
            nll += float(losses.nlls.sum())
        if config.engine.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.engine.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = o.learning_rate * rate_factor(config.engine.schedule, step, config.train.max_steps)
        optimizer.step()
        if ema is not None:
            ema.update(weights)
        tokens += total
        recent.append(nll / total)
        if step % config.train.log_steps == 0:
            mean = sum(recent) / len(recent)
            log(f"step {step} nll {mean:.3f} tokens {tokens} seconds {time.monotonic() - began:.0f}")
            recent.clear()
    figures = {"steps": step, "tokens": tokens, "seconds": round(time.monotonic() - began, 1)}
    if config.evaluation.weights == "ema":
        assert ema is not None, "evaluation.weights 'ema' needs engine.ema_decay"
        ema.swap(weights)
    return model.eval(), store, tasks, figures


def bleu(model, store: TokenStore, tasks: TaskSet, config: RunConfig, *, split: str = "test") -> dict[str, float]:
    """BLEU (13a) of each direction."""
    import sacrebleu

    from mnmt_scale.evaluation.decode import Translator

    translator = Translator(model, store.tokenizer, config.evaluation)
    scores = {}
    for task in tasks:
        lines, references = (store.text(task.pair, split, language) for language in (task.source, task.target))
        found = translator.translate(lines, task.source, task.target)
        scores[task.name] = round(sacrebleu.corpus_bleu(found, [references]).score, 2)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--beam", type=int, default=1)
    arguments = parser.parse_args()
    overrides = [f"evaluation.beam={arguments.beam}", *arguments.overrides]
    config = settings.load(RunConfig, arguments.config, overrides)
    run = quick_train(config, minutes=arguments.minutes)
    model, store, tasks, figures = run
    began = time.monotonic()
    scores = bleu(model, store, tasks, config)
    mean = sum(scores.values()) / len(scores)
    figures |= {"decoding_seconds": round(time.monotonic() - began, 1), "mean_bleu": round(mean, 2), "bleu": scores}
    print(json.dumps({"set": arguments.overrides, **figures}))


if __name__ == "__main__":
    main()
