#!/usr/bin/env bash
# check-install.sh BUILD: installs a finished build, moves the tree, and uses it as a stranger would: what it exports, whether
# anything in it remembers where it was built, and the examples through CMake and pkg-config, shared and static.
# Ends with "N passed, N failed, N skipped".
set -u
source=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "${1:?usage: check-install.sh BUILD}" && pwd) || exit 1
model=$source/models/SmolLM2-135M-Instruct.Q4_1.gguf
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
n_passed=0 n_failed=0 n_skipped=0

# try NAME COMMAND...: counts it; shows what it said when it fails.
try() {
    local name=$1
    shift
    if "$@" >"$tmp/out" 2>&1; then n_passed=$((n_passed + 1)); return 0; fi
    n_failed=$((n_failed + 1))
    echo "FAILED $name"
    tail -n 15 "$tmp/out" | sed 's/^/    /'
    return 1
}
said() {                           # NAME PATTERN: in what the last try said
    if grep -qE -- "$2" "$tmp/out"; then n_passed=$((n_passed + 1)); return; fi
    n_failed=$((n_failed + 1))
    echo "FAILED $1: no '$2' in: $(head -c 300 "$tmp/out")"
}

try "install" cmake --install "$build" --prefix "$tmp/staged" || exit 1
mv "$tmp/staged" "$tmp/moved"
prefix=$tmp/moved
lib=$(dirname "$(find "$prefix" -name libtmx.a)")
so=$lib/libtmx.so
export PKG_CONFIG_PATH=$lib/pkgconfig

for file in bin/tmx include/tmx.h share/man/man1/tmx.1 share/man/man1/tmx-run.1 share/doc/trianglemix/LICENSE \
            share/trianglemix/plans/smollm2-135m-instruct.q4_1.json "${lib#"$prefix"/}/libtmx.so.0"; do
    try "installed: $file" test -s "$prefix/$file"
done
nothing_remembers() { ! grep -rlF -e "$source" -e "$build" -e "$tmp/staged" "$prefix"; }
try "no path of the build inside" nothing_remembers
try "the program runs from where it lies" "$prefix/bin/tmx" --version
runtime_has_no_header() {
    cmake --install "$build" --prefix "$tmp/runtime" --component runtime && test -x "$tmp/runtime/bin/tmx" &&
        test ! -e "$tmp/runtime/include" && test -z "$(find "$tmp/runtime" -name 'libtmx.so' -o -name 'libtmx.a')"
}
try "component runtime" runtime_has_no_header

# The interface: what tmx.h declares once the macro is left standing, however the lines are broken.
grep -v '#define TMX_API' "$prefix/include/tmx.h" | cc -E -P -x c - | tr '\n' ' ' | tr ';' '\n' |
    sed -nE 's/.*TMX_API[^(]* \*?(tmx_[a-z0-9_]+) ?\(.*/\1/p' | sort >"$tmp/declared"
nm -D --defined-only "$so" | sed -nE 's/.* [^A] ([^@]+)@@TMX_[0-9.]+$/\1/p' | sort >"$tmp/shared"
nm -D --defined-only "$so" | grep -v '@@TMX_' | grep -v ' A TMX_' >"$tmp/loose"
nm -g --defined-only "$lib/libtmx.a" | sed -nE 's/^[0-9a-f]+ [A-Za-z] //p' | sort >"$tmp/static"
try "the header declares functions" test "$(wc -l <"$tmp/declared")" -gt 80
try "libtmx.so exports the interface" diff "$tmp/declared" "$tmp/shared"
try "libtmx.so exports nothing else" test ! -s "$tmp/loose"
try "libtmx.a exports the interface" diff "$tmp/declared" "$tmp/static"
try "libtmx.a is one object" test "$(ar t "$lib/libtmx.a" | wc -l)" = 1
soname_is_0() { readelf -d "$so" | grep -q 'SONAME.*\[libtmx.so.0\]'; }
try "soname" soname_is_0
no_search_path() { ! readelf -d "$so" "$prefix/bin/tmx" | grep -E 'RPATH|RUNPATH'; }
try "no search path inside" no_search_path
try "the header's version is the package's" \
    grep -q "TMX_VERSION \"$(pkg-config --modversion trianglemix)\"" "$prefix/include/tmx.h"

# use FOLDER NAME: runs the two examples that lie there.
use() {
    local operator_ok="max difference: 0 in the last 128 rows, 0\.[0-9]+ in the others"
    try "$2: operator" "$1/operator" 1500 && said "$2: operator's rows" "$operator_ok"
    try "$2: a wrong model is refused" bash -c "! '$1/answer' '$source/LICENSE' dense hello"
    if [ -f "$model" ]; then
        try "$2: answer" "$1/answer" "$model" preset:smollm2-135m-instruct "What is the capital of France?" &&
            said "$2: the answer" "Paris"
    else
        n_skipped=$((n_skipped + 1))
    fi
}

