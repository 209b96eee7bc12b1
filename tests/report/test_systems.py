"""The table of systems: means over seeds, the paper's differences and marks, what is refused and what is left out."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.report.systems import collect_systems, mark
from mnmt_scale.report.systems_text import systems_csv, systems_markdown
from tests.support.fake_workflow import CONFIG, LINES, TASKS, bleu_of, fake_workflow, write_evaluation

SYSTEMS = ("lec", "multilingual", "ftac")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workflow of two seeds without runs, and its table."""
    out = tmp_path_factory.mktemp("workflow") / "out"
    workflow = fake_workflow(out, SYSTEMS, runs=False)
    return out, workflow, collect_systems(out, workflow)


@pytest.fixture
def copied(made, tmp_path):
    """A copy to damage."""
    shutil.copytree(made[0], tmp_path / "out")
    return tmp_path / "out", made[1]


def evaluation(out, system, seed, stem="test"):
    return json.loads((out / system / f"seed-{seed}" / "eval" / f"{stem}.json").read_text())["directions"]


def changed(out, system, seed, **changes):
    """Writes the evaluation of a bundle with other values."""
    path = out / system / f"seed-{seed}" / "eval" / "test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_scores_are_means_over_seeds_and_directions_in_the_papers_order(made):
    out, _, table = made
    assert [row["system"] for row in table["systems"]] == ["multilingual", "lec", "ftac"]  # not as the workflow names them
    assert [row["direction"] for row in table["directions"]] == [
        "en-de",
        "en-es",
        "en-ja",
        "en-it",
        "en-sv",
        "en-da",
    ]  # by size
    for metric in ("bleu", "chrf", "nll"):
        for row in table["directions"]:
            found = [evaluation(out, "lec", seed)[row["direction"]][metric] for seed in (1, 2)]
            assert row[metric]["lec"] == pytest.approx(np.mean(found))
    every = [evaluation(out, "ftac", seed)[task]["bleu"] for seed in (1, 2) for task in TASKS]
    ftac = table["systems"][2]
    assert ftac["groups"]["all"]["bleu"]["mean"] == pytest.approx(np.mean(every))
    assert ftac["groups"]["low"]["bleu"]["by_seed"][2] == pytest.approx(
        np.mean([evaluation(out, "ftac", 2)[task]["bleu"] for task in ("en-da", "en-it", "en-sv")])
    )
    assert (ftac["clusters"], ftac["helpers"]) == ([3, 3], [3, 3])


def test_differences_are_those_of_a_bootstrap_by_hand(made):
    out, _, table = made
    deltas = {}
    for number, task in enumerate(sorted(TASKS)):
        rng = np.random.default_rng([CONFIG.bootstrap_seed, number])
        times = rng.multinomial(LINES, np.full(LINES, 1 / LINES), size=CONFIG.bootstrap_samples)
        draws = [np.arange(LINES), *(np.repeat(np.arange(LINES), row) for row in times)]
        folders = {(s, n): out / s / f"seed-{n}" / "eval" for s in ("ftac", "lec") for n in (1, 2)}
        scores = {key: bleu_of(folder, "test", task, draws) for key, folder in folders.items()}
        deltas[task] = sum(scores["ftac", seed] - scores["lec", seed] for seed in (1, 2)) / 2
        if number:
            continue
        found = next(row for row in table["directions"] if row["direction"] == task)["deltas"]["lec"]
        resampled = deltas[task][1:]
        assert found["difference"] == pytest.approx(deltas[task][0])
        assert [found["low"], found["high"]] == pytest.approx(np.quantile(resampled, [0.025, 0.975]))
        far = np.abs(resampled - resampled.mean()) >= abs(deltas[task][0])
        assert found["p"] == pytest.approx((1 + far.sum()) / (len(resampled) + 1))
        assert found["seeds"] == [1, 2]
    whole = np.mean(list(deltas.values()), axis=0)
    average = table["average"]["deltas"]["lec"]
    assert average["difference"] == pytest.approx(whole[0])
    assert average["low"] == pytest.approx(np.quantile(whole[1:], 0.025))


