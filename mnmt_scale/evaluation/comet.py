"""COMET as an optional extra: scores with a checkpoint that lies on this machine, in the environment it is installed in."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import MnmtError


class Comet:
    """A COMET model that was loaded without any download.

    Args:
        path: the ``model.ckpt`` file, or the directory that holds ``checkpoints/model.ckpt``. Its encoder (XLM-R) must be
            in the Hugging Face cache of this machine. The file is unpickled by COMET: use only one that you trust.

    Raises:
        MnmtError: E801 package missing, E602 no such file, or COMET cannot load it offline.
    """

    def __init__(self, path: str | Path) -> None:
        if importlib.util.find_spec("comet") is None:
            remedy = "pip install unbabel-comet, or score eval/*.{src,hyp,ref} with comet-score in another environment"
            raise MnmtError("E801", "COMET is not installed", remedy=remedy)
        path = Path(path)
        checkpoint = path if path.is_file() else path / "checkpoints" / "model.ckpt"
        if not checkpoint.is_file():
            remedy = "give the path of a downloaded model.ckpt; names are not looked up"
            raise MnmtError("E602", "no COMET checkpoint", where=str(path), remedy=remedy)
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
        from comet.models import load_from_checkpoint

        try:
            self.model = load_from_checkpoint(str(checkpoint), local_files_only=True)
        except Exception as error:  # whatever the package raises: its encoder missing from the cache, above all
            raise MnmtError("E602", f"COMET cannot load this checkpoint offline: {error}", where=str(checkpoint)) from error
        self.name = checkpoint.parent.parent.name

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> float:
        """System score: the mean over sentences."""
        samples = [dict(src=s, mt=h, ref=r) for s, h, r in zip(sources, hypotheses, references, strict=True)]
        return float(self.model.predict(samples, batch_size=8, gpus=0, progress_bar=False).system_score)
