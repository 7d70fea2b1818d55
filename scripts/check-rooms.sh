#!/usr/bin/env bash
# Arrows go one way: every room includes only the rooms below it, src/ never includes cli/, and tools see only tmx.h,
# which compiles alone.  bench/ alone looks behind it: matrix products are no part of the interface.
set -u
cd "$(dirname "$0")/.."

# room: the rooms it may include (itself and tmx.h always)
declare -A may=(
    [base]=""
    [gguf]="base"
    [pattern]="base"
    [plan]="base pattern"
    [token]="base gguf"
    [attn]="base pattern"
    [ops]="base gguf"
    [model]="base gguf ops token"
    [kv]="base"
    [run]="base gguf pattern plan model attn ops kv"
    [probe]="base gguf pattern plan model attn ops kv run"
)
n_passed=0 n_failed=0
for folder in src/*/; do
    room=$(basename "$folder")
    if [ -z "${may[$room]+known}" ]; then
        echo "src/$room: a room without a line in $0"
        n_failed=$((n_failed + 1))
        continue
    fi
    bad=$(grep -rnoE '#include "[a-z]+/' "$folder" | while IFS=: read -r file line text; do
        used=${text#*\"} used=${used%/}
        case " $room ${may[$room]} " in
            *" $used "*) ;;
            *) echo "$file:$line: src/$room must not include $used/" ;;
        esac
    done)
    if [ -n "$bad" ]; then echo "$bad"; n_failed=$((n_failed + 1)); else n_passed=$((n_passed + 1)); fi
done
if bad=$(grep -rnE '#include "(base|gguf|pattern|plan|token|attn|ops|model|kv|run|probe)/|#include "[a-z/.]*cli/' cli eval); then
    echo "$bad"
    n_failed=$((n_failed + 1))
else
    n_passed=$((n_passed + 1))
fi
# bench/ may use the rooms it times and their base, and eval/'s dice, statistics and faults; its headers show none of them.
if bad=$(grep -rnE '#include "(pattern|plan|token|model|kv|run|probe|cli|bench)/' bench; grep -nE '#include "[a-z]+/' bench/*.h); then
    echo "$bad"
    n_failed=$((n_failed + 1))
else
    n_passed=$((n_passed + 1))
fi
# File names are unique in the tree, so that a name in a message finds its file.
twice=$(find src cli eval bench include -name '*.[ch]' -printf '%f\n' | sort | uniq -d)
if [ -n "$twice" ]; then echo "file names used twice: $twice"; n_failed=$((n_failed + 1)); else n_passed=$((n_passed + 1)); fi
# The public header stands alone, in C and in C++.
for language in "c -std=c11" "c++ -std=c++17"; do
    # shellcheck disable=SC2086
    if clang -x $language -Wall -Wextra -Wpedantic -Werror -fsyntax-only include/tmx.h; then n_passed=$((n_passed + 1)); else n_failed=$((n_failed + 1)); fi
done
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
