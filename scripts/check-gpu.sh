#!/usr/bin/env bash
# check-gpu.sh [BUILD]: everything that needs a GPU, in one go: the attention kernels against the f64 oracle on random shapes, the
# operators of the room ops, both and the probe under compute-sanitizer (memcheck, racecheck) on small shapes, whole models, the
# probe, and the machine code.  BUILD is build/release unless given; it is configured and built first if it is not there.  Ends with one line: N passed,
# N failed, N skipped.
set -u
cd "$(dirname "$0")/.."
build=${1:-build/release}
n_passed=0 n_failed=0 n_skipped=0

# tally COMMAND...: runs it, shows the end of what it says, adds up its closing line.
tally() {
    local text code line
    echo "== $*"
    text=$("$@" 2>&1)
    code=$?
    printf '%s\n' "$text" | tail -n 12
    line=$(printf '%s\n' "$text" | grep -E '^[0-9]+ passed, [0-9]+ failed' | tail -n 1)
    if [ -z "$line" ] || { [ "$code" -ne 0 ] && [[ $line == *" 0 failed"* ]]; }; then
        echo "failed with exit code $code"
        n_failed=$((n_failed + 1))
        return
    fi
    read -r p _ f _ s _ <<<"$line"
    n_passed=$((n_passed + p)) n_failed=$((n_failed + f)) n_skipped=$((n_skipped + ${s:-0}))
}

if [ ! -x "$build/check_gpu_probe_128" ]; then
    cmake -G Ninja -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DTMX_CUDA=ON && cmake --build "$build" || exit 3
fi
tally "$build/check_gpu" --cases 150
tally "$build/check_gpu" --cases 60 --seed 2
tally "$build/check_gpu_lists" --cases 60
tally "$build/check_gpu_flexprefill" --cases 60
tally "$build/check_gpu_minference" --cases 40
tally "$build/check_gpu_ops"
# Whole models; the demo model as well where scripts/fetch-models.sh has put it.
demo=models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ -f "$demo" ]; then
    tally "$build/check_gpu_model_64" --model "$demo" --ids tests/vectors/prompt_smollm2_4096.txt
    tally "$build/check_gpu_probe_64" --cases 30 --model "$demo" --ids tests/vectors/prompt_smollm2_4096.txt
else
    tally "$build/check_gpu_model_64"
    tally "$build/check_gpu_probe_64" --cases 30
fi
tally "$build/check_gpu_model_128"
tally "$build/check_gpu_families"
tally "$build/check_gpu_probe_128" --cases 30
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        tally compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/check_gpu" --small --cases 12
        tally compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/check_gpu_lists" --small --cases 6
        tally compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/check_gpu_flexprefill" --small --cases 6
        tally compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/check_gpu_minference" --small --cases 3
        tally compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/check_gpu_ops" --small
        tally compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/check_gpu_probe_128" --cases 0 --kernels 1   # racecheck: cuBLASLt's own race
    done
    tally compute-sanitizer --tool memcheck --error-exitcode 9 "$build/check_gpu_probe_128" --cases 0
else
    echo "skipped: no compute-sanitizer on the PATH"
    n_skipped=$((n_skipped + 1))
fi
tally tests/gpu/check-sass.sh "$build"/cuda/attn_sm90_*_d*.cu.o "$build"/cuda/attn_sm90_mass.cu.o
echo "$n_passed passed, $n_failed failed, $n_skipped skipped"
[ "$n_failed" -eq 0 ]
