"""What a machine offers for training: the checks of ``mnmt doctor``, each a function that gives one or more lines.

``fail`` is only what makes training impossible; what merely makes it slower, or a verb unusable, is ``warn``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import MnmtError

TRIAL_SECONDS = 300
"""Limit of the trial steps, which take about ten seconds; a machine that needs this long is overloaded or hangs."""

_OPTIONAL = {
    # package: (import name, what it is for, extra of this project or None)
    "transformers": ("transformers", "mnmt export --to hf, mnmt import", "interchange"),
    "ctranslate2": ("ctranslate2", "mnmt export --to ctranslate2", "interchange"),
    "pyarrow": ("pyarrow", "parquet corpora", "parquet"),
    "zstandard": ("zstandard", "corpora that end in .zst", None),
    "mpi4py": ("mpi4py", "mpirun -n N mnmt prepare", "mpi"),
    "unbabel-comet": ("comet", "mnmt evaluate --comet", "comet"),
}
_LAUNCHERS = ("deepspeed", "torchrun", "mpirun", "srun")
_LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCH_PREFIXES = ("OMPI_", "SLURM_", "PMI", "PMIX_", "TORCHELASTIC_", "CROSS_")


@dataclass(frozen=True)
class Check:
    """One finding: ``what`` was looked at, its ``status``, the finding in words, and what to do about it."""

    what: str
    status: Literal["ok", "warn", "fail"]
    finding: str
    remedy: str | None = None

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"{self.status:<4}  {self.what:<12} {self.finding}"
        if self.remedy:
            yield f"{'':18} -> {self.remedy}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(directory: Path, *, trial: bool = True) -> list[Check]:
    """Every check, in the order of the report.

    Args:
        directory: where runs would be written; looked at for space and whether it can be written.
        trial: also train a few steps through the engine, in a process of its own (3 to 10 s).
    """
    makers: list[Callable[[], Check | list[Check]]] = [python, torch_version, deepspeed_version, devices, memory, precision]
    makers += [kernels, launchers, launcher_environment, optional_packages]
    makers += [lambda: disk(directory), lambda: write_probe(directory)]
    checks: list[Check] = []
    for make in makers:
        found = make()
        checks += found if isinstance(found, list) else [found]
    if trial:
        able = all(check.status != "fail" for check in checks)
        checks.append(trial_training() if able else Check("training", "warn", "not tried, since a check before it failed"))
    return checks


def python() -> Check:
    """The interpreter."""
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def torch_version() -> Check:
    """torch is there and new enough to load weights safely."""
    return _needed("torch", (2, 10), "pip install 'torch>=2.10'")


def deepspeed_version() -> Check:
    """DeepSpeed is there; importing it is left to the trial steps."""
    return _needed("deepspeed", (0, 19, 5), "pip install 'deepspeed>=0.19.5'")


def devices() -> Check:
    """Accelerators that torch sees."""
    if importlib.util.find_spec("torch") is None:
        return Check("devices", "fail", "unknown without torch")
    import torch

    cores = len(os.sched_getaffinity(0))
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        text = ", ".join(f"{p.name} {p.total_memory / 2**30:.0f} GiB" for p in found)
        return Check("devices", "ok", f"{len(found)} GPU(s): {text}; CUDA {torch.version.cuda}; {cores} CPU cores")
    text = f"no GPU, {cores} CPU core(s), {torch.get_num_threads()} thread(s)"
    if Path("/dev/nvidiactl").exists():
        remedy = "this machine has an NVIDIA driver: install a CUDA build of torch"
        return Check("devices", "warn", text, remedy)
    return Check("devices", "ok", text + ": training runs on the CPU")


def memory() -> Check:
    """Main memory that is free now."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    text = f"{free / 2**30:.1f} GiB of main memory available"
    if free < 2 << 30:
        return Check("memory", "warn", text, "a training process takes 1 GiB before its model; see mnmt estimate")
    return Check("memory", "ok", text)


def precision() -> Check:
    """What ``engine.dtype = "auto"`` chooses here."""
    if importlib.util.find_spec("torch") is None:
        return Check("precision", "fail", "unknown without torch")
    import torch

    from ..engine.zero import resolve_dtype

    on_cpu = os.environ.get("MNMT_DEVICE") == "cpu" or not torch.cuda.is_available()
    dtype = str(resolve_dtype("auto", torch.device("cpu" if on_cpu else "cuda"))).removeprefix("torch.")
    reason = {True: "the CPU", False: "this GPU computes it natively" if dtype == "bfloat16" else "no native bf16"}[on_cpu]
    return Check("precision", "ok", f'engine.dtype = "auto" gives {dtype} ({reason})')


