"""JoeyNMT in ``mnmt bench train``: a process of its own interpreter (``joeynmt_worker.py``), on CPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from ..model.config import ModelConfig
from .timing import Clock
from .train_candidates import LABEL_SMOOTHING, Candidate


class JoeyNmt:
    """The worker process of JoeyNMT; ``candidate`` makes one contestant of each named list of batches.

    Attributes:
        names: of the lists of batches.

    Raises:
        RuntimeError: the worker did not start, with what it wrote last.
    """

    def __init__(
        self,
        python: str,
        config: ModelConfig,
        vocabulary_size: int,
        named: dict[str, list],
        work: Path,
        *,
        bf16: bool,
        threads: int,
    ) -> None:
        setup = {
            **config.model_dump(include={"encoder_layers", "decoder_layers", "d_model", "d_ffn", "heads", "dropout"}),
            "vocabulary_size": vocabulary_size,
            "label_smoothing": LABEL_SMOOTHING,
            "threads": threads,
            "bf16": bf16,
            "batches": named,
        }
        path = work / f"joeynmt-{'bf16' if bf16 else 'fp32'}.json"
        path.write_text(json.dumps(setup), encoding="utf-8")
        self.log = path.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, str(Path(__file__).with_name("joeynmt_worker.py")), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.names = list(named)
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the JoeyNMT worker ended: {' '.join(last)}")
        return json.loads(line)

    def candidate(self, name: str) -> _JoeyCandidate:
        return _JoeyCandidate(self, name)

    def pass_over(self, name: str) -> dict[str, Any]:
        """Tokens and seconds of one pass over the batches called ``name``."""
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


class _JoeyCandidate(Candidate):
    def __init__(self, worker: JoeyNmt, batches: str) -> None:
        super().__init__(f"JoeyNMT {worker.versions['joeynmt']}, {batches}", [], 0)
        self.worker, self.key = worker, batches

    def begin(self, clock: Clock) -> None:
        self.one_pass(clock)

    def one_pass(self, clock: Clock) -> float:
        answer = self.worker.pass_over(self.key)
        self.tokens = answer["tokens"]
        return answer["seconds"]
