#!/usr/bin/env bash
# run-cli-tests.sh PROGRAM [--quick]: the command line from outside.  Every case states the exit code and what standard error must
# hold; a refusal is one line that begins with "tmx: ".  Cases that need the demo model are skipped without it.
# Ends with "N passed, N failed, N skipped".
set -u
unset HOME LANG LC_ALL
cd "$(dirname "$0")/../.." || exit 1

tmx=${1:?usage: run-cli-tests.sh PROGRAM [--quick]}
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
adapter=eval/longctx/smollm2-135m-32k.lora.gguf
quick=no
if [ "${2-}" = --quick ]; then quick=yes; fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
n_passed=0 n_failed=0 n_skipped=0

verdict() {                        # NAME IS_OK DETAIL
    if [ "$2" = yes ]; then n_passed=$((n_passed + 1)); return; fi
    n_failed=$((n_failed + 1))
    echo "FAILED $1: $3"
    sed 's/^/    stderr: /' "$tmp/err" | head -n 5
}

run() { timeout 120 "$tmx" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null; code=$?; }

# The outcome of the last run: NAME EXIT_CODE PATTERN-OF-STDERR ("" = none wanted; else one line that begins with tmx:).
check() {
    local ok=yes detail="exit code $code, expected $2; wanted '$3'"
    [ "$code" = "$2" ] || ok=no
    if [ -z "$3" ]; then
        [ ! -s "$tmp/err" ] || ok=no
    else
        [ "$(wc -l <"$tmp/err")" = 1 ] || ok=no
        grep -qE "^tmx: .*$3" "$tmp/err" || ok=no
    fi
    verdict "$1" $ok "$detail"
}

refused() {                        # NAME EXIT_CODE PATTERN ARGUMENTS...
    local name=$1 want=$2 pattern=$3
    shift 3
    run "$@"
    check "$name" "$want" "$pattern"
}

fine() {                           # NAME ARGUMENTS...: exit code 0, silent standard error
    local name=$1
    shift
    run "$@"
    check "$name" 0 ""
}

printed() {                        # NAME PATTERN: in what the last run printed
    local ok=no
    grep -qE -- "$2" "$tmp/out" && ok=yes
    verdict "$1" $ok "standard output does not hold '$2': $(head -c 200 "$tmp/out" | tr '\n' ' ')"
}

same() {                           # NAME TEXT: exactly what the last run printed
    local ok=no
    [ "$(cat "$tmp/out")" = "$2" ] && ok=yes
    verdict "$1" $ok "standard output is '$(head -c 200 "$tmp/out")', expected '$2'"
}

# Ctrl-C after a while (--preserve-status hands on the program's own exit code).  A script in the background ignores
# SIGINT and hands that on; --foreground spares the group, so one Ctrl-C is one signal.
interrupt=(env --default-signal=INT timeout --preserve-status --foreground -s INT)

# ---------------------------------------------------------------- without a model

refused "unknown command"         1 "unknown command 'walk'"                          walk
refused "unknown global option"   1 "unknown option '--walk'"                         --walk
refused "unknown option"          1 "unknown option '--walk'"                         run --walk
refused "missing value"           1 "-m/--model needs a value"                        run -m
refused "missing value, eaten"    1 "-m/--model needs a value"                        run -m -p hello
refused "bare argument"           1 "unexpected argument 'hello'"                     run hello
refused "repeated option"         1 "-n/--predict given twice"                        run -n 1 --n-predict 2
refused "value for a switch"      1 "--json takes no value"                           run --json=1
refused "context -1"              1 "-c/--ctx-size: -1 is out of range 0\.\.134217728"  run -c -1
refused "context too large"       1 "-c/--ctx-size: 99999999999 is out of range"      run -c 99999999999
refused "predict -5"              1 "-n/--predict: -5 is out of range -1\.\."         run -n -5
refused "threads 100000"          1 "-t/--threads: 100000 is out of range 0\.\.1024"  run -t 100000
refused "temp nan"                1 "--temp: 'nan' is not a number"                   run --temp nan
refused "temp inf"                1 "--temp: 'inf' is not a number"                   run --temp inf
refused "top-p 2"                 1 "--top-p: 2 is out of range 0\.\.1"               run --top-p 2
refused "seed overflow"           1 "-s/--seed: 18446744073709551616 is out of range" run --seed 18446744073709551616
refused "number with a tail"      1 "'12x' is not a whole number"                     run -n 12x
refused "hexadecimal"             1 "'0x10' is not a whole number"                    run -c 0x10
refused "unknown choice"          1 "'fp8' is not one of auto\|f32\|bf16"             run --compute fp8
refused "no model"                1 "no model"                                        run -p x
refused "no prompt"               1 "no prompt"                                       run -m x
refused "two prompts"             1 "only one of -p, -f and --ids"                    run -m x -p y -f z
refused "compare without plan"    1 "--compare needs --plan"                          run -m x -p y --compare
refused "sizes without plan"      1 "need --plan"                                     run -m x -p y --window 3
refused "window 0"                1 "--window: 0 is out of range"                     run -m x -p y --window 0
refused "system without chat"     1 "--system needs --chat"                           run -m x -p y --system s
refused "conversation as JSON"    1 "-i excludes .*--json"                            run -m x -i --json
refused "conversation, stdin"     1 "-i reads standard input by itself"               run -m x -i -f -
refused "two standard inputs"     1 "only once"                                       run -m x -f - -f -
refused "control characters"      1 "unknown option '--a\?\?b'"                       run "$(printf -- '--a\n\033b')"
refused "adapter without scale"   1 "--lora-scaled needs two values \(FILE S\)"        run -m x -p y --lora-scaled f
refused "adapter scale a word"    1 "--lora-scaled: 'y' is not a number"              run -m x -p y --lora-scaled f y
refused "adapter scale 0"         1 "--lora-scaled: 0 is out of range"                run -m x -p y --lora-scaled f 0
refused "plan: no model"          1 "no model"                                        plan --plan dense
refused "plan: no plan"           1 "no plan"                                         plan -m x
refused "plan: two sources"       1 "only one of --plan and --probe"                  plan -m x --plan dense --probe y --layers 1
refused "plan: no layers"         1 "--probe needs either --layers K or --budget"                         plan -m x --probe y
refused "plan: layers alone"      1 "--layers needs --probe"                          plan -m x --plan dense --layers 3
refused "plan: layers and budget" 1 "--probe needs either --layers K or --budget"     plan -m x --probe y --layers 3 --budget kl=1
refused "plan: budget alone"      1 "--budget needs --probe"                          plan -m x --plan dense --budget kl=1
refused "plan: task alone"        1 "need --budget"                                   plan -m x --probe y --layers 3 --task vt
refused "plan: methods alone"         1 "methods, .* need --budget"                       plan -m x --probe y --layers 3 --methods s2o
refused "plan: methods of no probe"   1 "methods, .* need --budget"                       plan -m x --plan dense --methods s2o
refused "plan: methods without value" 1 "--methods needs a value"                         plan -m x --probe y --budget kl=1 --methods
refused "plan: methods twice"         1 "--methods given twice"                           plan -m x --probe y --budget kl=1 --methods s2o --methods s2o
refused "plan: estimate of nothing"   1 "--estimate needs --plan"                         plan -m x --probe y --budget kl=1 --estimate per-chunk
refused "plan: estimate of methods"   1 "'walk' is not one-shot"                          plan -m x --probe y --budget kl=1 --methods s2o --estimate walk
refused "plan: order alone"       1 "--order needs --probe"                           plan -m x --plan dense --order worst
refused "probe: no model"         1 "no model"                                        probe -o x
refused "probe: nothing to resume" 1 "--resume needs -o"                              probe -m x --resume
refused "probe: two sources"      1 "only one of --prompts and --kind"                probe -m x --prompts y --kind passkey
refused "probe: no samples"       1 "--samples: 0 is out of range 1\.\."              probe -m x --samples 0
refused "probe: model missing"    2 "nowhere.gguf"                                    probe -m "$tmp/nowhere.gguf"
refused "plan: note without file" 1 "--note needs -o"                                 plan -m x --plan dense --note n
refused "eval: no model"          1 "no model"                                        eval --tasks passkey
refused "eval: nothing"           1 "nothing to evaluate"                             eval -m x
refused "eval: unknown task"      1 "--tasks: 'walk' is unknown"                      eval -m x --tasks passkey,walk
refused "eval: task twice"        1 "'vt' is named twice"                             eval -m x --tasks vt,vt
refused "eval: bad length"        1 "--lengths: '1K' is no number"                    eval -m x --tasks vt --lengths 1K
refused "eval: lengths of data"   1 "--lengths needs"                                 eval -m x --data y --lengths 9
refused "eval: metric of tasks"   1 "need --data"                                     eval -m x --tasks vt --metric f1
refused "eval: sweep of nothing"  1 "--sweep needs one --plan"                        eval -m x --tasks vt --sweep window=9
refused "eval: sizes of nothing"  1 "need --plan"                                     eval -m x --tasks vt --window 9
refused "bench: no model"         1 "no model: give -m FILE, --random-weights"        bench -p 5
refused "bench: unknown shape"    1 "'x' is not one of llama-3.1-8b, qwen2.5-7b"      bench --random-weights x
refused "bench: random on a CPU"  1 "made on a GPU only"                              bench --random-weights qwen3-8b --device cpu
refused "bench: no test"          1 "no test: -p and -n are 0"                        bench -m x -p 0 -n 0
refused "bench: half a range"     1 "-p/--n-prompt: '5-' is no number or range"       bench -m x -p 5-
refused "bench: an endless range" 1 "--n-depth: more than 256 numbers"                bench -m x -d 1-99999
refused "bench: half a pair"      1 "'5' is not two numbers"                          bench -m x --pg 5
refused "bench: kernels of plans" 1 "--kernels excludes"                              bench --kernels --plan dense
refused "bench: heads of a model" 1 "need --kernels"                                  bench -m x --head-dim 64
refused "bench: no repetition"    1 "-r/--repetitions: 0 is out of range 1\.\.1000"   bench -m x -r 0
refused "bench: unknown form"     1 "'sql' is not one of md\|csv\|json"               bench -m x -o sql
refused "bench: model missing"    2 "nowhere.gguf"                                    bench -m "$tmp/nowhere.gguf"
refused "bench: kernels of nothing" 2 "nowhere.gguf"                                  bench --kernels -m "$tmp/nowhere.gguf"
refused "bench: unknown rung"     1 "sse9"                                            bench --kernels --isa sse9
refused "bench: picture's folder" 2 "cannot be created"                               bench -m x --svg "$tmp/nowhere/p.svg"
refused "inspect: no model"       1 "no model"                                        inspect
refused "inspect: no pattern"     1 "go with --pattern"                               inspect a --layer 3
refused "inspect: pattern alone"  1 "takes one prompt"                                inspect a --pattern dense --layer 0 --head 0
refused "inspect: no layer"       1 "needs --layer and --head"                        inspect a --pattern dense -p x
refused "inspect: two models"     1 "-m/--model given twice"                          inspect a b