def kernels() -> list[Check]:
    """The compiled module, and for each op what runs on the kinds of device that this machine has."""
    import torch

    from ..kernels import backend, native

    kinds = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    if native.problem:
        checks = [Check("kernels", "warn", native.problem, "a C++ compiler, then: pip install -e . (make venv)")]
    else:
        built = "CPU and CUDA" if native.module().cuda else "CPU only"
        checks = [Check("kernels", "ok", f"compiled for {built}; instruction set here: {native.module().isa()}")]
    if forced := os.environ.get("MNMT_KERNELS"):
        if forced not in backend.KINDS:
            return [*checks, Check("kernels", "fail", f"MNMT_KERNELS is {forced!r}", f"one of: {', '.join(backend.KINDS)}")]
        checks.append(Check("kernels", "warn", f"MNMT_KERNELS forces {forced}, whatever the lines below say", "unset it"))
    for op, fast in backend.FAST.items():
        problems = {kind: backend.problem(op, kind) for kind in kinds}
        runs = ", ".join(f"{fast[kind] if problems[kind] is None else 'torch reference'} on {kind}" for kind in kinds)
        slow = [f"{kind}: {why}" for kind, why in problems.items() if why]
        checks.append(Check("kernels", "warn" if slow else "ok", f"{op}: {runs}", "; ".join(slow) or None))
    return checks


def launchers() -> Check:
    """Programs that start several ranks; those of this Python's own environment count."""
    beside = Path(sys.executable).parent
    found = [name for name in _LAUNCHERS if shutil.which(name) or (beside / name).exists()]
    missing = [name for name in _LAUNCHERS if name not in found]
    text = f"{', '.join(found) or 'none'}" + (f"; not found: {', '.join(missing)}" if missing else "")
    if not found:
        return Check("launchers", "warn", text, "one process works; for several ranks torchrun comes with torch")
    return Check("launchers", "ok", text)


def launcher_environment() -> Check:
    """Whether the rank variables of the environment, if any, make sense."""
    from ..dist import environment_world

    try:
        rank, size, _ = environment_world()
    except MnmtError as error:
        return Check("ranks", "fail", f"MNMT-{error.code}: {error.what}", error.remedy)
    return Check("ranks", "ok", f"this is rank {rank} of {size}" if size > 1 else "no launcher around this process")


def optional_packages() -> list[Check]:
    """Packages that only some verbs need."""
    checks = []
    for package, (module, use, extra) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is not None:
            checks.append(Check("optional", "ok", f"{package} {_version(package) or ''}".strip()))
        else:
            pip = f"pip install 'mnmt_scale[{extra}]'" if extra else f"pip install {package}"
            checks.append(Check("optional", "warn", f"{package} not installed: no {use}", pip))
    return checks


def disk(directory: Path) -> Check:
    """Free space where runs go."""
    place = next((p for p in (directory.absolute(), *directory.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    text = f"{free / 2**30:.1f} GiB free at {directory}"
    if free < 10 << 30:
        remedy = "a checkpoint takes 16 bytes a parameter, and evaluation.average of them are kept"
        return Check("disk", "warn", text, remedy)
    return Check("disk", "ok", text)


def write_probe(directory: Path) -> Check:
    """Write, sync, rename, lock and read back, as run directory and checkpoints will."""
    import fcntl

    content = os.urandom(64)
    aside, final = (directory / f".mnmt-doctor-{os.getpid()}{suffix}" for suffix in (".tmp", ""))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, final)
        same = final.read_bytes() == content
        final.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        return Check("writing", "fail", f"{directory}: {error.strerror}", "give another directory with --dir, and as --run-dir")
    if not same:
        return Check("writing", "fail", f"{directory}: what was written does not read back", "use another file system")
    return Check("writing", "ok", f"write, sync, lock and rename work at {directory}")


def trial_training() -> Check:
    """Three optimizer steps through DeepSpeed in a process of its own, as one rank."""
    env = {k: v for k, v in os.environ.items() if k not in _LAUNCH_VARIABLES and not k.startswith(_LAUNCH_PREFIXES)}
    package = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "mnmt_scale.bench.trial_step"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_SECONDS, env=env, check=False)
    except subprocess.TimeoutExpired:
        return Check("training", "fail", f"three steps of a very small model took over {TRIAL_SECONDS} s")
    try:
        result = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    except json.JSONDecodeError:
        said = (done.stderr.strip().rsplit("\n", 1)[-1] or "no message")[:300]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        remedy = f"{' '.join(command)} shows the whole message"
        return Check("training", "fail", f"three steps of a very small model: {how}: {said}", remedy)
    text = (
        f"{result['device']}, {result['dtype']}, DeepSpeed ZeRO-1: loss {result['losses'][0]:.3f} -> {result['losses'][-1]:.3f}"
    )
    if not result["learns"]:
        return Check("training", "fail", text + " did not fall", "torch or DeepSpeed compute wrongly here: reinstall them")
    return Check("training", "ok", f"{text} in {result['seconds']:.1f} s")


def _needed(package: str, lowest: tuple[int, ...], remedy: str) -> Check:
    version = _version(package)
    if version is None:
        return Check(package, "fail", "not installed", remedy)
    have = tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())
    if have < lowest:
        return Check(package, "fail", f"{version} is too old", remedy)
    return Check(package, "ok", version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