for library in tmx tmx_static; do
    folder=$tmp/cmake-$library
    try "CMake, $library: configure" cmake -S "$prefix/share/trianglemix/examples" -B "$folder" \
        -DCMAKE_PREFIX_PATH="$prefix" -DTMX_LIBRARY=$library -DCMAKE_C_FLAGS="-Wall -Wextra -Werror" &&
        try "CMake, $library: build" cmake --build "$folder" && use "$folder" "CMake, $library"
done
other_minor() {
    mkdir -p "$tmp/other-minor"
    printf '%s\n' 'cmake_minimum_required(VERSION 3.18)' 'project(x LANGUAGES C)' 'find_package(trianglemix 0.0 REQUIRED)' \
        >"$tmp/other-minor/CMakeLists.txt"
    ! cmake -S "$tmp/other-minor" -B "$tmp/other-minor/build" -DCMAKE_PREFIX_PATH="$prefix"
}
try "CMake refuses another minor version" other_minor && said "CMake names the version" "version: 0\.1"
linked_to() { readelf -d "$1" | grep -q "NEEDED.*libtmx.so.0"; }
try "CMake's shared example needs libtmx.so.0" linked_to "$tmp/cmake-tmx/answer"
try "CMake's static example does not" bash -c "! readelf -d '$tmp/cmake-tmx_static/answer' | grep libtmx"

# with_pkg_config FOLDER OPTIONS...: compiles the examples by one line each, as their comments say.
with_pkg_config() {
    local folder=$1 example
    shift
    mkdir -p "$folder"
    for example in answer operator; do
        # shellcheck disable=SC2046
        cc -std=c11 -O2 -Wall -Wextra -Wconversion -Wshadow -Wpedantic -Werror "$source/examples/$example.c" \
            $(pkg-config "$@" trianglemix) -lm -o "$folder/$example" || return 1
    done
}
export LD_LIBRARY_PATH=$lib
try "pkg-config, shared: build" with_pkg_config "$tmp/pc-shared" --cflags --libs && use "$tmp/pc-shared" "pkg-config, shared"

# A library of another minor version under the same soname: the loader must refuse the program.
other_version() {
    mkdir -p "$tmp/other"
    sed 's/TMX_0\.[0-9]*/TMX_0.999/' "$build/libtmx.map" >"$tmp/other/map"
    # shellcheck disable=SC2046
    cc -shared -o "$tmp/other/libtmx.so.0" -Wl,-soname,libtmx.so.0 -Wl,--version-script="$tmp/other/map" \
        -Wl,--whole-archive "$lib/libtmx.a" -Wl,--no-whole-archive $(pkg-config --static --libs-only-l trianglemix | sed 's/-ltmx //')
}
refused_by_loader() { ! LD_LIBRARY_PATH=$tmp/other "$tmp/pc-shared/operator" 100; }
try "another minor version: build" other_version &&
    try "another minor version is refused" refused_by_loader && said "the loader says why" "TMX_0\.[0-9]+' not found"

# Without the shared library beside it, -ltmx is the static one.
rm "$lib"/libtmx.so*
unset LD_LIBRARY_PATH
try "pkg-config, static: build" with_pkg_config "$tmp/pc-static" --static --cflags --libs && use "$tmp/pc-static" "pkg-config, static"
try "CMake without the shared library" cmake -S "$prefix/share/trianglemix/examples" -B "$tmp/cmake-alone" -DCMAKE_PREFIX_PATH="$prefix"
rm "$lib/libtmx.a"
no_library() { ! cmake -S "$prefix/share/trianglemix/examples" -B "$tmp/cmake-none" -DCMAKE_PREFIX_PATH="$prefix"; }
try "CMake without any library" no_library && said "CMake says what is missing" "no libtmx.so.0"

# Only a static library: -ltmx alone must link, so the private needs become public.
static_only() {
    cmake -G Ninja -S "$source" -B "$tmp/static-only" -DBUILD_SHARED_LIBS=OFF -DTMX_CUDA=OFF -DTMX_TESTS=OFF -DTMX_FUZZ=OFF &&
        grep -q "^Requires: libpcre2-8 jansson" "$tmp/static-only/trianglemix.pc" &&
        grep -q "^Libs: .*-ltmx .*-lm" "$tmp/static-only/trianglemix.pc"
}
try "BUILD_SHARED_LIBS=OFF" static_only

echo "$n_passed passed, $n_failed failed, $n_skipped skipped"
[ "$n_failed" -eq 0 ]