run
verdict "no arguments" "$([ "$code" = 1 ] && grep -q '^Usage' "$tmp/err" && echo yes)" "exit code $code, expected 1"
for arguments in --help "run --help" "run -h" "plan --help" "probe --help" "eval --help" "bench --help" "inspect --help" --man "run --man" \
                 "plan --man" "probe --man" "eval --man" "bench --man" "inspect --man"; do
    # shellcheck disable=SC2086
    fine "tmx $arguments" $arguments
    printed "tmx $arguments" '^(Usage|\.TH)'
done
fine "version" --version
printed "version" '^tmx [0-9]+\.[0-9]+\.[0-9]+ \('
fine "tasks" eval --list-tasks
printed "tasks" '^niah_single_1 +a number'
fine "presets" plan --list-presets
printed "presets" '^llama-3\.1-8b-instruct$'

refused "prompt file missing"     2 "nowhere.txt: No such file"       run -m x -f "$tmp/nowhere.txt"
refused "prompt file a folder"    2 "is a directory"                  run -m x -f "$tmp"
refused "model missing"           2 "nowhere.gguf"                    run -m "$tmp/nowhere.gguf" -p x
refused "model a folder"          2 "is a directory"                  run -m "$tmp" -p x
refused "inspect: model missing"  2 "nowhere.gguf"                    inspect "$tmp/nowhere.gguf"
: >"$tmp/empty.gguf"
refused "model empty"             2 "empty.gguf"                      run -m "$tmp/empty.gguf" -p x
echo '<html>' >"$tmp/page.gguf"
refused "model a web page"        2 "page.gguf"                       run -m "$tmp/page.gguf" -p x
refused "inspect: a web page"     2 "page.gguf"                       inspect "$tmp/page.gguf"
refused "plan: a web page"        2 "page.gguf"                       plan -m "$tmp/page.gguf" --plan dense
printf '1 2 x3 4' >"$tmp/bad.ids"
refused "ids: a word"             2 "bad.ids: 'x3' at position 2 \(byte 4\)"  run -m x --ids "$tmp/bad.ids"
printf '1 -2' >"$tmp/bad.ids"
refused "ids: negative"           2 "'-2' at position 1"              run -m x --ids "$tmp/bad.ids"
printf '99999999999999999999999999' >"$tmp/bad.ids"
refused "ids: too long"           2 "at position 0"                   run -m x --ids "$tmp/bad.ids"
printf '{"input": "x", "outputs": ["y"]}\n{"input": 7, "outputs": ["y"]}\n' >"$tmp/bad.jsonl"
refused "eval: data of wrong type" 2 "bad.jsonl:2: field \"input\""   eval -m x --data "$tmp/bad.jsonl"
refused "eval: data missing"      2 "nowhere.jsonl: No such file"     eval -m x --data "$tmp/nowhere.jsonl"
refused "eval: page's folder"     2 "cannot be created"               eval -m x --tasks vt --html "$tmp/nowhere/p.html"
refused "endless prompt"          2 "longer than 1 GiB"               run -m x -f /dev/zero

