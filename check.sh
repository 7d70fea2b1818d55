#!/usr/bin/env bash
# Everything a change must pass: installs what is missing, builds with gcc (release; address, undefined and thread
# sanitizers) and clang, runs all tests, replays the fuzz corpora, compares the demo model's logits with the stored
# reference, and lints.  Ends with one line: N passed, N failed, N skipped.
# Takes about twenty minutes on two cores.
#
# check.sh --extended also fetches Gemma 3 270M (250 MB) and checks it, and compares token ids with the implementations whose
# Python packages are installed; without it, Gemma's checks count as skipped.
set -u
cd "$(dirname "$0")"
extended=() fetched=()
if [ $# -gt 0 ]; then
    if [ $# -ne 1 ] || [ "$1" != --extended ]; then echo "usage: check.sh [--extended]" >&2; exit 1; fi
    extended=(--extended) fetched=(--all)
fi

n_passed=0 n_failed=0 n_skipped=0
logs=build/check
mkdir -p "$logs"

# tally LOG EXIT: adds up the closing lines of all runners in a log; a failure nobody counted is one failure.
tally() {
    local log=$1 code=$2 passed=0 failed=0 skipped=0 n
    while read -r n; do passed=$((passed + n)); done < <(sed -nE 's/.*\[  PASSED  \] ([0-9]+) test.*/\1/p; s/^([0-9]+: )?([0-9]+) passed, .*/\2/p' "$log")
    while read -r n; do failed=$((failed + n)); done < <(sed -nE 's/.*\[  FAILED  \] ([0-9]+) test.*/\1/p; s/^([0-9]+: )?[0-9]+ passed, ([0-9]+) failed.*/\2/p' "$log")
    while read -r n; do skipped=$((skipped + n)); done < <(sed -nE 's/.*\[  SKIPPED \] ([0-9]+) test.*/\1/p; s/.* failed, ([0-9]+) skipped.*/\1/p' "$log")
    if [ "$code" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
    if [ $((passed + failed)) -eq 0 ]; then if [ "$code" -eq 0 ]; then passed=1; fi; fi
    n_passed=$((n_passed + passed)) n_failed=$((n_failed + failed)) n_skipped=$((n_skipped + skipped))
    printf '%6d passed %4d failed %4d skipped\n' "$passed" "$failed" "$skipped"
    if [ "$failed" -ne 0 ]; then tail -n 60 "$log"; fi
}

# step NAME COMMAND...: runs it into a log and counts it.
step() {
    local name=$1 log code start=$SECONDS
    shift
    log=$logs/$(tr -c 'a-z0-9\n' '-' <<<"$name").log
    printf '%-44s' "$name"
    "$@" >"$log" 2>&1
    code=$?
    printf '%5d s' $((SECONDS - start))
    tally "$log" "$code"
    return "$code"
}

build() {                          # build PRESET [CMAKE OPTIONS...]
    local preset=$1
    shift
    cmake --preset "$preset" -DTMX_WERROR=ON "$@" && cmake --build "build/$preset"
}

build_tsan() {                     # the tests that have threads
    cmake --preset tsan -DTMX_WERROR=ON -DTMX_FUZZ=OFF -DTMX_CUDA=OFF && cmake --build build/tsan --target test_base test_session
}

step "packages"                       scripts/install-packages.sh clang clang-tidy cppcheck \
                                      python3-numpy python3-setuptools python3-wheel python3-venv
step "demo model"                     scripts/fetch-models.sh "${fetched[@]}"
step "build: gcc, release"            build release -DTMX_BENCH=ON
step "build: gcc, asan and ubsan"     build asan -DTMX_CUDA=OFF      # the CUDA part once; its absence in the others
step "build: clang, release"          build clang -DTMX_BENCH=ON -DTMX_CUDA=OFF
step "build: gcc, tsan"               build_tsan
step "tests: release"                 ctest --test-dir build/release -V -j "$(nproc)"
step "tests: asan and ubsan"          env ASAN_OPTIONS=detect_leaks=1 ctest --test-dir build/asan -V -j "$(nproc)"
step "tests: tsan"                    ctest --test-dir build/tsan -V -R 'test_(base|session)'
step "logits against the reference"   python3 tests/check-logits.py "${extended[@]}"
step "bits: chunks, threads, patterns"    python3 tests/check-bits.py
if [ "${#extended[@]}" -gt 0 ]; then
    step "token ids of published vocabularies" python3 tests/check-tokens-extended.py      # of the packages that are there
fi
step "library: installed, examples"   tests/check-install.sh build/release
step "python: installed by pip, tests"  tests/check-python.sh build/release
step "rooms: includes go one way"     scripts/check-rooms.sh
step "lint: cppcheck"                 scripts/lint.sh cppcheck
step "lint: clang-tidy"               scripts/lint.sh clang-tidy

echo "logs in $logs"
echo "$n_passed passed, $n_failed failed, $n_skipped skipped"
[ "$n_failed" -eq 0 ]
