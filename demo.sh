#!/bin/sh
# From a bare Debian machine to an answer: installs what is missing, builds tmx, fetches a small model, writes a long
# document with a secret in it, and asks for the secret twice: with dense and with Triangle attention.
set -eu

usage() {
    echo "usage: ./demo.sh [--build | --long]"
    echo "  --build   only install what is missing and build build/release/tmx"
    echo "  --long    a document of 32,000 tokens instead of 6500, with the adapter that makes the demo model a 32K model;"
    echo "            takes 2.2 GiB of memory, and two cores are busy for several minutes, mostly with the dense run"
    echo "  --help    show this text"
}

build_only=false
long=false
for argument; do
    case "$argument" in
        --build) build_only=true ;;
        --long) long=true ;;
        --help | -h) usage; exit 0 ;;
        *) echo "demo.sh: unknown option '$argument'" >&2; usage >&2; exit 1 ;;
    esac
done

cd "$(dirname "$0")"
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
document=build/demo/document.txt
n_tokens=6500
plan=plans/smollm2-135m-instruct.q4_1.json
set --                             # what changes the model
if $long; then
    document=build/demo/document-long.txt
    n_tokens=32000
    plan=plans/smollm2-135m-32k.json
    set -- --lora eval/longctx/smollm2-135m-32k.lora.gguf --rope-freq-base 1000000
fi

echo "1. Installing the Debian packages that are missing (none is downloaded if all are there)."
scripts/install-packages.sh

echo "2. Building build/release/tmx."
mkdir -p build
if ! { cmake --preset release && cmake --build build/release --target tmx_cli; } >build/demo-build.log 2>&1; then
    tail -n 30 build/demo-build.log >&2
    echo "demo.sh: the build failed; all of its output is in build/demo-build.log" >&2
    exit 1
fi
if $build_only; then
    exit 0
fi

echo "3. Fetching the demo model SmolLM2-135M-Instruct, 98 MB (once)."
scripts/fetch-models.sh

echo "4. Writing a document of about $n_tokens tokens with one secret in it: $document"
mkdir -p build/demo
python3 scripts/make-document.py --tokens-approx "$n_tokens" >"$document"

echo "5. Asking for the secret: first with dense attention, then with the model's own Triangle plan."
echo "   A prompt's time to first token (TTFT) is what a plan shortens; the answers should agree."
echo
build/release/tmx run -m "$model" "$@" --chat -f "$document" --assistant "The secret passcode of the garden gate is" \
    --plan "$plan" --compare -n 16
