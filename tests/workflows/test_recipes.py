"""Every recipe loads, and says of the paper's experiments what the paper says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mnmt_scale import settings
from mnmt_scale.cli.workflow import app
from mnmt_scale.data.corpus import find_corpora
from mnmt_scale.data.synthetic import SyntheticConfig
from mnmt_scale.data.synthetic.world import construct
from mnmt_scale.evaluation.resources import check_classes, class_of
from mnmt_scale.tasks import directions_of
from mnmt_scale.train.config import RunConfig
from mnmt_scale.workflows.config import read_workflow
from mnmt_scale.workflows.ftac_plan import tasks_of
from mnmt_scale.workflows.plan import choose_baseline, read_entries

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PATTERNS = ("*.toml", "cats/*.toml", "compare/*.toml", "gpu/*.toml", "ftac/*-universal.toml")
RECIPES = sorted(path for pattern in PATTERNS for path in CONFIGS.glob(pattern))
WORKFLOWS = ("synthetic", "ted2020-o2m", "ted2020-m2o", "ted2020-m2m", "opus100")


def load(name: str) -> RunConfig:
    return settings.load(RunConfig, CONFIGS / name)


def names_of(config: RunConfig) -> list[str]:
    """Directions by the pairs that the recipe names."""
    pairs = config.data.corpora[0].pairs
    assert pairs is not None
    assert pairs == sorted(pairs)
    return [f"{s}-{t}" for s, t in directions_of(pairs, config.data.directions, config.data.pivot)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_loads_and_has_a_name_of_its_own(path):
    config = settings.load(RunConfig, path)
    names = [settings.read_table(other)["name"] for other in RECIPES if other != path and "name" in settings.read_table(other)]
    twins = ("synthetic-cats", "lafand-cats")  # one recipe under the name of a comparison
    if path.stem != "base" and config.name not in twins:
        assert config.name not in names


@pytest.mark.parametrize(
    ("recipe", "classes", "k", "batch_tokens", "steps", "dropout", "ffn"),
    [
        ("ted8-related", {"low": 4, "high": 4}, 4, 2**17, 50_000, 0.3, 1024),
        ("ted8-diverse", {"low": 4, "high": 4}, 4, 2**17, 50_000, 0.3, 1024),
        ("wmt10", {"low": 7, "medium": 2, "high": 1}, 4, 2**18, 300_000, 0.1, 2048),
        ("opus100", {"low": 18, "medium": 29, "high": 45}, 8, 2**18, 500_000, 0.1, 2048),
    ],
)
def test_the_paper_s_hyper_parameters(recipe, classes, k, batch_tokens, steps, dropout, ffn):
    config = load(f"cats/{recipe}.toml")
    names = names_of(config)
    assert len(names) == sum(classes.values())
    check_classes(names, config.data.pivot, config.evaluation)
    found = [class_of(name, 0, config.evaluation) for name in names]
    assert {c: found.count(c) for c in set(found)} == classes
    # every direction is named: no size decides
    assert [class_of(name, 10**9, config.evaluation) for name in names] == found
    assert (config.method.name, config.data.directions) == ("cats", "one-to-many")
    assert (config.sampling.tasks_per_batch, config.sampling.temperature, config.sampling.within) == (k, 1.0, "proportional")
    assert (config.batch.batch_tokens, config.train.max_steps) == (batch_tokens, steps)
    model = config.model
    assert (model.dropout, model.d_model, model.d_ffn) == (dropout, 512, ffn)
    assert (model.encoder_layers, model.decoder_layers, model.heads) == (6, 6, 4 if ffn == 1024 else 8)
    optimizer, schedule = config.engine.optimizer, config.engine.schedule
    assert (optimizer.name, optimizer.learning_rate, optimizer.beta1, optimizer.beta2) == ("adam", 0.0015, 0.9, 0.98)
    assert (schedule.name, schedule.warmup_steps, config.train.label_smoothing) == ("inverse_sqrt", 4000, 0.1)
    assert (config.evaluation.beam, config.evaluation.length_penalty, config.evaluation.weights) == (5, 1.0, "best")
    cats = config.method.cats
    assert [(i.from_step, i.every) for i in cats.schedule] == [(0, 10), (8000, 100), (16_000, 1000)]
    assert (cats.learning_rate, cats.initial_alpha) == (0.1, "1/N")


def test_classes_of_the_paper_s_tables():
    wmt = load("cats/wmt10.toml").evaluation
    assert [class_of(f"en-{c}", 0, wmt) for c in ("ar", "ro", "de")] == ["low", "medium", "high"]
    opus = load("cats/opus100.toml").evaluation
    assert [class_of(f"en-{c}", 0, opus) for c in ("yi", "tt", "zh")] == ["low", "medium", "high"]


def test_ablations_change_one_thing_each():
    def changed(name: str, base: str) -> set[str]:
        one, other = (load(f"cats/{n}.toml").model_dump() for n in (name, base))
        return {f"{s}.{k}" for s in one if isinstance(one[s], dict) for k in one[s] if one[s][k] != other[s][k]}

    assert changed("ablation-ln", "ablation-m2o") == {"model.norm_affine"}
    assert changed("ablation-m2o", "ted8-diverse") == {"data.directions"}
    assert changed("ablation-batch", "ted8-diverse") == {"batch.batch_tokens"}
    assert changed("ablation-m", "ted8-diverse") == {"method.cats"}
    sizes = {"encoder_layers", "decoder_layers", "d_model", "d_ffn", "heads"}
    assert changed("ablation-capacity", "ted8-diverse") == {f"model.{key}" for key in sizes}
    assert load("cats/ablation-ln.toml").model.norm_affine is False


def test_the_capacity_recipe_has_the_parameters_that_it_says():
    import torch

    from mnmt_scale.model.transformer import Transformer

    config = load("cats/ablation-capacity.toml")
    with torch.device("meta"):
        model = Transformer(config.model, config.data.tokenizer.vocabulary_size)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(297e6, rel=0.005)


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("cats-*.toml", ["cats", "chi-ibr", "gradnorm", "multidds", "t1", "t5", "tinf", "upgrad"]),
        ("lafand-*.toml", ["cats", "gradnorm", "t1", "t5", "upgrad"]),
    ],
)
def test_the_files_of_a_comparison_differ_in_method_and_sampling_alone(glob, names):
    paths = sorted((CONFIGS / "compare").glob(glob))
    entries = read_entries(paths)
    prefix = glob.split("*")[0]
    assert [entry.name for entry in entries] == [prefix + name for name in names]
    assert choose_baseline(entries, None).name == f"{prefix}t1"
    for entry in entries:
        for section in ("data", "batch", "model", "engine", "train", "evaluation"):
            assert getattr(entry.config, section) == getattr(entries[0].config, section), (entry.name, section)
        expected = {"t5": 5.0, "tinf": float("inf")}.get(entry.name.removeprefix(prefix), 1.0)
        assert entry.config.sampling.temperature == expected
        assert entry.config.sampling.model_copy(update={"temperature": 1.0}) == entries[0].config.sampling
    labels = {entry.name.removeprefix(prefix): entry.label for entry in entries}
    assert (labels["t5"], labels["upgrad"]) == ("joint, T = 5", "UPGrad, T = 1")


def test_the_two_trainings_on_one_gpu_differ_in_method_alone():
    joint, cats = (load(f"gpu/{name}.toml").model_dump() for name in ("joint", "cats"))
    assert {key for key in joint if joint[key] != cats[key]} == {"name", "method"}
    assert (joint["method"]["name"], cats["method"]["name"]) == ("joint", "cats")
    assert joint["model"] == settings.load(RunConfig, None, ["model.preset=ted", "model.dropout=0.1"]).model_dump()["model"]
    assert joint["train"]["max_minutes"] * 60 == pytest.approx(200, abs=0.1)
    assert cats["method"]["cats"]["schedule"] == [{"from_step": 0, "every": 10}]


def test_the_trainings_on_one_gpu_are_on_every_pair_with_english(real_text):
    config = load("gpu/joint.toml").data
    corpora = [c.model_copy(update={"path": str(real_text / Path(c.path).name)}) for c in config.corpora]
    found = find_corpora(config.model_copy(update={"corpora": corpora}))
    there = {d.name for name in ("lafand", "oldi") for d in (real_text / name / "supervised").iterdir()}
    assert {c.pair for c in found} == {pair for pair in there if {"en", "eng_Latn"} & set(pair.split("-"))}
    assert all(c.trained and {"dev", "test"} <= c.sources.keys() for c in found)
    targets = [name.split("-")[1] for name in config.tasks]
    assert (len(targets), targets.count("en"), targets.count("eng_Latn")) == (50, 10, 40)


def test_the_constructed_languages_are_15_to_1_in_all_three_classes():
    world = construct(settings.load(SyntheticConfig, CONFIGS / "synthetic" / "imbalanced.toml"))
    sizes = world.truth.sizes
    assert max(sizes.values()) == 15 * min(sizes.values())
    config = load("cats/synthetic.toml")
    found = [class_of(f"en-{code}", size, config.evaluation) for code, size in sizes.items()]
    assert (len(found), found.count("low"), found.count("medium"), found.count("high")) == (8, 3, 2, 3)
    assert config.data.corpora[0].path == "synthetic/imbalanced"


@pytest.mark.parametrize(
    ("recipe", "directions", "layers", "gpus", "systems"),
    [
        ("ted2020-o2m", 28, 4, 2, ["bilingual", "multilingual", "lec", "htac", "ftac"]),
        ("ted2020-m2o", 28, 4, 2, ["bilingual", "multilingual", "lec", "htac", "ftac", "rand", "temp", "fix"]),
        ("ted2020-m2m", 90, 6, 4, ["multilingual", "ftac"]),
    ],
)
def test_the_settings_of_the_ftac_paper(recipe, directions, layers, gpus, systems):
    workflow = read_workflow(CONFIGS / "ftac" / f"{recipe}.toml")
    tasks = tasks_of(workflow)
    assert len(tasks) == directions
    assert workflow.config.systems == systems
    assert workflow.config.resources.gpus == gpus
    assert (workflow.config.clustering.statistic, workflow.config.clustering.max_clusters) == ("sum", None)
    assert (workflow.config.tests is not None) == (recipe == "ted2020-m2o")
    for kind, config in workflow.trainings.items():
        held, tokenizer, model = config.data.hold_out, config.data.tokenizer, config.model
        assert (held.dev_sentences, held.test_sentences, held.by) == (4000, 4000, "pair")
        assert (tokenizer.vocabulary_size, tokenizer.model) == (32_000, "bpe")
        assert (config.sampling.temperature, config.batch.batch_tokens, config.engine.optimizer.name) == (5.0, 16_384, "adam")
        assert (model.encoder_layers, model.decoder_layers, model.d_model, model.d_ffn) == (layers, layers, 512, 1024)
        assert (config.method.ftac.decay, config.method.ftac.auxiliary) == (0.5, "fade")
        assert config.method.name == ("affinity" if kind == "universal" else "ftac")
    affinity = workflow.trainings["universal"].method.affinity
    assert (affinity.every_steps, affinity.split, affinity.change) == (2, "train", "absolute")
    # as in the paper, but where its random pairs would leave cells unmeasured
    assert affinity.affected == (10 if directions == 90 else 1)
    languages = {code for task in tasks for code in task.split("-")} - {"en"}
    assert languages >= {"es", "fr", "ar", "ko", "ru", "tr", "it", "ja", "he", "pt"}
    assert len(languages) == (10 if directions == 90 else 28)


@pytest.mark.parametrize("recipe", WORKFLOWS)
def test_every_workflow_is_listed_with_an_estimate_before_anything_starts(recipe, tmp_path, monkeypatch):
    arguments = ["ftac", str(CONFIGS / "ftac" / f"{recipe}.toml"), "--dry-run", "--out", str(tmp_path / "out")]
    monkeypatch.chdir(tmp_path)
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert list(tmp_path.iterdir()) == []
    config = read_workflow(CONFIGS / "ftac" / f"{recipe}.toml").config
    assert list(dict.fromkeys(row["system"] for row in found["trainings"])) == sorted(
        config.systems, key=lambda system: (system != "multilingual", config.systems.index(system))
    )
    known = [row for row in found["trainings"] if row["serves"]]
    assert all(row["hours"][0] == row["hours"][1] > 0 for row in known)
    open_ended = [row for row in found["trainings"] if not row["serves"]]
    assert {row["system"] for row in open_ended} == set(config.systems) - {"bilingual", "multilingual"}
    limit = config.clustering.max_clusters
    for row in open_ended:
        assert row["number"] == [1, limit if limit and row["system"] != "lec" else len(found["tasks"])]
    for key in ("number", "hours"):
        assert found[key] == pytest.approx([sum(row[key][end] for row in found["trainings"]) for end in (0, 1)])
    text = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert text.splitlines()[1].startswith("multilingual seed 1 cluster 0")
    assert "all that is not finished" in text


def test_the_synthetic_workflow_is_small_and_covers_what_the_table_needs():
    workflow = read_workflow(CONFIGS / "ftac" / "synthetic.toml")
    world = construct(settings.load(SyntheticConfig, CONFIGS / "ftac" / "synthetic-languages.toml"))
    assert sorted(map(len, world.truth.families.values())) == [1, 2, 3]
    assert workflow.config.families == f"{workflow.config.constructed.out}/truth.json"
    config = workflow.trainings["universal"]
    assert config.data.corpora[0].path == workflow.config.constructed.out
    assert tasks_of(workflow) == sorted(f"en-{code}" for code in world.truth.sizes)
    found = {class_of(f"en-{code}", size, config.evaluation) for code, size in world.truth.sizes.items()}
    assert found == {"low", "medium", "high"}
    assert workflow.config.clustering.max_clusters == len(world.truth.families)


def test_a_recipe_with_gpus_takes_them_unasked_also_from_slurm(monkeypatch):
    """What the estimate is for is what is run: without --gpus a job of Slurm would have none."""
    found = []

    def run_ftac(workflow, tasks, out, resources, say):
        found.append(resources)
        return {"out": str(out), "table": None, "interrupted": False}

    monkeypatch.setattr("mnmt_scale.workflows.ftac.run_ftac", run_ftac)
    for recipe, words, gpus in (
        ("opus100", ["--", "--profile", "launchers/slurm/profile"], (8, 8)),
        ("ted2020-o2m", ["--gpus", "8", "--cores", "16"], (8, 2)),
        ("ted2020-o2m", ["--gpus-per-training", "1"], (1, 1)),
    ):
        arguments = ["ftac", str(CONFIGS / "ftac" / f"{recipe}.toml"), *words]
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
        resources = found.pop()
        assert (resources.gpus, resources.gpus_per_training) == gpus
