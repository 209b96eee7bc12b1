"""The table of two trainings, from made-up runs: BLEU and p as sacrebleu and the bootstrap have them, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sacrebleu
from typer.testing import CliRunner

from mnmt_scale.bench.quality import bench_quality, report
from mnmt_scale.cli.bench import app
from mnmt_scale.errors import MnmtError

LINES = 40
REFERENCES = {
    "fr-en": [f"the {i} small cats sat on mat {i % 7} ." for i in range(LINES)],
    "ace_Arab-eng_Latn": [f"all of {i} rivers run into sea {i % 5} ." for i in range(LINES)],
    "bam_Latn-eng_Latn": [f"one day {i} men went {i % 3} times out ." for i in range(LINES)],
}


def translations(direction: str, wrong: int) -> list[str]:
    """The references with every ``wrong``-th line spoilt."""
    return [line if i % wrong else f"no {i}" for i, line in enumerate(REFERENCES[direction])]


def make_run(path: Path, method: str, wrong: dict[str, int], *, ended: bool = True, beam: int = 5) -> Path:
    names = ", ".join(f'"{name}"' for name in REFERENCES)
    path.mkdir()
    text = f'name = "r"\n[data]\ntasks = [{names}]\n[method]\nname = "{method}"\n'
    text += f"[train]\nmax_minutes = 3.0\n[evaluation]\nbeam = {beam}\n"
    (path / "config.toml").write_text(text)
    lines = [{"kind": "train", "step": 50, "tokens": 1000, "seconds": 3.0}, {"kind": "valid", "step": 100, "loss": 4.5}]
    lines += [{"kind": "train", "step": 100, "tokens": 3000, "seconds": 7.0}, {"kind": "valid", "step": 100, "loss": 4.25}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')
    if ended:
        (path / "training.json").write_text(json.dumps({"steps": 100, "stopped": "minutes"}))
    (path / "eval").mkdir()
    for direction, every in wrong.items():
        write(path, direction, "ref", REFERENCES[direction])
        write(path, direction, "hyp", translations(direction, every))
    return path


def write(run: Path, direction: str, kind: str, lines: list[str]) -> None:
    (run / "eval" / f"test.{direction}.{kind}").write_text("".join(line + "\n" for line in lines))


def found(rows, case, candidate, metric):
    (one,) = [r for r in rows if (r["case"], r["candidate"], r["metric"]) == (case, candidate, metric)]
    return one


@pytest.fixture
def runs(tmp_path):
    """The second is better at one direction, the same at another, worse at the third."""
    first = make_run(tmp_path / "a", "joint", {"fr-en": 3, "ace_Arab-eng_Latn": 4, "bam_Latn-eng_Latn": 9})
    return [first, make_run(tmp_path / "b", "cats", {"fr-en": 10, "ace_Arab-eng_Latn": 4, "bam_Latn-eng_Latn": 8})]


def test_bleu_of_each_direction_is_sacrebleu_s_and_the_means_are_over_directions(runs):
    rows = list(bench_quality(runs))
    wrong = {"joint": (3, 4, 9), "cats": (10, 4, 8)}
    bleu = {
        name: [
            sacrebleu.corpus_bleu(translations(d, every), [REFERENCES[d]]).score
            for d, every in zip(REFERENCES, spoilt, strict=True)
        ]
        for name, spoilt in wrong.items()
    }
    for name in wrong:
        for direction, score in zip(REFERENCES, bleu[name], strict=True):
            assert found(rows, direction, name, "BLEU")["value"] == pytest.approx(score, abs=1e-9)
        assert found(rows, "mean of all", name, "BLEU")["value"] == pytest.approx(sum(bleu[name]) / 3)
        assert found(rows, "mean into eng_Latn", name, "BLEU")["value"] == pytest.approx(sum(bleu[name][1:]) / 2)
        assert found(rows, "mean into en", name, "BLEU")["value"] == pytest.approx(bleu[name][0])
    for i, direction in enumerate(REFERENCES):
        difference = found(rows, direction, "cats", "BLEU over joint")
        assert difference["value"] == pytest.approx(bleu["cats"][i] - bleu["joint"][i])
        assert difference["settings"]["lines"] == LINES
        assert difference["settings"]["low"] <= difference["value"] <= difference["settings"]["high"]
    better, same = (found(rows, d, "cats", "BLEU over joint")["settings"] for d in ("fr-en", "ace_Arab-eng_Latn"))
    assert better["p"] < 0.05
    assert same["p"] == 1.0
    mean = found(rows, "mean of all", "cats", "BLEU over joint")
    assert mean["value"] == pytest.approx((sum(bleu["cats"]) - sum(bleu["joint"])) / 3)
    assert mean["settings"]["directions"] == mean["settings"]["asked"] == 3


def test_what_the_trainings_did_is_in_their_log_of_which_a_torn_line_is_left_out(runs):
    rows = list(bench_quality(runs))
    values = {metric: found(rows, "training", "cats", metric)["value"] for metric in ("updates", "target tokens", "dev loss")}
    assert values == {"updates": 100, "target tokens": 3000, "dev loss": 4.25}
    assert found(rows, "training", "joint", "target tokens per second")["value"] == 300.0
    assert found(rows, "training", "joint", "updates")["settings"] == {"stopped": "minutes", "max_minutes": 3.0}


def test_a_direction_that_one_run_lacks_is_a_row_that_says_so_and_is_in_no_mean(runs):
    (runs[1] / "eval" / "test.fr-en.hyp").unlink()
    rows = list(bench_quality(runs))
    assert found(rows, "fr-en", "joint", "BLEU")["value"] > 0
    for metric in ("BLEU", "BLEU over joint"):
        missing = found(rows, "fr-en", "cats", metric)
        assert (missing["value"], missing["settings"]["error"]) == (None, "not evaluated: cats")
    mean = found(rows, "mean of all", "joint", "BLEU")
    assert (mean["settings"]["directions"], mean["settings"]["asked"]) == (2, 3)
    assert not [r for r in rows if r["case"] == "mean into en"]
    assert "not evaluated: cats" in report(rows)


def test_other_lines_of_a_direction_are_not_compared(runs):
    for kind, lines in (("ref", REFERENCES["fr-en"]), ("hyp", translations("fr-en", 10))):
        write(runs[1], "fr-en", kind, lines[:20])
    rows = list(bench_quality(runs))
    difference = found(rows, "fr-en", "cats", "BLEU over joint")
    assert difference["value"] is None
    assert "different lines" in difference["settings"]["error"]
    assert found(rows, "fr-en", "cats", "BLEU")["value"] > found(rows, "fr-en", "joint", "BLEU")["value"]
    assert found(rows, "mean of all", "cats", "BLEU")["settings"]["directions"] == 2


def test_a_training_that_failed_leaves_the_other_s_scores(runs, tmp_path):
    unfinished = make_run(tmp_path / "c", "gradnorm", {"fr-en": 5}, ended=False)
    rows = list(bench_quality([tmp_path / "nothing", runs[1], unfinished]))
    gone = found(rows, "training", "nothing", "updates")
    assert gone["value"] is None
    assert "not a run directory" in gone["settings"]["error"]
    stopped = found(rows, "training", "gradnorm", "updates")
    assert (stopped["value"], stopped["settings"]["error"]) == (100, "the training did not come to its end")
    assert found(rows, "fr-en", "cats", "BLEU")["value"] > found(rows, "fr-en", "gradnorm", "BLEU")["value"]
    assert found(rows, "fr-en", "cats", "BLEU over nothing")["settings"]["error"] == "not evaluated: nothing"
    assert not [r for r in rows if r["case"].startswith("mean")]
    report(rows)


def test_two_runs_of_one_method_are_called_by_their_directories(runs, tmp_path):
    again = make_run(tmp_path / "again", "joint", {"fr-en": 4})
    assert {r["candidate"] for r in bench_quality([runs[0], again])} == {"a", "again"}


def test_runs_that_are_decoded_differently_are_refused(runs, tmp_path):
    other = make_run(tmp_path / "c", "gradnorm", {"fr-en": 4}, beam=1)
    with pytest.raises(MnmtError, match=r"evaluation\.beam differs") as error:
        list(bench_quality([runs[0], other]))
    assert error.value.code == "E603"


def test_the_command_writes_a_line_for_each_direction(runs, tmp_path):
    result = CliRunner().invoke(app, ["quality", *map(str, runs), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert {r["bench"] for r in document["rows"]} == {"quality"}
    lines = (tmp_path / "out" / "quality.md").read_text().splitlines()
    (line,) = [line for line in lines if "| ace_Arab-eng_Latn" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == cells[2]
    assert cells[3:] == ["+0.00", "1.000", ""]
    assert any("cats over joint" in line for line in lines)


def test_a_run_that_is_not_there_shows_in_the_exit_code(runs, tmp_path):
    words = ["quality", str(runs[0]), str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 1
    assert "nowhere" in result.stderr
    assert (tmp_path / "out" / "quality.md").is_file(), "the other's scores are kept"
    with pytest.raises(MnmtError, match=r"E103.*nowhere"):
        CliRunner().invoke(app, ["quality", str(tmp_path / "nowhere")], catch_exceptions=False)
