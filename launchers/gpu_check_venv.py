"""The environment of ``gpu_check.sh``: everything the calling interpreter has, and in a folder of its own what is missing.

    python3 gpu_check_venv.py make FOLDER                                   a virtual environment that sees python3's packages
    FOLDER/bin/python gpu_check_venv.py fill --pip python3 [--wheels DIR]   what is needed, and missing or too old there

The caller's environment is never written to, and its torch, CUDA libraries, triton and numpy are pinned. What cannot be
installed is a line; the exit code says whether something is missing without which nothing works.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import tomllib
import venv
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("kernels", "bench", "interchange")
SOLVERS = ("qpsolvers>=1.0.1", "quadprog>=0.1.9")  # torchjd's, for the default weighting; the others would be many more
TESTS = ("pytest>=8", "pytest-timeout>=2.3", "pytest-xdist", "hypothesis>=6.100")
PINNED = ("torch", "triton", "numpy", "nvidia", "cuda")
INSTALL_SECONDS = 60
"""For all that is missing together: a registry that cannot be reached answers each request after half a minute of silence."""


def make(folder: Path) -> None:
    """A virtual environment without pip whose packages come before the caller's, which it sees too.

    ``--system-site-packages`` would show those of the interpreter that the caller's own virtual environment was made from.
    """
    found = [p for p in sys.path if p.rstrip("/").endswith(("site-packages", "dist-packages")) and Path(p).is_dir()]
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "caller.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in found), encoding="utf-8")


def fill(pip: str, wheels: Path | None) -> int:
    """Installs what is missing into the running interpreter's environment; the number of requirements that stay unmet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = list(project["dependencies"])
    wished = [one for extra in EXTRAS for one in project["optional-dependencies"][extra]] + [*SOLVERS, *TESTS]
    missing = [one for one in dict.fromkeys(needed + wished) if not met(one)]
    if not missing:
        print("nothing is missing")
        return 0
    print("missing:", ", ".join(missing), flush=True)
    pins = Path(sys.prefix) / "pins.txt"
    pins.write_text("".join(f"{name}=={number}\n" for name, number in pinned()), encoding="utf-8")
    command = [
        pip,
        "-m",
        "pip",
        "--python",
        sys.executable,
        "--disable-pip-version-check",
        "--retries",
        "0",
        "--timeout",
        "10",
        "install",
        "-q",
    ]
    command += ["--no-build-isolation", "--no-warn-script-location", "-c", str(pins)]
    command += ["--no-index", "--find-links", str(wheels)] if wheels else []
    end = time.monotonic() + INSTALL_SECONDS
    if run([*command, *missing], end):
        for one in missing:  # one that cannot be had must not keep the others away
            print(f"{one}: {run([*command, one], end) or 'installed'}", flush=True)
    lacking = [one for one in needed if not met(one)]
    if lacking:
        print("nothing works without:", ", ".join(lacking))
    return len(lacking)


def met(requirement: str) -> bool:
    """Whether the running interpreter has it, new enough; a fresh look each time."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        return False


def pinned() -> list[tuple[str, str]]:
    """Name and version of what must stay."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return sorted((name, number) for name, number in found.items() if name.lower().split("-")[0].split("_")[0] in PINNED)


def run(command: list[str], end: float) -> str | None:
    """None, or the last line of what went wrong; ``end``: the monotonic clock's time at which it is stopped."""
    left = end - time.monotonic()
    if left <= 0:
        return f"not tried: the {INSTALL_SECONDS} s are over"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {INSTALL_SECONDS} s in all"
    if not done.returncode:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"pip ended with {done.returncode}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("make").add_argument("folder", type=Path)
    filling = verbs.add_parser("fill")
    filling.add_argument("--pip", required=True, metavar="PYTHON", help="the interpreter whose pip installs")
    filling.add_argument("--wheels", type=Path, help="only from this directory")
    chosen = parser.parse_args()
    if chosen.verb == "make":
        make(chosen.folder)
    elif fill(chosen.pip, chosen.wheels):
        sys.exit(1)
