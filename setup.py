"""Hands the library that CMake builds to setuptools; CMakeLists.txt is the build's one truth."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILERS = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
COMPILING = {"bdist_wheel", "build_ext", "editable_wheel", "dist_info", "install"}
ABI = "cp311"  # the first Python whose stable ABI the library keeps to (CMakeLists.txt)
NONE = (
    "fudlr-ext compiles its kernels, and this machine has no C++ compiler. Install one (Debian: "
    "apt-get install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install; conda: "
    "conda install cxx-compiler), or name it in CXX."
)


def _tool(name: str) -> str | None:
    """The program of this environment's Python packages, before an older one of the system."""
    here = str(Path(sys.executable).parent)
    return shutil.which(name, path=here) or shutil.which(name)


class CMakeExtension(Extension):
    """An extension without sources of its own: CMake knows them."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[], py_limited_api=True)


class CMakeBuild(build_ext):
    """Configure and build with CMake and Ninja, straight into setuptools' output folder.

    Kernels for GPUs take a minute to compile: a wheel has them where nvcc is found, a build in
    place and an editable one only where FUDLR_CUDA=ON asks for them. FUDLR_CUDA_GPUS names the
    GPUs to assemble them for, such as "90" for one's own: the PTX that every build holds serves
    the others, after a wait when it is loaded first.
    """

    def run(self) -> None:
        """Note how it was asked for, before setuptools forgets, and build."""
        self.for_development = bool(self.inplace or getattr(self, "editable_mode", False))
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Build one extension where setuptools expects it."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        for earlier in target.parent.glob("_C.*.so"):  # Python would prefer one made for it alone
            earlier.unlink()
        build = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        cmake = _tool("cmake") or "cmake"
        cuda = os.environ.get("FUDLR_CUDA", "OFF" if self.for_development else "AUTO")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFUDLR_OUTPUT={target}",
            f"-DFUDLR_CUDA={cuda}",
        ]  # fmt: skip
        gpus = os.environ.get("FUDLR_CUDA_GPUS")
        configure.append(f"-DFUDLR_CUDA_GPUS={gpus}" if gpus else "-UFUDLR_CUDA_GPUS")
        ninja = _tool("ninja")
        if ninja:
            configure.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel"], check=True)


if COMPILING & set(sys.argv) and not any(n and shutil.which(n.split()[0]) for n in COMPILERS):
    sys.exit(NONE)  # before anything that takes a while

setup(
    ext_modules=[CMakeExtension("fudlr_ext._C")],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": ABI}},
    packages=find_packages("python") + find_packages(".", include=["fudlr_ext", "fudlr_ext.*"]),
    package_dir={"fudlr": "python/fudlr", "fudlr_ext": "fudlr_ext"},
    package_data={
        "fudlr": ["py.typed", "**/*.j2", "**/*.css", "recommenders/prompts/*.yaml"],
        "fudlr_ext": ["py.typed"],
    },
)
