#!/usr/bin/env bash
# lint.sh cppcheck | clang-tidy: static analysis of the whole tree with the committed configuration; any remark fails.
set -u
cd "$(dirname "$0")/.."

case "${1-}" in
    cppcheck)
        exec cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,portability,performance \
            --inline-suppr --suppressions-list=.cppcheck -Iinclude -Isrc -j "$(nproc)" src cli eval bench examples
        ;;
    clang-tidy)
        [ -f build/clang/compile_commands.json ] || cmake --preset clang -DTMX_BENCH=ON >/dev/null || exit 1
        find src cli eval bench examples -name '*.c' -print0 | xargs -0 -P "$(nproc)" -n 1 clang-tidy --quiet -p build/clang 2>/dev/null
        # xargs gives 123 when a run found something
        exit $?
        ;;
    *) echo "usage: scripts/lint.sh cppcheck | clang-tidy" >&2; exit 1 ;;
esac