def test_a_difference_counts_only_seeds_that_both_have(copied):
    out, workflow = copied
    (out / "lec" / "seed-1" / "eval" / "test.json").unlink()
    table = collect_systems(out, workflow)
    row = next(row for row in table["directions"] if row["direction"] == "en-es")
    own, base = (evaluation(out, system, 2)["en-es"]["bleu"] for system in ("ftac", "lec"))
    assert row["deltas"]["lec"]["difference"] == pytest.approx(own - base)
    assert row["deltas"]["lec"]["seeds"] == [2]
    assert row["deltas"]["multilingual"]["seeds"] == [1, 2]
    assert row["bleu"]["lec"] == pytest.approx(base)
    assert table["unfinished"] == ["LEC seed 1"]
    assert "Not finished, and left out: LEC seed 1." in systems_markdown(table)


@pytest.mark.parametrize(
    ("p", "sign"), [(0.0099, "\N{DAGGER}"), (0.01, "\N{DOUBLE DAGGER}"), (0.0499, "\N{DOUBLE DAGGER}"), (0.05, ""), (1.0, "")]
)
def test_marks_of_the_paper(p, sign):
    assert mark({"p": p, "difference": -1.0}) == sign
    assert mark(None) == ""


def test_a_system_like_another_gains_nothing(copied):
    out, workflow = copied
    for seed in (1, 2):
        shutil.rmtree(out / "lec" / f"seed-{seed}" / "eval")
        shutil.copytree(out / "ftac" / f"seed-{seed}" / "eval", out / "lec" / f"seed-{seed}" / "eval")
    table = collect_systems(out, workflow)
    assert all(row["deltas"]["lec"]["p"] == 1.0 and row["deltas"]["lec"]["difference"] == 0.0 for row in table["directions"])
    cells = [line.split("|")[-3].strip() for line in systems_markdown(table).splitlines() if line.startswith("| en-")]
    assert cells == ["+0.0"] * 6


def test_what_does_not_compare_is_refused(copied):
    out, workflow = copied
    reference = out / "lec" / "seed-2" / "eval" / "test.en-it.ref"
    lines = reference.read_text().splitlines(keepends=True)
    reference.write_text("".join(["other words\n", *lines[1:]]))
    with pytest.raises(MnmtError, match="different lines of en-it") as caught:
        collect_systems(out, workflow)
    assert caught.value.code == "E603"
    reference.write_text("".join(lines))
    changed(out, "lec", 2, decoding={**CONFIG.model_dump(mode="json"), "beam": 1})
    with pytest.raises(MnmtError, match="beam = 1, the first system with 5"):
        collect_systems(out, workflow)
    rows = evaluation(out, "lec", 2)
    changed(out, "lec", 2, decoding=CONFIG.model_dump(mode="json"), directions={t: rows[t] for t in TASKS if t != "en-ja"})
    with pytest.raises(MnmtError, match="differ from the first system's: en-ja"):
        collect_systems(out, workflow)


def test_other_limits_parts_and_damaged_files_are_left_out(copied):
    out, workflow = copied
    changed(out, "lec", 1, limit=10)
    changed(out, "lec", 2, only=["en-da"])
    (out / "multilingual" / "seed-1" / "eval" / "test.json").write_text("{")
    table = collect_systems(out, workflow)
    assert table["unfinished"] == ["Multi. seed 1", "LEC seed 1", "LEC seed 2"]
    assert table["baselines"] == ["multilingual"]
    assert collect_systems(out, {**workflow, "limit": 10})["systems"][0]["system"] == "lec"
    assert collect_systems(out, {**workflow, "limit": 10})["baselines"] == []
    assert collect_systems(out, {**workflow, "limit": 11}) is None
    assert collect_systems(out, {}) is None


