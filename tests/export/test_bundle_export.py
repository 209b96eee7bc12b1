"""Exports of bundles: every model in a directory of its own, the groups file beside them, all or nothing."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from mnmt_scale.cli.main import main
from mnmt_scale.errors import MnmtError
from mnmt_scale.export import plain
from mnmt_scale.export.export import export
from mnmt_scale.groups import read_groups
from mnmt_scale.runs import open_run
from tests.support.bundles import make_bundle, make_workflow


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    directory = tmp_path_factory.mktemp("workflow")
    make_bundle(directory)
    return make_workflow(directory)


def test_every_model_is_exported_with_the_groups(workflow, tmp_path, capsys):
    out, bundle = tmp_path / "out", workflow / "ftac" / "seed-1"
    with pytest.raises(SystemExit) as left:
        main(["export", str(workflow), "--to", "safetensors", "--out", str(out)])
    printed = capsys.readouterr()
    assert left.value.code == 0, printed.err
    assert [line.split(":")[0] for line in printed.out.splitlines()] == [str(out / f"cluster-{k}") for k in range(3)]
    assert sorted(p.name for p in out.iterdir()) == ["cluster-0", "cluster-1", "cluster-2", "export.json", "groups.json"]
    assert read_groups(out / "groups.json").grouping == read_groups(bundle / "groups.json").grouping
    record = json.loads((out / "export.json").read_text())
    assert record["routes"] == {"de-en": "cluster-0", "en-de": "cluster-2", "fr-en": "cluster-1", "it-en": "cluster-0"}
    for model, one in record["models"].items():
        assert one == json.loads((out / model / "export.json").read_text())
        weights = load_file(out / model / "model.safetensors")
        assert all(torch.equal(t, weights[n]) for n, t in open_run(bundle / model).model.state_dict().items())


def test_one_model_that_fails_its_check_keeps_all_from_being_published(workflow, tmp_path, monkeypatch):
    def fails_late(run, directory):
        if directory.name == "cluster-2":
            raise MnmtError("E702", "differs", where=str(directory))
        return check(run, directory)

    check = plain.check_plain
    monkeypatch.setattr(plain, "check_plain", fails_late)
    with pytest.raises(MnmtError, match=rf"E702.*{tmp_path}/out/cluster-2"):
        export(workflow, "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_stays_without_force(workflow, tmp_path):
    export(workflow / "ftac" / "seed-1", "safetensors", tmp_path / "out")
    with pytest.raises(MnmtError, match=r"E704.*--force"):
        export(workflow, "safetensors", tmp_path / "out")
    (tmp_path / "out" / "mark").touch()
    export(workflow, "safetensors", tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "mark").exists()
