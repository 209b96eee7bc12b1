"""A comparison: which trainings, what is skipped, what a failure does, and the table of real and of made-up runs."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner

from mnmt_scale.cli.workflow import app
from mnmt_scale.errors import MnmtError
from mnmt_scale.evaluation.statistics import mean_interval
from mnmt_scale.runlog import RunLock
from mnmt_scale.workflows import compare as compare_module
from mnmt_scale.workflows.compare import Options, plan_comparison, run_comparison
from mnmt_scale.workflows.plan import command, make_plan, read_entries
from mnmt_scale.workflows.snake import Resources
from tests.support.compared_runs import CLASSES, REFERENCES, Processes
from tests.support.toy import make_toy


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """t1.toml and t5.toml over a store that is not there."""
    base = {"data": {"store": str(tmp_path / "store")}, "train": {"max_steps": 4}, "evaluation": {"bootstrap_samples": 100}}
    paths = []
    for name, temperature in (("t1", 1.0), ("t5", 5.0)):
        table = {**base, "name": name, "sampling": {"temperature": temperature}}
        paths.append(tmp_path / f"{name}.toml")
        paths[-1].write_text(tomli_w.dumps(table), encoding="utf-8")
    return paths


@pytest.fixture
def processes(monkeypatch) -> Processes:
    found = Processes()
    monkeypatch.setattr(compare_module, "run_snakemake", found.run_snakemake)
    monkeypatch.setattr(compare_module.TokenStore, "open", lambda path: None)
    return found


def test_the_plan_goes_seed_by_seed_and_names_runs_by_file(files, tmp_path):
    jobs = make_plan(read_entries(files), (3, 1), tmp_path / "out")
    assert [job.name for job in jobs] == ["t1 seed 3", "t5 seed 3", "t1 seed 1", "t5 seed 1"]
    assert jobs[0].run == tmp_path / "out" / "t1" / "seed-3"
    words = command(jobs[1], ["train.max_steps=9"])
    assert words == ["train", str(files[1]), "--set", "train.max_steps=9", "--set", "train.seed=3",
                         "--run-dir", str(jobs[1].run), "--resume", "auto", "--json"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ('[data]\nstore = "other"', (), r"E603.*data\.store = 'other'"),
        ("[data]\ndirections = 'one-to-many'", (), r"E603.*data\.directions"),
        ("[evaluation]\nbeam = 1", (), r"E603.*evaluation\.beam = 1"),
        ("[evaluation.classes]\nlow = ['sw']", (), r"E603.*evaluation\.classes"),
        ("", ("train.seed=4",), r"E104.*--seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused(files, text, overrides, words):
    other = files[0].with_name("other.toml")
    other.write_text(f'base = "t1.toml"\n{text}\n')
    with pytest.raises(MnmtError, match=words):
        read_entries([files[0], other], overrides)


def test_two_files_of_one_name_and_unknown_baselines(files, tmp_path):
    (tmp_path / "more").mkdir()
    twin = tmp_path / "more" / "t1.toml"
    twin.write_text('base = "../t1.toml"')
    with pytest.raises(MnmtError, match="E104.*two settings files are called 't1'"):
        read_entries([*files, twin])
    with pytest.raises(MnmtError, match="E102.*did you mean 't1'"):
        plan_comparison(files, tmp_path, Options(baseline="t11"))


def test_lagged_weights_never_have_the_name_of_current_ones(files):
    path = files[0].with_name("upgrad.toml")
    path.write_text('base = "t1.toml"\n[method]\nname = "gramian"\n')
    (current,) = read_entries([path])
    (lagged,) = read_entries([path], ["method.gramian.weights=lagged"])
    assert (current.name, lagged.name) == ("upgrad", "upgrad (lagged)")
    assert current.label == "UPGrad, T = 1"
    assert lagged.label == "UPGrad (lagged), T = 1"
    runs = {make_plan([entry], (1,), Path("out"))[0].run for entry in (current, lagged)}
    assert len(runs) == 2


def test_everything_is_done_once_and_tabulated(files, tmp_path, processes):
    out = tmp_path / "out"
    result = run_comparison(files, out, Options(seeds=(1, 2)), quiet)
    assert processes.calls == [
        (verb, f"{name} seed-{seed}") for seed in (1, 2) for name in ("t1", "t5") for verb in ("train", "evaluate")
    ]
    table = json.loads((out / "compare.json").read_text())
    assert table == json.loads(json.dumps(result["table"]))
    assert (table["baseline"], table["groups"], table["unfinished"]) == ("t1", ["all", "low", "medium", "high"], [])
    t1, t5 = table["rows"]
    assert t1["groups"]["all"]["bleu"]["mean"] == pytest.approx(11.15)
    assert t1["groups"]["low"]["bleu"]["by_seed"] == {"1": pytest.approx(3.1), "2": pytest.approx(3.2)}
    assert t1["groups"]["low"]["bleu"]["high"] == pytest.approx(mean_interval([3.1, 3.2]).high)
    assert "against" not in t1["groups"]["low"]["bleu"]
    assert t5["groups"]["low"]["bleu"]["against"]["mean"] == pytest.approx(3.0)
    assert t5["groups"]["high"]["bleu"]["against"]["mean"] == pytest.approx(-1.0)
    assert (t1["target_tokens"], t1["training_seconds"]) == ([4000, 4000], [12.0, 12.0])
    # the bootstrap is of the hypotheses themselves, which the made-up scores are not
    sentences = {group: t5["groups"][group]["bleu"]["against_sentences"] for group in table["groups"]}
    assert sentences["low"]["difference"] > 0
    parts = [sentences[group]["difference"] for group in ("low", "medium", "high")]
    assert sentences["all"]["difference"] == pytest.approx(sum(parts) / 3)
    assert all(
        s["low"] <= s["difference"] <= s["high"] and 0 < s["p"] <= 1 and s["resamples"] == 100 for s in sentences.values()
    )
    again = run_comparison(files, out, Options(seeds=(1, 2)), quiet)
    assert len(processes.calls) == 8
    assert again["outcome"]["finished"] == ["t1 seed 1", "t5 seed 1", "t1 seed 2", "t5 seed 2"]
    assert again["table"] == result["table"]
    rows = list(csv.DictReader((out / "compare.csv").open()))
    assert len(rows) == 2 * 4 * 3
    cell = next(r for r in rows if (r["name"], r["group"], r["metric"]) == ("t5", "low", "bleu"))
    assert float(cell["difference"]) == pytest.approx(3.0)
    assert float(cell["p_sentences"]) == sentences["low"]["p"]
    text = (out / "compare.md").read_text()
    assert "| t1 (baseline) | 11.15 +- 0.64 |" in text
    assert "t5: joint, T = 5; seeds 1, 2" in text


def test_the_sentence_test_is_of_the_same_lines_and_the_mean_over_seeds(files, tmp_path, processes):
    from mnmt_scale.evaluation.bootstrap import bleu
    from mnmt_scale.evaluation.config import EvaluationConfig
    from mnmt_scale.evaluation.score import bleu_counts

    table = run_comparison(files, tmp_path / "out", Options(seeds=(1, 2)), quiet)["table"]

    def score(name: str, seed: int, direction: str) -> float:
        lines = (tmp_path / "out" / name / f"seed-{seed}" / "eval" / f"test.{direction}.hyp").read_text().split("\n")[:-1]
        return float(bleu(bleu_counts(lines, REFERENCES, "en", EvaluationConfig()).sum(axis=0)))

    differences = [score("t5", s, d) - score("t1", s, d) for s in (1, 2) for d in CLASSES]
    found = table["rows"][1]["groups"]["all"]["bleu"]["against_sentences"]
    assert found["difference"] == pytest.approx(np.mean(differences))
    assert found["seeds"] == [1, 2]
    reference = tmp_path / "out" / "t5" / "seed-1" / "eval" / "test.de-en.ref"
    reference.write_text(reference.read_text().replace("a0", "z0"))
    with pytest.raises(MnmtError, match=r"E603.*different lines of de-en"):
        run_comparison(files, tmp_path / "out", Options(seeds=(1, 2)), quiet)


def test_a_failure_is_told_and_the_others_still_run(files, tmp_path, processes):
    out = tmp_path / "out"
    processes.codes["train t1 seed-1"] = 2
    said: list[str] = []
    with pytest.raises(MnmtError, match=r"E604: t1 seed 1 failed at .*t1/seed-1\.log") as caught:
        run_comparison(files, out, Options(seeds=(1, 2)), said.append)
    assert caught.value.exit_code == 2
    assert any("MNMT-E501" in line for line in said)
    table = json.loads((out / "compare.json").read_text())
    assert table["unfinished"] == ["t1 seed 1"]
    assert {row["name"]: row["seeds"] for row in table["rows"]} == {"t1": [2], "t5": [1, 2]}
    assert table["rows"][1]["groups"]["all"]["bleu"]["against"]["seeds"] == [2]
    assert "Not finished, and left out: t1 seed 1." in (out / "compare.md").read_text()
    del processes.codes["train t1 seed-1"]
    processes.calls.clear()
    assert run_comparison(files, out, Options(seeds=(1, 2)), quiet)["table"]["unfinished"] == []
    assert processes.calls == [("train", "t1 seed-1"), ("evaluate", "t1 seed-1")]


def test_stop_ends_at_the_first_failure_and_an_evaluation_may_be_what_failed(files, tmp_path, processes):
    processes.codes["evaluate t1 seed-1"] = 1
    with pytest.raises(MnmtError, match="E604"):
        run_comparison(files, tmp_path / "out", Options(seeds=(1, 2), stop=True), quiet)
    assert processes.calls == [("train", "t1 seed-1"), ("evaluate", "t1 seed-1")]
    states = [state for _, state in plan_comparison(files, tmp_path / "out", Options(seeds=(1,)))]
    assert states == ["to evaluate", "to train"]


def test_a_limit_of_lines_is_another_evaluation(files, tmp_path, processes):
    run_comparison(files[:1], tmp_path / "out", Options(seeds=(1,)), quiet)
    result = run_comparison(files[:1], tmp_path / "out", Options(seeds=(1,), limit=30), quiet)
    assert processes.calls == [("train", "t1 seed-1"), ("evaluate", "t1 seed-1"), ("evaluate", "t1 seed-1")]
    assert result["table"]["limit"] == 30
    assert "test split, the first 30 lines of each direction, beam 5" in (tmp_path / "out" / "compare.md").read_text()


def test_an_evaluation_of_other_decoding_or_weights_is_done_again(files, tmp_path, processes):
    options = Options(seeds=(1,))
    run_comparison(files, tmp_path / "out", options, quiet)
    path = tmp_path / "out" / "t5" / "seed-1" / "eval" / "test.json"
    found = json.loads(path.read_text())
    for change in ({"decoding": {**found["decoding"], "beam": 1}}, {"weights": "ema"}, {"trained_steps": 2}):
        path.write_text(json.dumps({**found, **change}))
        processes.calls.clear()
        run_comparison(files, tmp_path / "out", options, quiet)
        assert processes.calls == [("evaluate", "t5 seed-1")]


@pytest.mark.parametrize("split", ["tset", "train"])
def test_a_split_that_is_none_is_refused_before_anything_is_trained(files, tmp_path, processes, split):
    with pytest.raises(MnmtError, match="E105"):
        run_comparison(files, tmp_path / "out", Options(split=split), quiet)
    assert processes.calls == []


def test_a_signalled_training_ends_the_comparison_which_then_goes_on(files, tmp_path, processes):
    processes.codes["train t5 seed-1"] = 75
    result = run_comparison(files, tmp_path / "out", Options(seeds=(1, 2)), quiet)
    assert result["outcome"]["interrupted"]
    assert processes.calls[-1] == ("train", "t5 seed-1")
    assert [row["name"] for row in result["table"]["rows"]] == ["t1"]


def test_two_comparisons_in_one_directory_are_refused(files, tmp_path, processes):
    lock = RunLock(tmp_path / "out")
    try:
        with pytest.raises(MnmtError, match=rf"E402: workflow directory in use by process {os.getpid()} on .*--out"):
            run_comparison(files, tmp_path / "out", Options(seeds=(1,)), quiet)
    finally:
        lock.release()
    assert processes.calls == []
    assert len(run_comparison(files, tmp_path / "out", Options(seeds=(1,)), quiet)["outcome"]["done"]) == 2


def test_only_evaluations_that_are_asked_for_are_forced(files, tmp_path, processes):
    run_comparison(files[:1], tmp_path / "out", Options(seeds=(1,)), quiet)
    options = Options(seeds=(1, 2), resources=Resources(options=("--quiet",)))
    run_comparison(files, tmp_path / "out", options, quiet)
    # three jobs are left; the finished one is none of Snakemake's
    assert processes.options == ["--quiet", "--forcerun", "evaluate_0", "evaluate_1", "evaluate_2"]


def test_a_run_of_other_settings_is_no_part_of_the_comparison(files, tmp_path, processes):
    run_comparison(files, tmp_path / "out", Options(seeds=(1,)), quiet)
    with pytest.raises(MnmtError, match=r"E603: the run has train.max_steps = 4, this comparison 5"):
        run_comparison(files, tmp_path / "out", Options(seeds=(1,), overrides=("train.max_steps=5",)), quiet)
    files[0].write_text(files[0].read_text().replace("temperature = 1.0", "temperature = 2.0"))
    with pytest.raises(MnmtError, match=r"E603.*sampling.temperature = 1.0, this comparison 2.0"):
        plan_comparison(files, tmp_path / "out", Options(seeds=(1,)))


def test_dry_run_lists_and_writes_nothing(files, tmp_path):
    out = tmp_path / "out"
    arguments = ["compare", *map(str, files), "--out", str(out), "--seeds", "1,2", "--dry-run", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    jobs = json.loads(result.stdout)["jobs"]
    assert [(job["name"], job["state"]) for job in jobs][:2] == [("t1 seed 1", "to train"), ("t5 seed 1", "to train")]
    assert len(jobs) == 4
    assert "train.seed=2" in jobs[2]["command"]
    assert not out.exists()
    with pytest.raises(MnmtError, match="E102.*--seeds"):
        CliRunner().invoke(app, [*arguments, "--seeds", "1,1"], catch_exceptions=False)


def test_a_real_comparison_of_two_files(tmp_path, monkeypatch):
    """Two trainings and evaluations as processes, on the toy corpus; the second call finds them finished."""
    root = make_toy(tmp_path)
    for name, temperature in (("t1", 1.0), ("t5", 5.0)):
        text = f'base = "toy.toml"\nname = "toy-{name}"\n[sampling]\ntemperature = {temperature}\n'
        (root / f"{name}.toml").write_text(text + "[train]\nmax_steps = 4\n[evaluation]\nbeam = 1\nmax_extra = 3\n")
    arguments = ["compare", str(root / "t1.toml"), str(root / "t5.toml"), "--out", str(root / "out"), "--seeds", "1", "--json"]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # what joining a process group here has left
        monkeypatch.delenv(name, raising=False)
    result = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert result["outcome"]["done"] == ["t1 seed 1", "t5 seed 1"]
    table = result["table"]
    assert [(row["name"], row["seeds"], len(row["directions"])) for row in table["rows"]] == [("t1", [1], 3), ("t5", [1], 3)]
    scores = json.loads((root / "out" / "t5" / "seed-1" / "eval" / "test.json").read_text())
    assert table["rows"][1]["groups"]["all"]["bleu"]["mean"] == scores["averages"]["all"]["bleu"]
    assert json.loads((root / "out" / "t1" / "seed-1" / "training.json").read_text())["steps"] == 4
    again = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert again["outcome"]["finished"] == ["t1 seed 1", "t5 seed 1"]
    assert again["table"] == table
