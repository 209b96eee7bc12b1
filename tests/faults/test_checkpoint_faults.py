"""Real processes killed at every point of a save; files damaged in every way; disks that refuse."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from mnmt_scale.engine import checkpoint, commit, manifest
from mnmt_scale.engine.manifest import committed, newest_unchecked, partial, read_manifest
from mnmt_scale.errors import MnmtError
from tests.support.ranks import launch

CASES = "tests.support.engine_cases:"
SETTINGS = {"zero_stage": 2, "ema_decay": 0.9}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def uninterrupted(two_ranks):
    return two_ranks.run(CASES + "uninterrupted", settings=SETTINGS, steps=6, dropout=0.1)


@pytest.mark.parametrize(
    ("fault", "survivor", "left_partial"),
    [
        ("save.begin:rank=1:SIGKILL", 2, False),
        ("save.mid_shard:rank=1:SIGKILL", 2, True),
        ("save.mid_shard:rank=0:SIGKILL", 2, True),
        ("save.after_shard:rank=1:SIGKILL", 2, True),
        ("save.before_manifest:SIGKILL", 2, True),
        ("save.before_rename:SIGKILL", 2, True),
        ("save.after_rename:SIGKILL", 4, False),
        ("save.mid_pointer:SIGKILL", 4, False),
        ("save.after_pointer:SIGKILL", 4, False),
    ],
)
def test_killed_during_a_save(two_ranks, uninterrupted, tmp_path, fault, survivor, left_partial):
    codes = launch(2, "tests.support.killed:save_twice", run=str(tmp_path), fault=fault, settings=SETTINGS)
    assert -9 in codes, codes
    assert 0 not in codes, "the other rank must notice and end as well"
    root = tmp_path / "checkpoints"
    info = checkpoint.newest(tmp_path)
    assert info.step == survivor
    assert bool(info.partial) == left_partial
    assert all(".tmp-" in name for name in info.partial)
    assert checkpoint.load_weights(tmp_path, "last").keys() == uninterrupted[0]["weights"].keys()
    before = set(partial(root))
    resumed = two_ranks.run(CASES + "continue_checkpoint", run=str(tmp_path), settings=SETTINGS, last=6, dropout=0.1)
    for whole, part in zip(uninterrupted, resumed, strict=True):
        assert whole["rows"][survivor:] == part["rows"]
        assert same(whole["shard"], part["shard"])
    assert set(partial(root)) == before, "what is incomplete is never deleted silently"


@pytest.fixture(scope="module")
def pristine(two_ranks, tmp_path_factory):
    """Checkpoints of steps 1 and 2 with metrics; tests damage copies."""
    run = tmp_path_factory.mktemp("pristine")
    two_ranks.run(CASES + "several_saves", run=str(run), settings={"ema_decay": 0.9}, metrics=[2.0, 1.0], keep={})
    return run


@pytest.fixture
def run(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "run")
    return tmp_path / "run"


FILES = ["shard-00000-of-00002", "shard-00001-of-00002", "weights", "ema"]


@pytest.mark.parametrize("name", [f"{n}.safetensors" for n in FILES] + ["state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damaged_file_is_named(run, name, damage):
    path = run / "checkpoints" / "step-000002" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    if name == "manifest.json" and damage == "missing":  # then it is no checkpoint at all, and is listed as such
        info = checkpoint.newest(run)
        assert (info.step, info.partial) == (1, ("step-000002",))
        return
    with pytest.raises(MnmtError) as caught:
        checkpoint.newest(run)
    assert caught.value.code == "E404"
    assert name in str(caught.value)


def test_damage_stops_every_rank_and_names_the_way_out(two_ranks, run):
    (run / "checkpoints" / "step-000002" / "shard-00001-of-00002.safetensors").unlink()
    answers = two_ranks.run(CASES + "refused", run=str(run), settings={"ema_decay": 0.9}, mode="auto")
    assert answers[0] == answers[1]
    code, text = answers[0]
    assert code == "E404"
    assert "shard-00001-of-00002.safetensors" in text
    assert "step-000001" in text, "the previous checkpoint is named"
    (run / "checkpoints" / "step-000002").rename(run / "elsewhere")
    resumed = two_ranks.run(CASES + "loaded_state", run=str(run), settings={"ema_decay": 0.9})
    assert resumed[0]["steps"] == 1


@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage", b"../../etc", b"step-000099\n", b"step-000001\n", None])
def test_a_bad_pointer_is_only_a_hint(run, caplog, content):
    pointer = run / "checkpoints" / "latest"
    pointer.unlink() if content is None else pointer.write_bytes(content)
    info = newest_unchecked(run / "checkpoints")
    assert info.step == 2
    assert len(info.warnings) == 1
    assert "latest" in info.warnings[0]
    assert info.warnings[0] in caplog.text


def rewritten(directory: Path, change) -> None:
    """A manifest changed by someone who knows how to hash it."""
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    del content["manifest_sha256"]
    change(content)
    content["manifest_sha256"] = manifest._digest(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/etc/passwd"])
def test_a_manifest_cannot_point_outside(run, name):
    directory = run / "checkpoints" / "step-000002"
    rewritten(directory, lambda m: m["files"][0].update(name=name))
    with pytest.raises(MnmtError) as caught:
        read_manifest(directory)
    assert caught.value.code == "E408"


def test_a_link_out_of_the_checkpoint_is_refused(run, tmp_path):
    path = run / "checkpoints" / "step-000002" / "weights.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MnmtError) as caught:
        checkpoint.load_weights(run, "last")
    assert caught.value.code == "E408"


class Canary:
    """Unpickling it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_in_place_of_a_shard_is_not_run(two_ranks, run, tmp_path):
    directory = run / "checkpoints" / "step-000002"
    for name in ("shard-00000-of-00002.safetensors", "weights.safetensors"):
        (directory / name).write_bytes(pickle.dumps(Canary(str(tmp_path / "canary"))) + bytes(64))

        def rehash(content, name=name):
            record = next(f for f in content["files"] if f["name"] == name)
            record["bytes"] = (directory / name).stat().st_size
            record["sha256"] = manifest.sha256_of(directory / name)

        rewritten(directory, rehash)
    code, text = two_ranks.run(CASES + "refused", run=str(run), settings={"ema_decay": 0.9})[0]
    assert code == "E404"
    assert "shard-00000-of-00002.safetensors" in text
    with pytest.raises(MnmtError, match=r"E404.*weights\.safetensors"):
        checkpoint.load_weights(run, "last")
    assert not (tmp_path / "canary").exists()