refused "inspect: NaN"            2 "general.architecture"            inspect fuzz/corpus/gguf/seed-nan --check-tensors
printed "inspect: NaN"            "^check .*tensor 'a' \(F32\): element 1, block at byte 68: NaN$"
refused "inspect: NaN as JSON"    2 "general.architecture"            inspect fuzz/corpus/gguf/seed-nan --check-tensors --json
printed "inspect: NaN as JSON"    '"tensors_are_finite": false'
tail -c +3 fuzz/corpus/split/seed-good | head -c "$(od -An -tu2 -N2 fuzz/corpus/split/seed-good)" >"$tmp/m-00001-of-00002.gguf"
refused "inspect: a part missing" 2 "part 2 of 2: .*m-00002-of-00002.gguf: cannot open" inspect "$tmp/m-00001-of-00002.gguf"
cp "$tmp/m-00001-of-00002.gguf" "$tmp/part.gguf"
refused "inspect: a part renamed" 2 "part 1 of 2 .*must end in -00001-of-00002.gguf" inspect "$tmp/part.gguf"
timeout 60 "$tmx" run -m x -f - >"$tmp/out" 2>"$tmp/err" <&-; code=$?
check "standard input closed" 2 "standard input: cannot be read"
timeout 60 "$tmx" --help 2>"$tmp/err" >&-; code=$?
check "standard output closed" 2 "cannot write to standard output: Bad file descriptor"
if [ -w /dev/full ]; then
    timeout 60 "$tmx" --help 2>"$tmp/err" >/dev/full; code=$?
    check "disk full" 2 "cannot write to standard output: No space left"
else
    n_skipped=$((n_skipped + 1))
    echo "SKIPPED disk full: no /dev/full"
fi
mkfifo "$tmp/pipe"
exec 3<>"$tmp/pipe" 4>"$tmp/pipe" 3<&-                       # a pipe whose reader has gone
timeout 60 "$tmx" --help 2>"$tmp/err" >&4; code=$?
exec 4>&-
check "reader has gone" 141 ""
timeout 60 "$tmx" run --walk 2>&- >/dev/null; code=$?
: >"$tmp/err"
check "standard error closed" 1 ""

# ---------------------------------------------------------------- with the demo model

# What computes for long: left out with --quick, as under a sanitizer, where the rooms' own tests run the same code.
# converse NAME EXIT_CODE PATTERN INPUT ARGUMENTS...: tmx run -i on an input in printf's spelling.
converse() {
    local name=$1 want=$2 pattern=$3 input=$4
    shift 4
    # shellcheck disable=SC2059
    printf "$input" | timeout 120 "$tmx" run -q -m "$model" -i "$@" >"$tmp/out" 2>"$tmp/err"
    code=$?
    check "$name" "$want" "$pattern"
}

