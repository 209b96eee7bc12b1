"""Probes of a toy training: during it, of its run, of fresh weights; the file, the metrics, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from mnmt_scale.engine.checkpoint import load_weights
from mnmt_scale.errors import MnmtError
from mnmt_scale.methods.cats.similarity import class_means, cosine
from mnmt_scale.probes import TENSORS, read_probe, write_probe
from mnmt_scale.tasks import TaskSet
from mnmt_scale.train.probe import shape_of
from mnmt_scale.train.probe_run import probe
from mnmt_scale.train.train import train
from tests.support.toy import load, mnmt

QUICK = ("probe.sentences=10", "probe.lanczos_steps=4", "probe.hutchinson_samples=2")
CLASSES = "evaluation.classes={high=['af-en'], low=['de-en', 'no-en']}"


def metrics(run, kind):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.fixture(scope="module")
def probed(toy, tmp_path_factory):
    """A training with probes, and the same without."""
    root = tmp_path_factory.mktemp("probed")
    every = ("probe.gradients_every=4", "probe.curvature_every=8")
    train(load(toy, *QUICK, *every, CLASSES, "model.dropout=0.1"), root / "probed", "never")
    train(load(toy, *QUICK, CLASSES, "model.dropout=0.1"), root / "plain", "never")
    return root


def test_training_with_probes_gives_the_weights_of_one_without(probed):
    with_probes, without = (load_weights(probed / name, "last") for name in ("probed", "plain"))
    assert all(torch.equal(with_probes[name], without[name]) for name in without)
    assert not (probed / "plain" / "probes").exists()


def test_files_and_metrics_of_a_training_agree(probed):
    run = probed / "probed"
    names = sorted(p.name for p in (run / "probes").iterdir())
    assert names == [
        "curvature-step-000008.safetensors",
        "gradients-step-000004.safetensors",
        "gradients-step-000008.safetensors",
    ]
    lines = metrics(run, "gradients")
    assert [row["step"] for row in lines] == [4, 8]
    for row in lines:
        file = read_probe(run / "probes" / f"gradients-step-{row['step']:06d}.safetensors", "gradients")
        assert (file.about["step"], file.about["split"], file.about["directions"]) == (row["step"], "train", "many-to-one")
        assert file.about["classes"] == {"af-en": "high", "de-en": "low", "no-en": "low"}
        gram, groups = file.tensors["gram"], file.about["groups"]
        assert groups[-1] == "all"
        torch.testing.assert_close(gram[:-1].sum(dim=0), gram[-1])
        assert torch.equal(file.tensors["cosine"], cosine(gram))
        for g, group in enumerate(groups):
            assert row["groups"][group]["cosine"] == class_means(file.tensors["cosine"][g], ["high", "low", "low"])
            assert set(row["groups"][group]["magnitude"]) == {"all", "high-low", "low-low"}
    (line,) = metrics(run, "curvature")
    file = read_probe(run / "probes" / names[0], "curvature")
    for i, name in enumerate(file.about["tasks"]):
        assert line["directions"][name] == {k: float(file.tensors[k][i]) for k in ("top", "largest", "smallest", "trace")}
    assert file.about["product"] == "replicated"
    assert file.about["run"] == "toy"


def test_a_run_probed_afterwards_is_what_it_was_during_training(probed, tmp_path):
    """The weights of step 4 from the checkpoint, at another stage: the numbers of the probe that training made."""
    during = read_probe(probed / "probed" / "probes" / "gradients-step-000004.safetensors")
    later = probe("gradients", probed / "probed", ["engine.zero_stage=3"], weights="step-4", out=tmp_path / "x.safetensors")
    file = read_probe(tmp_path / "x.safetensors")
    assert file.about["step"] == 4
    assert file.about["tokens"] == json.loads(state_of(probed / "probed", 4))["caller"]["progress"]["tokens"] > 0
    torch.testing.assert_close(file.tensors["gram"], during.tensors["gram"], rtol=1e-4, atol=1e-9)
    assert later.summary["groups"].keys() == set(file.about["groups"])
    same = read_probe(probed / "probed" / "probes" / "curvature-step-000008.safetensors")
    again = probe("curvature", probed / "plain", weights="last")
    assert again.path == probed / "plain" / "probes" / "curvature-step-000008.safetensors"
    torch.testing.assert_close(read_probe(again.path).tensors["top"], same.tensors["top"], rtol=1e-5, atol=0)
    shutil.rmtree(probed / "plain" / "probes")


def state_of(run, step):
    return (run / "checkpoints" / f"step-{step:06d}" / "state.json").read_text()


def test_the_command_on_fresh_weights(toy, tmp_path):
    out = tmp_path / "fresh.safetensors"
    some = ["--set", "probe.directions=['af-en','de-en']", "--set", "probe.split=dev", "--set", "probe.sentences=5"]
    done = mnmt("probe", "gradients", toy / "toy.toml", *some, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["file"] == str(out)
    assert (result["step"], result["tokens"], result["tasks"]) == (0, 0, ["af-en", "de-en"])
    assert result["groups"]["all"]["cosine"]["all"] == pytest.approx(float(read_probe(out).tensors["cosine"][-1, 0, 1]))
    assert "gradient of de-en (2 of 2)" in done.stderr


def test_gradients_of_a_probe_are_those_of_the_model_alone(toy, tmp_path):
    """Against autograd on a plain model with the same fresh weights and the same sentences, cut into micro-batches or not."""
    from mnmt_scale.data.store import TokenStore
    from mnmt_scale.data.stream import evaluation_batches
    from mnmt_scale.model.transformer import Transformer
    from mnmt_scale.train.train import resolve_tasks

    config = load(toy, *QUICK)
    out = tmp_path / "fresh.safetensors"
    probe("gradients", toy / "toy.toml", [*QUICK, "probe.batch_tokens=64"], out=out)
    gram = read_probe(out).tensors["gram"][-1]
    store = TokenStore.open(config.data.store)
    torch.manual_seed(config.train.seed)
    model = Transformer(config.model, store.tokenizer.vocabulary_size, pad_id=store.tokenizer.pad).eval()
    gradients = []
    for task in resolve_tasks(config, store):
        (batch,) = evaluation_batches(store, task, "train", max_tokens=256, batch_tokens=10**6, limit=10)
        total = model(batch, (1.0 / batch.step_tokens[0],)).total
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, list(model.parameters()))]).double())
    expected = torch.stack(gradients) @ torch.stack(gradients).t()
    torch.testing.assert_close(gram, expected, rtol=1e-5, atol=0)


def test_a_direction_without_the_split_is_left_out_or_refused_by_name(toy, tmp_path):
    out = tmp_path / "x.safetensors"
    assert probe("gradients", toy / "toy.toml", [*QUICK, "probe.split=dev"], out=out).about["tasks"] == ["af-en", "de-en"]
    with pytest.raises(MnmtError, match=r"E105.*no-en has no dev"):
        probe("gradients", toy / "toy.toml", ["probe.split=dev", "probe.directions=['no-en']"], out=out)
    with pytest.raises(MnmtError, match=r"E105.*'af-xx' is not trained.*af-en"):
        probe("gradients", toy / "toy.toml", ["probe.directions=['af-xx']"], out=out)


def test_what_cannot_be_measured_is_refused(toy, probed, tmp_path):
    run, out = probed / "probed", tmp_path / "x.safetensors"
    with pytest.raises(MnmtError, match=r"E403.*'step-5'"):
        probe("gradients", run, weights="step-5", out=out)
    with pytest.raises(MnmtError, match=r"E403.*'bset'.*'best'"):
        probe("gradients", run, weights="bset", out=out)
    with pytest.raises(MnmtError, match="E103"):
        probe("gradients", toy / "nowhere.toml", out=out)
    with pytest.raises(MnmtError, match="E407"):
        probe("gradients", probed, out=out)
    with pytest.raises(MnmtError, match=r"E405.*fc1"):
        probe("gradients", run, ["model.d_ffn=64"], out=out)
    with pytest.raises(MnmtError, match=r"E507.*turned off"):
        probe("gradients", probed / "plain", ["engine.task_gradients.route=off"], out=out)
    (tmp_path / "file").touch()
    with pytest.raises(MnmtError, match="E401"):
        probe("gradients", run, QUICK, out=tmp_path / "file" / "x.safetensors")
    assert not out.exists()


def curvature(names=("a-en", "b-en")):
    about = dict(kind="curvature", step=3, split="train", sentences=5, tasks=list(names), run="r", tokens=7)
    about |= dict(classes=dict.fromkeys(names, "low"), directions="many-to-one", product="replicated")
    return about, {name: torch.arange(len(names), dtype=torch.float64) for name in TENSORS["curvature"]}


def test_a_probe_file_comes_back_as_it_was(tmp_path):
    about, tensors = curvature()
    tensors["trace"][1] = float("nan")
    write_probe(tmp_path / "probes" / "x.safetensors", about, tensors)
    file = read_probe(tmp_path / "probes" / "x.safetensors")
    assert file.about == {**about, "version": 1}
    assert all(np.array_equal(file.tensors[n], tensors[n], equal_nan=True) for n in tensors)
    assert [p.name for p in (tmp_path / "probes").iterdir()] == ["x.safetensors"]


def test_what_is_no_probe_file_is_refused(tmp_path, toy):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    about, tensors = curvature()
    cases = {
        "without a probe's metadata": (tensors, {"format": "pt"}),
        "version 2": (tensors, {**about, "version": 2}),
        "a probe of 'fisher'": (tensors, {**about, "version": 1, "kind": "fisher"}),
        "lacks top": ({n: t for n, t in tensors.items() if n != "top"}, {**about, "version": 1}),
        "lacks tasks": (tensors, {k: v for k, v in {**about, "version": 1}.items() if k != "tasks"}),
        "do not fit its 3 directions": (tensors, {**curvature("abc")[0], "version": 1}),
        "one of its tasks is there twice": (tensors, {**about, "version": 1, "tasks": about["tasks"][:1] * 2}),
    }
    for text, (content, head) in cases.items():
        save_file(content, path, {"probe": json.dumps(head)} if "kind" in head else head)
        with pytest.raises(MnmtError, match=f"E605: .*{text}"):
            read_probe(path)
    write_probe(path, about, tensors)
    with pytest.raises(MnmtError, match=r"E605.*'curvature', not of gradients"):
        read_probe(path, "gradients")
    path.write_bytes(path.read_bytes()[:-9])
    for bad in (path, toy / "toy.toml", tmp_path / "nothing.safetensors"):
        with pytest.raises(MnmtError, match=f"E605.*{bad.name}"):
            read_probe(bad)


def test_directions_are_named_by_their_shape():
    def shape(*names):
        return shape_of(list(TaskSet([tuple(n.split("-")) for n in names])), "en")

    assert shape("de-en", "fr-en") == shape("de-en") == "many-to-one"
    assert shape("en-de", "en-fr") == shape("en-fr") == "one-to-many"
    assert shape("en-de", "fr-en") == "many-to-many"
