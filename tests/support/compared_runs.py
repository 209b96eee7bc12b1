"""Made-up runs of a comparison: what its trainings and evaluations would have written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from mnmt_scale import settings
from mnmt_scale.train.config import RunConfig

SCORES = {"t1": {"de-en": 20.0, "fr-en": 10.0, "sw-en": 3.0}, "t5": {"de-en": 19.0, "fr-en": 11.0, "sw-en": 6.0}}
CLASSES = {"de-en": "high", "fr-en": "medium", "sw-en": "low"}
REFERENCES = [f"a{i} b c{i} d e f{i} g" for i in range(30)]


class Processes:
    """Instead of ``mnmt train`` and ``mnmt evaluate``: writes what they write. ``codes`` gives exit codes by run."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.codes: dict[str, int] = {}

    def __call__(self, program: list[str], log: Path) -> int:
        assert program[:3] == [sys.executable, "-m", "mnmt_scale"]
        verb = program[3]
        run = Path(program[program.index("--run-dir") + 1] if verb == "train" else program[4])
        title = f"{run.parent.name} {run.name}"
        self.calls.append((verb, title))
        code = self.codes.get(f"{verb} {title}", 0)
        with log.open("a") as file:
            file.write("MNMT-E501: loss is not finite\nsome more text\n" if code else "")
        if code:
            return code
        limit = int(program[program.index("--limit") + 1]) if "--limit" in program else None
        return self.train(program, run, log) if verb == "train" else self.evaluate(run, limit)

    def train(self, program: list[str], run: Path, log: Path) -> int:
        sets = [program[i + 1] for i, word in enumerate(program) if word == "--set"]
        config = settings.load(RunConfig, program[4], sets)
        config = config.model_copy(update={"data": config.data.model_copy(update={"tasks": list(CLASSES)})})
        run.mkdir(parents=True)
        (run / "config.toml").write_text(settings.dump(config))
        rows = [{"kind": "train", "step": s, "tokens": 1000 * s, "seconds": 6.0} for s in (2, 4)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"kind": "valid", "step": 4}]))
        with log.open("a") as file:
            file.write('{"not the end": 1}\n' + json.dumps({"run": str(run), "steps": 4, "stopped": "steps"}) + "\nbye\n")
        return 0

    def evaluate(self, run: Path, limit: int | None) -> int:
        seed = int(run.name.removeprefix("seed-"))
        (run / "eval").mkdir(exist_ok=True)
        directions = {}
        for name, score in SCORES[run.parent.name].items():
            directions[name] = {"class": CLASSES[name], "bleu": score + 0.1 * seed, "chrf": 2 * score, "nll": 3.0}
            directions[name]["bleu_signature"] = "tok:13a"
            rng = np.random.default_rng([seed, int(score)])
            lines = [" ".join(w if rng.random() < score / 25 else "x" for w in line.split()) for line in REFERENCES]
            for kind, text in (("hyp", lines), ("ref", REFERENCES)):
                (run / "eval" / f"test.{name}.{kind}").write_text("".join(line + "\n" for line in text))
        groups = {"all": list(CLASSES), **{c: [n for n in CLASSES if CLASSES[n] == c] for c in ("low", "medium", "high")}}
        averages = {
            group: {
                "directions": len(names),
                **{m: float(np.mean([directions[n][m] for n in names])) for m in ("bleu", "chrf", "nll")},
            }
            for group, names in groups.items()
        }
        evaluation = settings.load(RunConfig, run / "config.toml").evaluation
        found = {"directions": directions, "averages": averages, "decoding": evaluation.model_dump(mode="json")}
        found["weights"] = evaluation.weights
        (run / "eval" / "test.json").write_text(json.dumps({"limit": limit, "only": None, **found}))
        return 0
