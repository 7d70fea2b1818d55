#!/usr/bin/env bash
# check-python.sh BUILD: installs the Python package with pip, without a network, and runs its tests with the library of that
# build; then once more as a user would, where pip has CMake build the library.  PYTHON chooses the interpreter; it needs NumPy,
# setuptools, wheel and venv.  Ends with "N passed, N failed, N skipped".
set -eu
source=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "${1:?usage: check-python.sh BUILD}" && pwd)
python=${PYTHON:-/usr/bin/python3}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
unset PYTHONPATH TMX_LIBRARY
cd "$tmp"

"$python" -m venv --system-site-packages "$tmp/venv"
export PYTHONDONTWRITEBYTECODE=1
# pip builds where the sources lie; a copy keeps the checkout clean.
mkdir "$tmp/checkout"
tar -C "$source" --exclude=./build --exclude=./models --exclude=./.git --exclude=./eval/longctx --exclude=./fuzz -cf - . |
    tar -C "$tmp/checkout" -xf -
pip_install() {
    "$tmp/venv/bin/python" -m pip --quiet install --no-index --no-build-isolation --no-deps --force-reinstall "$@"
}

TMX_LIBRARY=$build/libtmx.so.0 pip_install "$tmp/checkout/bindings/python"
tiny=$("$build/make_tiny_model")
mv "$tiny" "$tmp/tiny.gguf"
export TMX_SOURCE=$source TMX_PROGRAM=$build/tmx TMX_TINY_MODEL=$tmp/tiny.gguf
"$tmp/venv/bin/python" - "$source/bindings/python/tests" <<'PYTHON'
import sys
import unittest

tests = unittest.defaultTestLoader.discover(sys.argv[1])
result = unittest.TextTestRunner(stream=sys.stdout, verbosity=1).run(tests)
n_failed = len(result.failures) + len(result.errors)
n_skipped = len(result.skipped)
print(f"{result.testsRun - n_failed - n_skipped} passed, {n_failed} failed, {n_skipped} skipped")
sys.exit(n_failed != 0 or result.testsRun == 0)
PYTHON

rm -rf "$tmp/checkout/bindings/python/build"
CMAKE_ARGS="-DTMX_CUDA=OFF" pip_install "$tmp/checkout/bindings/python"
"$tmp/venv/bin/python" -c 'import numpy, tmx; x = numpy.ones((3, 1, 4), "f"); assert (tmx.attention(x, x, x) == 1).all()'
echo "1 passed, 0 failed, 0 skipped"