# The model cut into two files, metadata in the first: m-00001-of-00002.gguf and m-00002-of-00002.gguf.
split_model() {
    python3 - "$model" "$tmp/m" <<'PY'
import struct, sys
data = open(sys.argv[1], "rb").read()
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
at = 24
def take(form):
    global at
    value, = struct.unpack_from(form, data, at)
    at += struct.calcsize(form)
    return value
def skip(kind):
    global at
    if kind == 8:
        n = take("<Q")
        at += n
    elif kind == 9:
        element, n = take("<I"), take("<Q")
        for _ in range(n if element == 8 else 0):
            skip(8)
        at += 0 if element == 8 else n * SIZES[element]
    else:
        at += SIZES[kind]
n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
for _ in range(n_keys):
    skip(8)
    skip(take("<I"))
keys, tensors = data[24:at], []
for _ in range(n_tensors):
    begin = at
    skip(8)
    n = take("<I")
    at += 8 * n + 4
    tensors.append([data[begin:at], take("<Q")])
start = -(-at // 32) * 32
ends = sorted(offset for _, offset in tensors) + [len(data) - start]
for part in range(2):
    half = tensors[:n_tensors // 3] if part == 0 else tensors[n_tensors // 3:]
    extra = b"".join(struct.pack("<Q", len(k)) + k + struct.pack("<I", kind) + struct.pack(form, v) for k, kind, form, v in (
        (b"split.no", 2, "<H", part), (b"split.count", 2, "<H", 2), (b"split.tensors.count", 5, "<i", n_tensors)))
    records, body = b"", b""
    for record, offset in half:
        end = next(e for e in ends if e > offset)
        records += record + struct.pack("<Q", len(body))
        body += data[start + offset:start + end]
        body += bytes(-len(body) % 32)
    head = data[:8] + struct.pack("<QQ", len(half), 3 + (n_keys if part == 0 else 0)) + (keys if part == 0 else b"") + extra + records
    with open(f"{sys.argv[2]}-0000{part + 1}-of-00002.gguf", "wb") as f:
        f.write(head + bytes(-len(head) % 32) + body)
PY
}

split_tests() {
    local part
    split_model 2>"$tmp/err"; code=$?
    check "split: made" 0 ""
    for part in 1 2; do
        fine "split: part $part" run -q -m "$tmp/m-0000$part-of-00002.gguf" -p "The capital of France is" -n 1
        same "split: part $part" " Paris"
    done
    fine "split: inspect" inspect "$tmp/m-00002-of-00002.gguf" --check-tensors
    printed "split: inspect" '^parts .*m-00001-of-00002.gguf, .* MiB, 90 tensors$'
    printed "split: inspect" 'm-00002-of-00002.gguf, .* MiB, 182 tensors$'
    truncate -s -1 "$tmp/m-00002-of-00002.gguf"
    refused "split: part cut short" 2 "part 2 of 2: .*m-00002-of-00002.gguf: truncated at byte" run -q -m "$tmp/m-00001-of-00002.gguf" -p x
    rm "$tmp/m-00002-of-00002.gguf"
    refused "split: part missing" 2 "part 2 of 2: .*cannot open" run -q -m "$tmp/m-00001-of-00002.gguf" -p x
    rm "$tmp/m-00001-of-00002.gguf"
}

conversation_tests() {
    local first n
    fine "conversation: a turn alone" run -q -m "$model" --chat -p "Name a colour." -n 8
    first=$(cat "$tmp/out")
    converse "conversation" 0 "" 'Name a colour.\nAnd another one.\n/clear\nName a colour.\n' -n 8 --plan triangle:10-29 --last 8
    verdict "conversation: the first answer" "$([ "$(head -n 1 "$tmp/out")" = "${first%%$'\n'*}" ] && echo yes)" "$(cat "$tmp/out")"
    verdict "conversation: cleared" "$([ "$(tail -n 1 "$tmp/out")" = "${first##*$'\n'}" ] && echo yes)" "$(cat "$tmp/out")"
    converse "conversation: nothing said" 0 "" ''
    same "conversation: nothing said" ""
    converse "conversation: left" 0 "" '\n/exit\nName a colour.\n'
    same "conversation: left" ""
    converse "conversation: joined lines" 0 "" 'Name a \\\ncolour.' -n 8
    n=$(cat "$tmp/out")
    fine "conversation: joined lines" run -q -m "$model" --chat -p $'Name a \ncolour.' -n 8
    same "conversation: joined lines" "$n"
    converse "conversation: turn too long" 2 "the conversation has [0-9]+ tokens, the context holds 12; /clear" 'Name a colour and another one.\n' -c 12
    converse "conversation: answer too long" 0 "the context of 24 tokens is full; /clear" 'Name a colour.\n' -c 24 --ignore-eos
    converse "conversation: NUL" 0 "a turn with a NUL byte" 'a\0b\nName a colour.\n' -n 8
    same "conversation: NUL" "$first"
    mkfifo "$tmp/turns"
    env --default-signal=INT "$tmx" run -q -m "$model" -i --ignore-eos <"$tmp/turns" >"$tmp/out" 2>"$tmp/err" &
    exec 9>"$tmp/turns"
    echo "Name a colour." >&9
    sleep 3
    kill -INT $!
    sleep 0.5
    echo "/exit" >&9
    exec 9>&-
    wait $!
    code=$?
    check "conversation: an answer stopped" 0 ""
    printed "conversation: an answer stopped" .
}

long_model_tests() {
    local n
    # MInference's heads
    fine "plan: a search" plan -q -m "$model" --search minference --tokens 400 --samples 1 --keep 0.7 -o "$tmp/heads.json"
    printed "plan: a search" '^[0-9]+ heads vertical-slash, [0-9]+ A-shape, 0 block-sparse; mean error of a head.s output 0?\.[0-9e-]+$'
    fine "plan: what it found" plan -m "$model" --plan "minference($tmp/heads.json)"
    printed "plan: what it found" '^minference 0-29 \(vertical 1000, slash 6096, by head [0-9a-f]{8}\)$'

    # the gradient probe: a report, the same one in two sittings, the plan it leads to, prompts of one's own
    local small=(--sink 8 --window 32 --last 16)           # sanitizers make every token dear
    local probe=(probe -q -m "$model" --tokens 150 --kind passkey "${small[@]}")
    fine "probe" "${probe[@]}" --samples 2 -o "$tmp/whole.json" --svg "$tmp/probe.svg"
    printed "probe: samples" '^prompts +passkey, 2 of 2 samples, '
    printed "probe: last layer first" '^  29 '
    verdict "probe: picture" "$(tail -n 1 "$tmp/probe.svg" | grep -qx '</svg>' && echo yes)" "no picture"
    fine "probe, one sample" "${probe[@]}" --samples 1 -o "$tmp/parts.json"
    fine "probe, one thread, resumed" "${probe[@]}" --samples 2 -o "$tmp/parts.json" --resume -t 1
    verdict "probe, resumed" "$(cmp -s "$tmp/whole.json" "$tmp/parts.json" && echo yes)" "another report"
    refused "probe, resumed with other sections" 1 "measured with other sections" "${probe[@]:0:8}" --sink 8 --window 32 --last 5 \
        -o "$tmp/parts.json" --resume
    refused "probe: file cannot be written" 2 "nowhere" "${probe[@]}" -o "$tmp/nowhere/p.json"
    refused "probe: no room for a Middle" 2 "no Middle section" probe -q -m "$model" --tokens 300 --kind passkey --samples 1 --window 290
    "${interrupt[@]}" 120 "$tmx" "${probe[@]}" --samples 5000 -o "$tmp/cut.json" >"$tmp/out" 2>"$tmp/err" &
    for _ in $(seq 600); do
        grep -qs '^  "n_samples": [1-9]' "$tmp/cut.json" && break
        sleep 0.1
    done
    kill -INT $!
    wait $!
    code=$?
    check "probe interrupted" 130 "interrupted"
    fine "plan from an interrupted probe" plan -m "$model" --probe "$tmp/cut.json" --layers 4 -o "$tmp/probe.plan.json"
    fine "plan from a probe, read back" plan -m "$model" --plan "$tmp/probe.plan.json"
    printed "plan from a probe, read back" '^note: tmx probe: 4 of 30 layers, smallest Middle gradient first;'
    fine "plan, deepest" plan -m "$model" --probe "$tmp/whole.json" --layers 4 --order deepest --window 99
    printed "plan, deepest" '^triangle 26-29 \(sink 8, window 99, last 128\), dense 0-25$'
    refused "plan: unknown order" 1 "'best' is not one of" plan -m "$model" --probe "$tmp/whole.json" --layers 4 --order best
    refused "plan: budget of nothing" 1 "'kl=-1' is not kl=X or drop=X" plan -m "$model" --probe "$tmp/whole.json" --budget kl=-1
    refused "plan: unknown task" 1 "no task 'walk'" plan -m "$model" --probe "$tmp/whole.json" --budget kl=1 --task walk
    fine "plan by a budget" plan -q -m "$model" --probe "$tmp/whole.json" --budget kl=1000 --task passkey --tokens 150 --samples 1 \
        --window 32 --last 16 -o "$tmp/budget.plan.json" --svg "$tmp/budget.svg"
    printed "plan by a budget" '^30 +[0-9.e-]+ +[0-9]+ % .* <- chosen$'
    fine "plan by a curve" plan -q -m "$model" --probe "$tmp/whole.json" --budget kl=0 --curve 15 --task passkey --tokens 150 --samples 1
    printed "plan by a curve" '^15 +[0-9.e-]+ +[0-9]+ % '
    fine "plan by a budget, read back" plan -m "$model" --plan "$tmp/budget.plan.json"
    printed "plan by a budget, read back" '^triangle 0-29 \(sink 8, window 32, last 16\)'
    printed "plan by a budget, read back" '^note: .*; kl=1000 of 1 passkey prompts of 150 tokens$'
    local methods=(plan -q -m "$model" --probe "$tmp/whole.json" --task passkey --tokens 400 --window 32 --last 16 --budget)
    refused "plan: an unknown method" 2 "--methods: 'walk' is not one of" "${methods[@]}" kl=0 --methods 's2o;walk'
    refused "plan: no method" 2 "--methods: '' is not one of" "${methods[@]}" kl=0 --methods 's2o;'
    refused "plan: a static method" 2 "'triangle' is not one of" "${methods[@]}" kl=0 --methods triangle
    refused "plan: a method's layers" 2 "'s2o:3' is not one of" "${methods[@]}" kl=0 --methods s2o:3
    refused "plan: more behind a method" 2 "is not one of" "${methods[@]}" kl=0 --methods 's2o(segment=256):3)'
    refused "plan: a plan for a method" 2 "probe.plan.json' is not one of" "${methods[@]}" kl=0 --methods "$tmp/probe.plan.json"
    refused "plan: a method's parameter" 2 "--methods: xattention stride: 7, expected 4, 8 or 16" "${methods[@]}" kl=0 --methods 'xattention(stride=7)'
    refused "plan: a method cut short" 2 "is not one of" "${methods[@]}" kl=0 --methods 'xattention(stride=8'
    refused "plan: a method's file" 2 "nowhere.json: No such file" "${methods[@]}" kl=0 --methods "minference($tmp/nowhere.json)"
    refused "plan: a method twice" 2 "s2o is named twice" "${methods[@]}" kl=0 --methods 's2o;s2o(segment=256)'
    fine "plan: methods" "${methods[@]}" kl=0 --samples 1 --methods ' s2o(segment=128);xattention(stride=8,threshold=0.5)' -o "$tmp/methods.json"
    printed "plan: methods, none" '^none +0 +[0-9.e-]+ +[0-9]+ % '
    printed "plan: methods, the first" '^s2o\(segment=128\) +[0-9]+ +[0-9.e-]+ +[0-9]+ % '
    printed "plan: methods, the second" '^xattention\(stride=8,threshold=0.5\) +[0-9]+ +[0-9.e-]+ +[0-9]+ % '
    printed "plan: methods, what came of them" '^(none is faster and inside the budget: [0-9]+ layers stay dense|one prompt, taking turns: .*)$'
    fine "plan: methods, read back" plan -m "$model" --plan "$tmp/methods.json"
    fine "plan: methods of any loss" "${methods[@]}" drop=100 --samples 1 --objective ttft --methods 'xattention(stride=8,threshold=0.2)' -o "$tmp/methods.json"
    fine "plan: methods of any loss, run" run -q -m "$model" -p x -n 1 --plan "$tmp/methods.json"
    fine "plan: no layer for methods" "${methods[@]}" kl=1000 --samples 1 --methods s2o
    printed "plan: no layer for methods" '^methods: no layer is left to run one$'
    "${interrupt[@]}" 3 "$tmx" "${methods[@]}" kl=0 --samples 1000 --methods s2o -o "$tmp/never.json" >"$tmp/out" 2>"$tmp/err" </dev/null
    code=$?
    check "plan: methods interrupted" 130 "interrupted"
    verdict "plan: methods interrupted" "$([ ! -e "$tmp/never.json" ] && echo yes)" "a plan was written"
    refused "plan: too many layers" 1 "31 of a model of 30 layers" plan -m "$model" --probe "$tmp/whole.json" --layers 31
    sed 's/"fingerprint": "./"fingerprint": "0/' "$tmp/whole.json" >"$tmp/other.json"
    refused "plan: another model's probe" 2 "made for another model file" \
        plan -m "$model" --probe "$tmp/other.json" --layers 4
    n=$(seq -s ' ' 40)
    printf '{"prompt": "%s The capital of France is", "answer": " Paris"}\n' "$n" >"$tmp/own.jsonl"
    fine "probe, own prompts" probe -q -m "$model" --prompts "$tmp/own.jsonl" "${small[@]}"
    printed "probe, own prompts" 'begins 1 of 1 answers right'
    printf '{"prompt": "x"}\n' >>"$tmp/own.jsonl"
    refused "probe, a wrong line" 2 'own.jsonl:2: expected \{"prompt"' probe -q -m "$model" --prompts "$tmp/own.jsonl" "${small[@]}"
    printf '{"prompt": "x"\n' >"$tmp/own.jsonl"
    refused "probe, no JSON" 2 "own.jsonl:1:" probe -q -m "$model" --prompts "$tmp/own.jsonl"
    printf '{"prompt": "The capital", "answer": ""}\n' >"$tmp/own.jsonl"
    refused "probe, no answer" 2 "own.jsonl:1: the answer adds no token" probe -q -m "$model" --prompts "$tmp/own.jsonl"

    local eval=(eval -q -m "$model" --tasks passkey --lengths 200 --samples 1)
    fine "eval" "${eval[@]}" --plan dense --plan triangle --window 32 --resume "$tmp/journal" --html "$tmp/page.html"
    printed "eval" '^\| passkey +\| +200 \| 1 \| dense +\| 100\.0 \|'
    printed "eval" '^\| passkey +\| +200 \| 1 \| triangle +\|'
    verdict "eval: page" "$(grep -q '</html>' "$tmp/page.html" && grep -q 'tmx eval -q' "$tmp/page.html" && echo yes)" "no page"
    cp "$tmp/out" "$tmp/table"
    fine "eval: resumed" "${eval[@]}" --plan dense --plan triangle --window 32 --resume "$tmp/journal" --html "$tmp/page.html"
    verdict "eval: resumed" "$(cmp -s "$tmp/out" "$tmp/table" && echo yes)" "another table"
    refused "eval: another journal"   2 "kept with \"plans\""             "${eval[@]}" --plan dense --resume "$tmp/journal"
    refused "eval: no journal"        2 "not a journal of tmx eval"       "${eval[@]}" --resume "$tmp/table"
    refused "eval: too short"         1 "task vt: .* tokens are too few"  eval -m "$model" --tasks vt --lengths 200
    refused "eval: too long"          1 "the model has 8192"              eval -m "$model" --tasks vt --lengths 9000
    refused "eval: unknown sweep"     1 "expected window="                "${eval[@]}" --plan triangle --sweep walk=3
    refused "eval: sweep of dense"    1 "dense in every layer"            "${eval[@]}" --plan dense --sweep window=3
    refused "eval: sweep of a method" 1 "xattention has none"             "${eval[@]}" --plan xattention --sweep window=3
    refused "eval: layers"            1 "'31' is no number or range in 0\.\.30" "${eval[@]}" --plan triangle --sweep layers=31
    printf '{"input": "%s", "outputs": ["y"]}\n' "$(printf 'word %.0s' $(seq 9000))" >"$tmp/long.jsonl"
    refused "eval: data too long"     2 "long, line 1: the prompt has 90[0-9]+ tokens" eval -m "$model" --data "$tmp/long.jsonl"
    "${interrupt[@]}" 4 "$tmx" eval -m "$model" --tasks passkey --lengths 200 --samples 1000 -o csv \
        >"$tmp/out" 2>"$tmp/err" </dev/null
    code=$?
    check "eval: interrupted" 130 "interrupted"

    bench_tests
}

bench_tests() {
    local bench=(bench -q -m "$model" -r 2)
    printf '{"trianglemix_plan": 1' >"$tmp/cut.plan.json"
    fine "bench" "${bench[@]}" -p 40,60 -n 3 --plan dense,triangle:5,7,10-29 --window 20 --last 8 --svg "$tmp/bench.svg"
    printed "bench" '^\| model +\| +size \|.*\| +test \| +t/s \|$'
    printed "bench" '^\| llama 135M Q4_1 .*\| triangle:5,7,10-29 \|.*\| +pp60 \| +[0-9.]+ ± [0-9.]+ \|$'
    verdict "bench: rows" "$([ "$(grep -c 'tg3' "$tmp/out")" = 1 ] && [ "$(wc -l <"$tmp/out")" = 7 ] && echo yes)" "$(cat "$tmp/out")"
    verdict "bench: picture" "$(tail -n 1 "$tmp/bench.svg" | grep -qx '</svg>' && grep -q 'triangle:5,7' "$tmp/bench.svg" && echo yes)" "no picture"
    refused "bench: unknown plan"     2 "walk"                      "${bench[@]}" -p 9 --plan dense,walk
    refused "bench: empty plan"       2 "plan"                      "${bench[@]}" -p 9 --plan dense,
    refused "bench: plan cut short"   2 "cut.plan.json"             "${bench[@]}" -p 9 --plan "$tmp/cut.plan.json"
    refused "bench: beyond the model" 1 "takes 8193 tokens .*, the model has 8192" "${bench[@]}" -p 8193 -n 0
    refused "bench: cut model"        2 "cut.gguf"                  bench -m "$tmp/cut.gguf"
    if command -v python3 >/dev/null; then
        fine "bench as JSON" "${bench[@]}" -p 40 -n 3 -d 0,30 --pg 20,2 --plan dense --plan triangle --window 20 --last 8 -o json -t 2
        cp "$tmp/out" "$tmp/bench.json"
        fine "bench as CSV" "${bench[@]}" -p 40 -n 3 -d 0,30 --pg 20,2 --plan dense --plan triangle --window 20 --last 8 -o csv -t 2
        cp "$tmp/out" "$tmp/bench.csv"
        fine "kernels as JSON" bench -q --kernels -p 16,100 --head-dim 64 --gqa 3 --rows 8 -r 2 -m "$model" -o json
        cp "$tmp/out" "$tmp/kernels.json"
        fine "kernels as CSV" bench -q --kernels -p 16 --head-dim 8 --gqa 1 --rows 8 -r 1 -m "$model" -o csv
        cp "$tmp/out" "$tmp/kernels.csv"
        python3 tests/cli/check-bench-output.py "$tmp" >"$tmp/err" 2>&1; code=$?
        check "bench: types, columns and sums" 0 ""
    else
        n_skipped=$((n_skipped + 5))
        echo "SKIPPED bench as JSON and CSV: no python3"
    fi
    fine "kernels" bench -q --kernels -p 16 --head-dim 8 --gqa 1 --rows 8 -r 1 -m "$model"
    printed "kernels" '^\| attention \| triangle +\| bf16 '
    # what is finished is printed, and says how much of its test it is
    "${interrupt[@]}" 4 "$tmx" "${bench[@]:0:4}" -p 5-12 -n 0 -r 1000 >"$tmp/out" 2>"$tmp/err" </dev/null
    code=$?
    check "bench: interrupted" 130 "interrupted"
    printed "bench: interrupted" '\| +pp[0-9]+ \([0-9]+ of 1000\) \|'
    "${interrupt[@]}" 4 "$tmx" "${bench[@]:0:4}" -p 5-12 -n 0 -r 1000 -o json >"$tmp/out" 2>"$tmp/err" </dev/null
    code=$?
    check "bench: interrupted, JSON" 130 "interrupted"
    printed "bench: interrupted, JSON" '"is_complete": false'
    verdict "bench: interrupted, JSON" "$([ "$(tail -n 1 "$tmp/out")" = "]" ] && echo yes)" "not a whole array"
    if [ -w /dev/full ]; then
        timeout 120 "$tmx" "${bench[@]}" -p 9 -n 0 2>"$tmp/err" >/dev/full; code=$?
        check "bench: disk full" 2 "No space left"
    fi
}

model_tests() {
    local n lengths capital="The capital of France is" doc=$tmp/doc.txt
    local quiet=(run -q -m "$model")

    fine "inspect" inspect "$model"
    printed "inspect" '^can run +yes$'
    yes "The river runs past the old stone bridge." | head -n 30 >"$doc"        # s2o is dense up to 256 tokens
    fine "inspect: a pattern" inspect "$model" --pattern "mix:triangle=0-3,rest=s2o(segment=128)" -f "$doc" --layer 2 --head 1 --svg "$tmp/tiles.svg"
    printed "inspect: a pattern" '^layer 2, head 1: triangle, [0-9]+ tokens, [0-9.]+ % of the pairs, [0-9]+ of [0-9]+ tiles$'
    fine "inspect: a method" inspect "$model" --pattern "mix:triangle=0-3,rest=s2o(segment=128)" -f "$doc" --layer 4 --head 8
    printed "inspect: a method" '^layer 4, head 8: s2o, '
    refused "inspect: layer 99" 1 "layer: 99, expected 0\.\.29" inspect "$model" --pattern dense -p x --layer 99 --head 0
    refused "inspect: picture's folder" 2 "cannot be created" inspect "$model" --pattern dense -p x --layer 0 --head 0 --svg "$tmp/nowhere/p.svg"
    fine "inspect as JSON" inspect "$model" --json --tensors --metadata -c 100
    printed "inspect as JSON" '"can_run": true'
    fine "inspect, checked" inspect "$model" --check-tensors
    printed "inspect, checked" '^check +no NaN, no infinity$'
    if command -v python3 >/dev/null; then
        fine "inspect, all as JSON" inspect "$model" --json --tensors --metadata --check-tensors -c 100
        python3 - "$tmp/out" >"$tmp/err" 2>&1 <<'PY'
import json, os, sys
d = json.load(open(sys.argv[1]))
assert d["can_run"] is True and d["reason"] is None and d["tensors_are_finite"] is True and d["check"] is None
assert d["architecture"] == "llama" and d["gguf_version"] == 3 and d["model"]["n_layers"] == 30 and d["memory"]["n_ctx"] == 100
assert d["memory"]["resident_bytes"] == d["memory"]["total_bytes"] + d["n_bytes"]
assert len(d["parts"]) == 1 and d["parts"][0]["n_bytes"] == d["n_bytes"] == os.path.getsize(d["path"])
assert len(d["tensors"]) == d["n_tensors"] == d["parts"][0]["n_tensors"] and len(d["metadata"]) == d["n_keys"]
for kind in d["tensor_types"]:
    tensors = [t for t in d["tensors"] if t["type"] == kind["type"]]
    assert len(tensors) == kind["n_tensors"] and sum(t["n_bytes"] for t in tensors) == kind["n_bytes"]
ends = sorted((t["offset_bytes"], t["offset_bytes"] + t["n_bytes"]) for t in d["tensors"])
assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:])) and ends[-1][1] <= d["n_bytes"]
PY
        code=$?
        check "inspect, all as JSON, holds together" 0 ""
    else
        n_skipped=$((n_skipped + 1))
        echo "SKIPPED inspect as JSON: no python3"
    fi
    refused "inspect: context too large" 1 "9000 tokens asked for, the model has 8192" inspect "$model" -c 9000
    head -c 1000000 "$model" >"$tmp/cut.gguf"
    refused "model cut short" 2 "cut.gguf" run -m "$tmp/cut.gguf" -p x
    refused "inspect: model cut short" 2 "cut.gguf" inspect "$tmp/cut.gguf"

    fine "plan" plan -m "$model" --plan triangle:10-29
    printed "plan" '^triangle 10-29 \(sink 8, window 512, last 128\), dense 0-9$'
    local mix="mix:triangle=10-29,rest=xattention(threshold=0.95)"
    fine "plan: a mix" plan -m "$model" --plan "$mix" -o "$tmp/mix.json"
    printed "plan: a mix" '^triangle 10-29 \(sink 8, window 512, last 128\), xattention 0-9 \(stride 8, threshold 0.95, norm 1\)$'
    printed "plan: a mix" '^0-9 +xattention$'
    printed "plan: a mix" '^dynamic layers are counted as dense'
    fine "plan: a mix, read back" plan -m "$model" --plan "$tmp/mix.json"
    printed "plan: a mix, read back" 'xattention 0-9 \(stride 8, threshold 0.95, norm 1\)$'
    refused "plan: a bad parameter"    2 "xattention stride: 7, expected 4, 8 or 16" plan -m "$model" --plan "xattention(stride=7)"
    refused "plan: no number"          2 "gamma: expected a number" plan -m "$model" --plan "flexprefill(gamma=x)"
    refused "plan: no parameter"       2 "walk: no parameter of s2o" plan -m "$model" --plan "s2o(walk=3)"
    refused "run: a bad parameter"     2 "xattention stride: 7, expected" run -m "$model" -p x --plan "mix:triangle=9-29,rest=xattention(stride=7)"
    refused "eval: a bad parameter"    2 "xattention threshold: 2, expected" eval -m "$model" --tasks vt --plan "xattention(threshold=2)"
    refused "inspect: a bad parameter" 2 "s2o segment: 100, expected" inspect "$model" --pattern "s2o(segment=100)" -p x --layer 0 --head 0
    fine "plan: per chunk" plan -m "$model" --plan flexprefill:3 --estimate per-chunk:512
    printed "plan: per chunk" '^flexprefill 3 .*; estimated per chunk of 512 tokens$'
    refused "plan: per what"           1 "'per-row' is not one-shot" plan -m "$model" --plan flexprefill --estimate per-row
    refused "plan: no plan's name"     1 "--plan needs a value" plan -m "$model" --plan
    refused "plan: a bad mix"          2 "character 25: expected dense, streaming" plan -m "$model" --plan "mix:triangle=10-29,rest=walk"
    refused "plan: layer out of range" 2 "layer 30 is out of range 0\.\.29" plan -m "$model" --plan triangle:10-30
    refused "plan: layer twice"        2 "layer 3 is named twice"           plan -m "$model" --plan triangle:3,3
    refused "plan: unknown preset"     2 "preset 'nobody': unknown"         plan -m "$model" --plan preset:nobody
    sed 's/"threshold": 0.95/"threshold": 2/' "$tmp/mix.json" >"$tmp/bad.json"
    refused "plan: a bad parameter in a file" 2 "bad.json: xattention threshold: 2, expected" plan -m "$model" --plan "$tmp/bad.json"
    printf '[[0.9]]' >"$tmp/thresholds.json"
    refused "plan: thresholds of another model" 2 "thresholds.json: 1 layers, expected 30" plan -m "$model" --plan "xattention(thresholds=$tmp/thresholds.json)"
    printf '[{"0": ["vertical_and_slash", 30,' >"$tmp/heads.json"
    refused "plan: heads cut short"    2 "heads.json:1:" plan -m "$model" --plan "minference($tmp/heads.json)"
    printf '[{"0": ["vertical_and_slash", 30, 800]}]' >"$tmp/heads.json"
    refused "plan: heads of another model" 2 "heads.json: 1 layers, expected 30" plan -m "$model" --plan "minference($tmp/heads.json)"
    refused "plan: no heads"           2 "nowhere.json: No such file" plan -m "$model" --plan "mix:triangle=3,rest=minference($tmp/nowhere.json)"
    refused "plan: a search for what"  1 "the one method is minference" plan -m "$model" --search walk -o "$tmp/heads.json"
    refused "plan: a search for whom"  1 "option --search needs -o FILE" plan -m "$model" --search minference
    refused "plan: a search and a plan" 1 "no plan or probe" plan -m "$model" --search minference --plan dense -o "$tmp/heads.json"
    refused "plan: another's preset"   2 "made for qwen3"                   plan -m "$model" --plan preset:qwen3-8b
    refused "plan: no such file"       2 "nowhere.json"                     plan -m "$model" --plan "$tmp/nowhere.json"
    fine "plan: written" plan -m "$model" --plan triangle:10-29 --window 64 -o "$tmp/plan.json" --note "a note"
    fine "plan: read back" plan -m "$model" --plan "$tmp/plan.json"
    printed "plan: read back" '\(sink 8, window 64, last 128\)'
    printed "plan: note" '^note: a note$'
    refused "plan: folder missing"     2 "nowhere" plan -m "$model" --plan dense -o "$tmp/nowhere/plan.json"
    sed 's/"architecture": "llama"/"architecture": "qwen3"/' "$tmp/plan.json" >"$tmp/other.json"
    refused "plan: of another model"   2 "made for qwen3" run -m "$model" -p x --plan "$tmp/other.json"

    fine "answer" "${quiet[@]}" -p "$capital" -n 1
    same "answer" " Paris"
    printf '%s' "$capital" >"$tmp/prompt.txt"
    fine "answer, from a file" "${quiet[@]}" -f "$tmp/prompt.txt" -n 1
    same "answer, from a file" " Paris"
    timeout 120 "$tmx" "${quiet[@]}" -f - -n 1 <"$tmp/prompt.txt" >"$tmp/out" 2>"$tmp/err"; code=$?
    check "answer, from a pipe" 0 ""
    same "answer, from a pipe" " Paris"
    fine "tokens" "${quiet[@]}" -p "$capital" --tokens
    cp "$tmp/out" "$tmp/prompt.ids"
    fine "answer, from ids" "${quiet[@]}" --ids "$tmp/prompt.ids" -n 1
    same "answer, from ids" " Paris"
    fine "batch" "${quiet[@]}" -f "$tmp/prompt.txt" -f "$tmp/prompt.txt" -n 1
    same "batch" $' Paris\n Paris'
    fine "one thread, chunks of 3, scalar" "${quiet[@]}" -p "$capital" -n 1 -t 1 --chunk 3 --isa scalar
    same "one thread, chunks of 3, scalar" " Paris"
    fine "stop text across tokens" "${quiet[@]}" -p "$capital" -n 12 --stop "ris." --stop "ari"
    same "stop text across tokens" " P"
    fine "seeded" "${quiet[@]}" -p "$capital" -n 12 --temp 1.5 -s 7
    n=$(cat "$tmp/out")
    fine "seeded again" "${quiet[@]}" -p "$capital" -n 12 --temp 1.5 -s 7
    same "seeded again" "$n"
    fine "nothing to generate" "${quiet[@]}" -p "$capital" -n 0
    same "nothing to generate" ""
    fine "chat" "${quiet[@]}" --chat --system "Be brief." -p "Name a colour." --assistant "My colour is" -n 4
    conversation_tests
    if command -v python3 >/dev/null; then
        split_tests
    else
        n_skipped=$((n_skipped + 1))
        echo "SKIPPED a model in parts: no python3"
    fi
    fine "compare" "${quiet[@]}" -p "$capital" -n 1 --plan triangle:10-29 --compare
    printed "compare" '^answer +Paris +Paris$'
    printed "compare" '^agreement +KL .*, top-1 equal, 1 of 1 greedy tokens equal$'
    if command -v python3 >/dev/null; then
        fine "JSON" "${quiet[@]}" -p "$capital" -n 3 --plan triangle --compare --json --logits "$tmp/logits.npy"
        python3 - "$tmp" >"$tmp/err" 2>&1 <<'PY'
