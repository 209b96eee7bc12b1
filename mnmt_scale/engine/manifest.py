"""What a checkpoint directory is: the manifest with the hash of every file, and how a run's checkpoints are found.

RUN/checkpoints/step-000200/            committed: has a manifest.json
RUN/checkpoints/step-000300.tmp-1f3a/   partial: a save that did not end; listed, never loaded, never deleted
RUN/checkpoints/latest, best            names of directories; only hints, the directories themselves count
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import logging
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import MnmtError
from .files import FileRecord, sha256_of

log = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class CheckpointInfo:
    """A committed checkpoint.

    Attributes:
        path, step: the directory and the updates done when it was written.
        manifest: content of manifest.json.
        partial: names of incomplete directories beside it.
        warnings: what was odd about the pointers, for the log.
    """

    path: Path
    step: int
    manifest: dict[str, Any]
    partial: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def metric(self) -> float | None:
        """Validation loss when it was saved; None if there was none."""
        return self.manifest.get("metric")

    @property
    def files(self) -> list[FileRecord]:
        """Every file that it must have."""
        return [FileRecord(**f) for f in self.manifest["files"]]


def directory_name(step: int) -> str:
    """``200`` -> ``"step-000200"``."""
    return f"step-{step:06d}"


def manifest_text(step: int, files: list[FileRecord], **about: Any) -> str:
    """The manifest as JSON; it holds its own hash, so that a change to it is seen as well."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed", "safetensors")}
    content = {
        "format": FORMAT,
        "step": step,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **about,
        "packages": versions,
        "files": [asdict(f) for f in files],
    }
    return json.dumps({**content, "manifest_sha256": _digest(content)}, indent=1) + "\n"


def read_manifest(directory: Path) -> CheckpointInfo:
    """The checkpoint in ``directory``, its files not looked at yet.

    Raises:
        MnmtError: E404 when manifest.json is missing, no JSON or altered, E405 for another format,
            E408 when it names files outside the directory.
    """
    path = directory / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        given = content.pop("manifest_sha256")
        if given != _digest(content):
            raise MnmtError("E404", "the manifest was altered", where=str(path), remedy=_fallback(directory))
        info = CheckpointInfo(directory, int(content["step"]), content)
        files = info.files
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise MnmtError("E404", f"the manifest is damaged ({type(error).__name__})", where=str(path)) from None
    if content.get("format") != FORMAT:
        raise MnmtError("E405", f"checkpoint format {content.get('format')}, this program reads {FORMAT}", where=str(path))
    for f in files:
        if Path(f.name).is_absolute() or ".." in Path(f.name).parts:
            raise MnmtError("E408", f"the manifest names a file outside the checkpoint: {f.name!r}", where=str(path))
    return info


def check_file(directory: Path, record: FileRecord) -> None:
    """E404 naming the file when it is missing, has another size, or other content; E408 when it is no plain file."""
    path = directory / record.name
    if path.is_symlink() and not path.resolve().is_relative_to(directory.resolve()):
        raise MnmtError("E408", "a checkpoint file is a link out of the checkpoint", where=str(path))
    if not path.is_file():
        raise MnmtError("E404", "checkpoint file missing", where=str(path), remedy=_fallback(directory))
    size = path.stat().st_size
    if size != record.bytes:
        what = f"checkpoint file has {size:,} bytes, the manifest says {record.bytes:,}"
        raise MnmtError("E404", what, where=str(path), remedy=_fallback(directory))
    if sha256_of(path) != record.sha256:
        raise MnmtError("E404", "checkpoint file altered (sha256)", where=str(path), remedy=_fallback(directory))


def committed(root: Path) -> list[Path]:
    """Directories with a manifest, by step."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if _NAME.fullmatch(p.name) and (p / "manifest.json").is_file()]
    return sorted(found, key=step_of)


def partial(root: Path) -> tuple[str, ...]:
    """Names of what looks like a checkpoint and is none."""
    if not root.is_dir():
        return ()
    done = set(committed(root))
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name.startswith("step-") and p not in done))


def step_of(directory: Path) -> int:
    """Step number in a directory's name."""
    match = _NAME.fullmatch(directory.name)
    assert match is not None, directory
    return int(match.group(1))


def newest_unchecked(root: Path) -> CheckpointInfo | None:
    """The committed checkpoint with the highest step, by the directories alone, its files not hashed yet.

    The pointer ``latest`` is compared with it: a pointer that is empty, garbage, or names another step gives a warning.
    """
    directories = committed(root)
    if not directories:
        return None
    info = read_manifest(directories[-1])
    name, complaint = read_pointer(root, "latest")
    warnings = [complaint] if complaint else []
    if name is not None and name != info.path.name:
        warnings.append(f"{root / 'latest'} names {name}, the newest complete checkpoint is {info.path.name}")
    for text in warnings:
        log.warning(text)
    return CheckpointInfo(info.path, info.step, info.manifest, partial(root), tuple(warnings))


def read_pointer(root: Path, name: str) -> tuple[str | None, str | None]:
    """(directory name, complaint) of ``latest`` or ``best``; None where there is nothing to say."""
    path = root / name
    if not path.exists():
        return None, (f"{path} is missing, the directories were searched" if name == "latest" else None)
    text = path.read_bytes()[:200].decode("ascii", errors="replace").strip()
    if not _NAME.fullmatch(text):
        return None, f"{path} holds {text!r}, no checkpoint name; the directories were searched"
    return text, None


def ranked_by_metric(directories: list[Path]) -> list[Path]:
    """Those of ``directories`` with a metric, lowest first, of equal ones the latest first."""
    measured = [
        (info.metric, -info.step, info.path)
        for info in map(read_manifest, directories)
        if info.metric is not None and math.isfinite(info.metric)
    ]
    return [path for _, _, path in sorted(measured)]


def partial_remedy(root: Path) -> str:
    """What to say where no checkpoint was found."""
    names = partial(root)
    return f"only incomplete ones: {', '.join(names)}" if names else "see that this is the right run directory"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fallback(directory: Path) -> str:
    before = [p for p in committed(directory.parent) if _NAME.fullmatch(directory.name) and step_of(p) < step_of(directory)]
    if not before:
        return "restore it from a copy; no earlier checkpoint is here"
    return f"restore it from a copy, or move {directory.name} away to go on from {before[-1].name}"