def test_test_sets_of_another_corpus_make_a_table_of_their_own(copied):
    out, workflow = copied
    for system, share in (("multilingual", 0.5), ("ftac", 0.1)):
        write_evaluation(out / system / "seed-1" / "eval", "opus.test", {"en-da": share, "en-de": share}, limit=LINES)
    table = collect_systems(out, workflow)
    other = table["second"]["opus"]
    assert [row["direction"] for row in other["directions"]] == ["en-de", "en-da"]
    assert other["directions"][0]["deltas"]["multilingual"]["p"] < 0.05
    assert other["split"] == "opus.test"
    assert len(table["directions"]) == 6
    text = systems_markdown(table)
    assert "Test sets of opus:" in text
    assert f"opus.test split, the first {LINES} lines" in text
    rows = [row for row in csv.DictReader(systems_csv(table).splitlines()) if row["split"] == "opus.test"]
    assert {row["system"] for row in rows} == {"multilingual", "ftac"}


def test_markdown_and_csv_hold_the_numbers_of_the_table(made):
    _, _, table = made
    lines = systems_markdown(table).splitlines()
    head, average = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], lines[8]))
    assert head == ["BLEU", "sentences", "Multi.", "LEC", "FTAC", "FTAC - LEC", "FTAC - Multi."]
    means = [row["groups"]["all"]["bleu"]["mean"] for row in table["systems"]]
    gain = table["average"]["deltas"]["multilingual"]
    assert average[0] == "Average (6)"
    assert average[2:5] == [f"{mean:.1f}" for mean in means]
    assert average[6] == f"{gain['difference']:+.1f}\N{DAGGER}"
    assert gain["p"] == pytest.approx(1 / (CONFIG.bootstrap_samples + 1))
    rows = list(csv.DictReader(systems_csv(table).splitlines()))
    assert len(rows) == 3 * 3 * (6 + 4)  # systems, metrics, directions and means of all and of three classes
    tested = [row for row in rows if row["p_lec"]]
    assert [row["direction"] for row in tested] == [*(row["direction"] for row in table["directions"]), "mean of all"]
    assert {(row["system"], row["metric"]) for row in tested} == {("ftac", "bleu")}
    assert float(tested[-1]["difference_multilingual"]) == pytest.approx(gain["difference"])


def test_one_seed_has_no_interval_and_an_unknown_system_its_own_name(tmp_path):
    workflow = fake_workflow(tmp_path / "out", ("ftac",), (3,), runs=False)
    shutil.copytree(tmp_path / "out" / "ftac", tmp_path / "out" / "mine")
    table = collect_systems(tmp_path / "out", {**workflow, "systems": ["mine", "ftac"]})
    assert [row["label"] for row in table["systems"]] == ["FTAC", "mine"]
    assert table["baselines"] == []
    assert table["systems"][0]["groups"]["all"]["bleu"]["low"] is None
    text = systems_markdown(table)
    assert "FTAC -" not in text
    assert "+-" not in text


def test_the_cost_of_a_system_is_that_of_all_its_models(tmp_path):
    workflow = fake_workflow(tmp_path / "out", ("ftac",), (1,))
    (row,) = collect_systems(tmp_path / "out", workflow)["systems"]
    tokens = 0
    for k in range(3):
        lines = (tmp_path / "out/ftac/seed-1" / f"cluster-{k}" / "metrics.jsonl").read_text().splitlines()
        tokens += [json.loads(line) for line in lines if '"train"' in line][-1]["tokens"]
    assert row["target_tokens"] == [tokens]
    shutil.rmtree(tmp_path / "out/ftac/seed-1/cluster-1")
    assert collect_systems(tmp_path / "out", workflow)["systems"][0]["target_tokens"] == [None]


def test_a_second_corpus_on_unlike_lines_costs_its_own_table_alone(copied):
    out, workflow = copied
    for system, share in (("multilingual", 0.5), ("ftac", 0.1)):
        write_evaluation(out / system / "seed-1" / "eval", "opus.test", {"en-da": share, "en-de": share}, limit=LINES)
    lines = out / "ftac" / "seed-1" / "eval" / "opus.test.en-da.ref"
    lines.write_text(lines.read_text().upper())
    table = collect_systems(out, workflow)
    assert len(table["directions"]) == 6
    assert table["second"] == {}
    (said,) = table["left_out"]
    assert said.startswith("No table of the test sets of opus: the runs were evaluated on different lines of en-da")
    assert said in systems_markdown(table)
