"""Puts libtmx.so.0 into the wheel: the file that TMX_LIBRARY names, or one that CMake builds from this checkout.

CMAKE_ARGS adds options to that build ("-DTMX_CUDA=OFF").  The wheel holds compiled code but none of CPython's interface, so
one serves every Python 3; it uses the system's PCRE2, jansson and oneDNN, and belongs to machines like the one it was built on.
"""
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from wheel.bdist_wheel import bdist_wheel

CHECKOUT = Path(__file__).resolve().parents[2]


def built_library(folder):
    if not (CHECKOUT / "include" / "tmx.h").is_file():
        raise SystemExit(f"{CHECKOUT}: no trianglemix checkout to build libtmx from; set TMX_LIBRARY to a libtmx.so.0")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DTMX_TESTS=OFF", "-DTMX_FUZZ=OFF"]
    subprocess.check_call(["cmake", "-S", CHECKOUT, "-B", folder, *options, *shlex.split(os.environ.get("CMAKE_ARGS", ""))])
    subprocess.check_call(["cmake", "--build", folder, "--target", "tmx_shared", "--parallel", str(os.cpu_count() or 1)])
    return Path(folder) / "libtmx.so.0"


class BuildWithLibrary(build_py):
    def run(self):
        super().run()
        if self.editable_mode:         # an editable install finds the library by TMX_LIBRARY or in the system
            return
        given = os.environ.get("TMX_LIBRARY")
        library = Path(given) if given else built_library(Path(self.get_finalized_command("build").build_temp).resolve())
        shutil.copyfile(library, Path(self.build_lib) / "tmx" / "libtmx.so.0")


class WheelForAnyPython(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class CompiledDistribution(Distribution):
    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": WheelForAnyPython}, distclass=CompiledDistribution)
