"""Build entry: metadata stands in pyproject.toml; here CMake is driven to build ``mnmt_scale._C``.

Environment: ``MNMT_BUILD_KERNELS=0`` leaves the compiled kernels out (the package then runs on its torch references),
``MNMT_BUILD_CUDA=0`` only the CUDA ones; ``MNMT_CUDA_ARCHITECTURES`` (as CMake's list: ``90-real``) the devices they are for.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds in ``build/native``, so that a second build compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / "native"
        devices = os.environ.get("MNMT_CUDA_ARCHITECTURES")
        options = [
            f"-DMNMT_OUTPUT_DIR={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DMNMT_TESTS=OFF",
            f"-DMNMT_CUDA={'OFF' if os.environ.get('MNMT_BUILD_CUDA') == '0' else 'ON'}",
            f"-DMNMT_CUDA_ARCHITECTURES={devices}" if devices else "-UMNMT_CUDA_ARCHITECTURES",  # else an earlier one stays
        ]
        env = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
        ninja = shutil.which("ninja", path=env["PATH"])  # named, since a cached one may have been in pip's own environment
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *generator, *options], check=True, env=env)
        subprocess.run(["cmake", "--build", str(build), "--parallel", str(os.cpu_count())], check=True, env=env)


def extensions() -> list[Extension]:
    """The compiled kernels; none where they are not wanted or there is no compiler."""
    if os.environ.get("MNMT_BUILD_KERNELS") == "0":
        return []
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        print("mnmt_scale: no C++ compiler, so no compiled kernels; the torch references will run", file=sys.stderr)
        return []
    return [Extension("mnmt_scale._C", sources=[])]


setup(ext_modules=extensions(), cmdclass={"build_ext": CMakeBuild})