def test_nothing_to_load(tmp_path):
    (tmp_path / "checkpoints" / "step-000007.tmp-ab").mkdir(parents=True)
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.find(tmp_path, "auto") is None
    with pytest.raises(MnmtError) as caught:
        checkpoint.find(tmp_path, "required")
    assert caught.value.code == "E403"
    assert "step-000007.tmp-ab" in str(caught.value)
    with pytest.raises(MnmtError, match="E403"):
        checkpoint.load_weights(tmp_path)


def test_asking_for_weights_that_are_not_there(run):
    with pytest.raises(MnmtError, match=r"E403.*step-000002"):
        checkpoint.load_weights(run, "step-20")
    with pytest.raises(MnmtError, match=r"E403.*'best'"):
        checkpoint.load_weights(run, "bets")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failed_write_fails_on_all_ranks_and_leaves_the_previous(two_ranks, tmp_path, rank):
    results = two_ranks.run(
        CASES + "failing_save", run=str(tmp_path), fault=f"save.write_shard:rank={rank}:ENOSPC", settings={}
    )
    for result in results:
        first, failed, last = result["happened"]
        assert (first, last) == ("step-000001", "step-000003")
        assert "E406" in failed
        assert f"rank {rank}" in failed
        assert "No space left" in failed
        assert result["left"] == ["latest", "step-000001", "step-000003"], "the partial directory is gone"


@pytest.mark.parametrize("point", ["save.before_manifest", "save.before_rename"])
def test_a_failed_publication(two_ranks, tmp_path, point):
    results = two_ranks.run(CASES + "failing_save", run=str(tmp_path), fault=f"{point}:EIO", settings={})
    assert "E406" in results[1]["happened"][1]
    assert results[0]["left"] == ["latest", "step-000001", "step-000003"]


def test_continue_goes_on_three_times(two_ranks, tmp_path):
    settings = {"checkpoint": {"on_save_error": "continue"}}
    fault = "save.write_shard:rank=1:ENOSPC"
    results = two_ranks.run(CASES + "failing_save", run=str(tmp_path), fault=fault, settings=settings, times=4)
    for result in results:
        assert result["happened"][1:4] == ["went on"] * 3
        assert "E406" in result["happened"][4]
        assert result["happened"][5] == "step-000006"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_fills_up_in_the_middle_of_a_shard(tmp_path, rank):
    codes = launch(2, "tests.support.killed:full_disk", run=str(tmp_path), rank=rank, limit_bytes=8192)
    assert codes == [0, 0]
    for r in (0, 1):
        text = (tmp_path / f"error-{r}").read_text()
        assert "E406" in text
        assert f"rank {rank} could not write" in text
    assert [p.name for p in committed(tmp_path / "checkpoints")] == ["step-000001"]
    assert checkpoint.newest(tmp_path).partial == ()


def test_too_little_space_is_seen_before_writing(tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 100, 100)
    monkeypatch.setattr(commit.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MnmtError) as caught:
        checkpoint.write_weights(tmp_path, {"w": torch.zeros(1000)})
    assert caught.value.code == "E406"
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_place_where_no_checkpoint_can_be_made(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(MnmtError) as caught:
        checkpoint.write_weights(tmp_path, {"w": torch.zeros(3)})
    assert caught.value.code == "E401"


def test_weights_alone_can_be_read_but_not_resumed(one_rank, tmp_path):
    checkpoint.write_weights(tmp_path, {"w": torch.arange(3.0)})
    assert checkpoint.load_weights(tmp_path)["w"].tolist() == [0.0, 1.0, 2.0]
    code, text = one_rank.run(CASES + "refused", run=str(tmp_path), settings={})[0]
    assert code == "E405"
    assert "init_from" in text
