#!/usr/bin/env bash
# check-sass.sh OBJECT...: what the compiler made of the Hopper kernels.  Every kernel multiplies with HGMMA, eight and more in flight
# between waits (ptxas serialises them silently when it runs out of registers); no spills and no local memory; and the
# exponentials of a step stand between the wait for its scores and the wait for the values before it.
# Needs cuobjdump and nvdisasm (CUDA toolkit, or the Python wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm); skips without.
set -u
if ! command -v cuobjdump >/dev/null || ! command -v nvdisasm >/dev/null; then
    echo "skipped: no cuobjdump and nvdisasm on the PATH"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
for object in "$@"; do cuobjdump --dump-sass "$object"; done | awk '
    function judge(ok, what) { if (ok) n_passed++; else { n_failed++; print kernel ": " what } }
    function finish() {
        if (kernel !~ /attn_sm90I|attn_mass_sums/) return
        judge(most_in_row >= 8, "wgmma in groups of " most_in_row + 0 ", expected 8 and more")
        judge(n_local == 0, n_local " accesses of local memory")
        if (kernel ~ /attn_sm90I/) judge(n_steps > 0 && least_exp >= 20, "a step with " least_exp + 0 " exponentials between its waits, expected all")
    }
    /Function :/ { finish(); kernel = $NF; in_row = most_in_row = n_local = n_steps = in_step = 0; least_exp = 1000 }
    /HGMMA/ { if (++in_row > most_in_row) most_in_row = in_row }
    /DEPBAR.LE gsb0, 0x1/ { in_row = 0; in_step = 1; n_exp = 0 }
    /DEPBAR.LE gsb0, 0x0/ { in_row = 0; if (in_step) { n_steps++; if (n_exp < least_exp) least_exp = n_exp }; in_step = 0 }
    /MUFU.EX2/ { n_exp++ }
    /[ \t](LDL|STL)[. ]/ { n_local++ }
    END {
        finish()
        if (n_passed + n_failed == 0) { n_failed = 1; print "no sm90 kernel found" }
        printf "%d passed, %d failed, 0 skipped\n", n_passed, n_failed
        exit n_failed > 0
    }'