import json, struct, sys
folder = sys.argv[1]
d = json.load(open(folder + "/out"))
assert [r["plan"]["text"].split()[0] for r in d["runs"]] == ["dense", "triangle"], d["runs"]
assert d["runs"][0]["answers"][0]["text"].startswith(" Paris"), d["runs"][0]["answers"]
assert d["agreement"]["n_equal_tokens"] == 3 and len(d["prompts"][0]["ids"]) == d["prompts"][0]["n_tokens"]
npy = open(folder + "/logits.npy", "rb").read()
assert npy[:8] == b"\x93NUMPY\x01\x00"
n_header, = struct.unpack("<H", npy[8:10])
header = eval(npy[10:10 + n_header])
n_vocab = d["model"]["n_vocab"]
assert header == {"descr": "<f4", "fortran_order": False, "shape": (n_vocab,)}, header
assert (10 + n_header) % 64 == 0 and len(npy) == 10 + n_header + 4 * n_vocab
logits = struct.unpack("<%df" % n_vocab, npy[10 + n_header:])
assert max(range(n_vocab), key=logits.__getitem__) == d["runs"][1]["answers"][0]["ids"][0]
PY
        code=$?
        check "JSON and logits hold together" 0 ""
    else
        n_skipped=$((n_skipped + 2))
        echo "SKIPPED JSON: no python3"
    fi
    refused "logits: folder missing" 2 "cannot be created" "${quiet[@]}" -p x -n 0 --logits "$tmp/nowhere/l.npy"

    refused "empty prompt" 2 "the prompt is empty" run -m "$model" -p ""
    refused "ids out of range" 2 "token id 49152 at position 1 is out of range 0\.\.49151" \
        run -m "$model" --ids <(printf '5 49152')
    refused "prompt and NUL in chat" 2 "NUL byte" run -m "$model" --chat -f <(printf 'a\0b')
    refused "prompt beyond -c" 2 "the prompt has 5 tokens, the context holds 4" run -m "$model" -p "$capital" -c 4
    fine "prompt that fills -c" "${quiet[@]}" -p "$capital" -c 5 -n 9
    same "prompt that fills -c" " Paris"
    refused "unknown instruction set" 1 "sse9" run -m "$model" -p x --isa sse9
    refused "context beyond the model" 1 "the model has 8192" run -m "$model" -p x -c 8193
    fine "context lifted" "${quiet[@]}" -p "$capital" -c 9000 --rope-freq-base 1000000 -n 1

    local changes=(--lora "$adapter" --rope-freq-base 1000000)
    fine "adapter" "${quiet[@]}" "${changes[@]}" -p "$capital" -n 1 --logits "$tmp/lora.npy"
    same "adapter" " Paris"
    fine "adapter, scaled" "${quiet[@]}" --lora-scaled "$adapter" 0.5 --lora-scaled "$adapter" 0.5 \
        --rope-freq-base 1000000 -p "$capital" -n 1 --logits "$tmp/halves.npy"
    cmp "$tmp/lora.npy" "$tmp/halves.npy" >"$tmp/err" 2>&1; code=$?
    check "an adapter is its two halves" 0 ""
    fine "inspect: adapter" inspect "$model" "${changes[@]}" -c 32768
    printed "inspect: adapter" 'RoPE base 1e\+06'
    printed "inspect: adapter" ', adapted tensors [0-9.]+ MiB, KV cache'
    fine "plan: shown with an adapter" plan -m "$model" "${changes[@]}" --plan triangle
    refused "adapter missing" 2 "nowhere.gguf" "${quiet[@]}" -p x --lora "$tmp/nowhere.gguf"
    refused "adapter a model" 2 "general.type is 'model', expected 'adapter'" "${quiet[@]}" -p x --lora "$model"
    refused "inspect: adapter a model" 2 "general.type is 'model', expected 'adapter'" inspect "$model" --lora "$model"
    refused "plan: adapter a model" 2 "general.type is 'model', expected 'adapter'" \
        plan -m "$model" --lora "$model" --plan dense
    refused "model an adapter" 2 "this is an adapter" run -m "$adapter" -p x
    head -c 1000000 "$adapter" >"$tmp/cut.gguf"
    refused "adapter cut short" 2 "cut.gguf" "${quiet[@]}" -p x --lora "$tmp/cut.gguf"
    refused "plain plan with an adapter" 2 "other LoRA adapters or another RoPE base" \
        "${quiet[@]}" --lora "$adapter" -p x --plan "$tmp/plan.json"
    refused "plain plan with a RoPE base" 2 "other LoRA adapters or another RoPE base" \
        "${quiet[@]}" --rope-freq-base 1000000 -p x --plan "$tmp/plan.json"
    fine "plan: with an adapter" plan -m "$model" "${changes[@]}" --plan triangle:10-29 -o "$tmp/lora.json"
    fine "run: with its plan" "${quiet[@]}" "${changes[@]}" -p "$capital" -n 1 --plan "$tmp/lora.json"
    refused "plan with an adapter, plain" 2 "other LoRA adapters" "${quiet[@]}" -p x --plan "$tmp/lora.json"

    # any bytes come back as text: NUL, invalid UTF-8, overlong forms, special tokens that stay text
    printf 'a\0b\xff\xc0\x80\xed\xa0\x80 <|im_end|>' >"$tmp/bytes"
    fine "any bytes" "${quiet[@]}" -f "$tmp/bytes" -n 2
    fine "special text stays text" "${quiet[@]}" -p "<|im_end|>" --tokens
    verdict "special text stays text" "$([ "$(wc -w <"$tmp/out")" -gt 1 ] && echo yes)" "$(cat "$tmp/out")"
    fine "special text on demand" "${quiet[@]}" -p "<|im_end|>" --special --tokens
    same "special text on demand" "2"

    # a million of one thing: linear time, and refused with both numbers
    for what in 'a' ' ' '\n' '!' 'a!' '\xcc\x81' '\xf0\x9f\x91\xa9\xe2\x80\x8d' '1'; do
        # shellcheck disable=SC2059
        printf "$what%.0s" $(seq 1000) >"$doc"
        for _ in 1 2 3; do
            cat "$doc" "$doc" "$doc" "$doc" "$doc" "$doc" "$doc" "$doc" "$doc" "$doc" >"$tmp/ten"
            mv "$tmp/ten" "$doc"
        done
        fine "a million of '$what'" "${quiet[@]}" -f "$doc" --tokens
    done
    refused "a million tokens" 2 "the prompt has [0-9]+ tokens, the context holds 8192" run -m "$model" -f "$doc"

    # lengths around tiles and around sink, window and last rows
    seq 100 400 | tr '\n' ' ' >"$tmp/all.ids"
    lengths=(1 63 64 65 127 128 129 140 141)
    if [ "$quick" = yes ]; then lengths=(1 65 141); fi
    for n in "${lengths[@]}"; do
        cut -d' ' -f "1-$n" "$tmp/all.ids" >"$tmp/some.ids"
        fine "$n tokens" "${quiet[@]}" --ids "$tmp/some.ids" -n 2 --plan triangle:5-29 --sink 4 --window 60 --last 64
    done

    # Ctrl-C while loading, prefilling, decoding
    yes "The river runs past the old stone bridge." | head -n 800 >"$doc"
    for n in 0.5 1.5; do
        "${interrupt[@]}" $n "$tmx" run -m "$model" -f "$doc" -n 1 >"$tmp/out" 2>"$tmp/err" </dev/null
        code=$?
        check "interrupted after $n s" 130 "interrupted"
        same "interrupted after $n s" ""
    done
    "${interrupt[@]}" 3 "$tmx" "${quiet[@]}" -p "$capital" --ignore-eos -n -1 >"$tmp/out" 2>"$tmp/err"
    code=$?
    check "interrupted answer" 130 "interrupted"

    # Ctrl-C twice, close together: whoever speaks, it is said once
    for n in 1.000 1.001 1.003 1.010; do
        env --default-signal=INT "$tmx" run -m "$model" -f "$doc" -n 1 >"$tmp/out" 2>"$tmp/err" </dev/null &
        sleep 1
        kill -INT $!
        sleep "0${n#1}"
        kill -INT $! 2>/dev/null
        wait $!
        code=$?
        check "interrupted twice, ${n#1.} ms apart" 130 "interrupted"
    done

    timeout 120 "$tmx" "${quiet[@]}" -p "$capital" -n -1 --ignore-eos 2>"$tmp/err" | head -c 3 >"$tmp/out"
    code=${PIPESTATUS[0]}
    check "reader of the answer has gone" 141 ""
    if [ -w /dev/full ]; then
        timeout 120 "$tmx" "${quiet[@]}" -p "$capital" -n -1 --ignore-eos 2>"$tmp/err" >/dev/full; code=$?
        check "disk full under the answer" 2 "No space left"
    fi
    cp "$model" "$tmp/shrinks.gguf"
    (sleep 3; truncate -s 100000 "$tmp/shrinks.gguf") &
    run "${quiet[@]:0:2}" -m "$tmp/shrinks.gguf" -p "$capital" -n -1 --ignore-eos
    check "model file truncated while in use" 2 "changed or truncated"
    wait
}

if [ -f "$model" ]; then
    model_tests
    if [ "$quick" = yes ]; then
        n_skipped=$((n_skipped + 1))
        echo "SKIPPED the cases of tmx probe, tmx plan --budget and --search and tmx eval that run a model: --quick"
    else
        long_model_tests
    fi
else
    n_skipped=$((n_skipped + 1))
    echo "SKIPPED the cases that run a model: $model is not there (scripts/fetch-models.sh)"
fi

echo "$n_passed passed, $n_failed failed, $n_skipped skipped"
[ "$n_failed" -eq 0 ]
