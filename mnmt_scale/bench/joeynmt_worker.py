"""JoeyNMT's own model and training step, driven over a pipe.

Run by an interpreter that has joeynmt 2.3 (not by ours): ``PYTHON joeynmt_worker.py SETUP.json``. Model, loss, optimizer
and step are JoeyNMT's (``build_model``, ``TrainManager``, ``Batch``); only its data loader is left out, in its favour.
Each line on standard input names a list of batches; the answer is one JSON line with the tokens and seconds of a pass.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

UNK, PAD, BOS, EOS = range(4)
"""JoeyNMT's order of the special symbols; all other ids are words."""


def main(setup_path: str) -> None:
    """Serve passes until standard input ends.

    SETUP holds the sizes under the names of ``ModelConfig``, ``vocabulary_size``, ``label_smoothing``, ``threads``, ``bf16``
    and ``batches``: name -> batches -> sentences -> (source words, target words), ids from 4 on.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # the library may print
    setup = SimpleNamespace(**json.loads(Path(setup_path).read_text(encoding="utf-8")))
    import joeynmt
    import torch

    logging.disable(logging.INFO)
    torch.set_num_threads(setup.threads)
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as directory:
        manager = make_manager(setup, Path(directory))
        named = setup.batches
        print(json.dumps({"joeynmt": joeynmt.__version__, "torch": torch.__version__}), file=answers, flush=True)
        for line in sys.stdin:
            start = time.perf_counter()
            tokens = sum(train(manager, sentences) for sentences in named[line.strip()])
            print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - start}), file=answers, flush=True)
        manager.tb_writer.close()


def make_manager(setup: SimpleNamespace, directory: Path):
    """A ``TrainManager`` for a pre-norm Transformer with everything tied."""
    import torch
    from joeynmt.config import parse_train_args
    from joeynmt.model import build_model
    from joeynmt.training import TrainManager
    from joeynmt.vocabulary import Vocabulary

    special = {"unk": UNK, "pad": PAD, "bos": BOS, "eos": EOS}
    symbols = {f"{name}_token": f"<{name}>" for name in special} | {f"{name}_id": i for name, i in special.items()}
    words = [str(i) for i in range(4, setup.vocabulary_size)]
    vocabulary = Vocabulary(words, SimpleNamespace(**symbols, lang_tags=[], sep_token=None, sep_id=None))
    side = {
        "type": "transformer",
        "num_heads": setup.heads,
        "embeddings": {"embedding_dim": setup.d_model, "scale": True, "dropout": setup.dropout},
        "hidden_size": setup.d_model,
        "ff_size": setup.d_ffn,
        "dropout": setup.dropout,
        "layer_norm": "pre",
    }
    config = {
        "initializer": "xavier_uniform",
        "tied_embeddings": True,
        "tied_softmax": True,
        "encoder": {**side, "num_layers": setup.encoder_layers},
        "decoder": {**side, "num_layers": setup.decoder_layers},
    }
    training = {
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "adam_betas": [0.9, 0.98],
        "label_smoothing": setup.label_smoothing,
        "normalization": "tokens",
        "scheduling": "warmupinversesquareroot",
        "batch_type": "token",
        "batch_size": 4096,
    }
    arguments = parse_train_args(training)
    model = build_model(config, src_vocab=vocabulary, trg_vocab=vocabulary)
    model.loss_function = (arguments.loss, arguments.label_smoothing)
    autocast = {"device_type": "cpu", "enabled": setup.bf16, "dtype": torch.bfloat16}
    return TrainManager(0, model, directory, torch.device("cpu"), autocast=autocast, train_args=arguments)


def train(manager, sentences: list[tuple[list[int], list[int]]]) -> int:
    """One update on one batch; its target tokens, each sentence's end included."""
    import torch
    from joeynmt.batch import Batch

    sources = [[*source, EOS] for source, _ in sentences]
    targets = [[BOS, *target, EOS] for _, target in sentences]
    batch = Batch(
        src=padded(sources),
        src_length=torch.tensor([len(s) for s in sources]),
        src_prompt_mask=None,
        trg=padded(targets),
        trg_prompt_mask=None,
        indices=torch.arange(len(sentences)),
        device=manager.device,
        pad_index=PAD,
        eos_index=EOS,
    )
    manager._train_step(batch)
    manager.optimizer.step()
    manager.model.zero_grad()
    return batch.ntokens


def padded(rows: list[list[int]]):
    """[B, longest] ids."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


if __name__ == "__main__":
    main(sys.argv[1])
