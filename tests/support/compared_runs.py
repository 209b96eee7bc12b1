"""Made-up runs of a comparison: what its trainings and evaluations would have written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mnmt_scale import settings
from mnmt_scale.train.config import RunConfig
from mnmt_scale.workflows.follow import Result
from mnmt_scale.workflows.stage import last_complaint

SCORES = {"t1": {"de-en": 20.0, "fr-en": 10.0, "sw-en": 3.0}, "t5": {"de-en": 19.0, "fr-en": 11.0, "sw-en": 6.0}}
CLASSES = {"de-en": "high", "fr-en": "medium", "sw-en": "low"}
REFERENCES = [f"a{i} b c{i} d e f{i} g" for i in range(30)]


class Processes:
    """Instead of Snakemake, ``mnmt train`` and ``mnmt evaluate``: writes what they write. ``codes`` gives exit codes by run."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.codes: dict[str, int] = {}
        self.options: list[str] = []

    def run_snakemake(self, snakefile: str, out: Path, config: dict[str, Any], **more: Any) -> Result:
        """The stages of ``compare.smk`` one after another, as ``workflows.snake.run_snakemake`` has them done."""
        assert snakefile == "compare.smk"
        self.options = list(more["options"])
        result = Result(ok=True)
        for job in config["jobs"]:
            for stage in (job[verb] for verb in ("train", "evaluate") if verb in job):
                assert not Path(stage["mark"]).is_absolute()
                result.logs[stage["name"]] = stage["log"]
                code = self.call(stage["words"], out / stage["log"])
                if code == 75:
                    return replace(result, ok=False, interrupted=True)
                if code or not (out / stage["mark"]).is_file():
                    result.ok, result.failed[stage["name"]] = False, last_complaint(out / stage["log"])
                    more["say"](f"{stage['name']}: failed: {result.failed[stage['name']]}")
                    break
            if result.failed and not more["keep_going"]:
                break
        return result

    def call(self, words: list[str], log: Path) -> int:
        verb = words[0]
        run = Path(words[words.index("--run-dir") + 1] if verb == "train" else words[1])
        title = f"{run.parent.name} {run.name}"
        self.calls.append((verb, title))
        code = self.codes.get(f"{verb} {title}", 0)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write("MNMT-E501: loss is not finite\nsome more text\n" if code else "")
        if code:
            return code
        limit = int(words[words.index("--limit") + 1]) if "--limit" in words else None
        return self.train(words, run) if verb == "train" else self.evaluate(run, limit)

    def train(self, words: list[str], run: Path) -> int:
        sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        config = settings.load(RunConfig, words[1], sets)
        config = config.model_copy(update={"data": config.data.model_copy(update={"tasks": list(CLASSES)})})
        run.mkdir(parents=True)
        (run / "config.toml").write_text(settings.dump(config))
        rows = [{"kind": "train", "step": s, "tokens": 1000 * s, "seconds": 6.0} for s in (2, 4)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"kind": "valid", "step": 4}]))
        (run / "training.json").write_text(json.dumps({"run": str(run), "steps": 4, "stopped": "steps"}))
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
