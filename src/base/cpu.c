#include "base/cpu.h"

#include "base/status.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *const isa_names[] = { "auto", "scalar", "avx2", "avx512", "avx512bf16", "amx" };
enum { N_ISA = sizeof isa_names / sizeof isa_names[0] };

/* Tiles must be asked for: their state makes a thread's context 8 KiB larger.  Linux grants them to the whole process. */
static bool has_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, EDX_AMX_BF16 = 1 << 22, EDX_AMX_TILE = 1 << 24 };
    static _Atomic int known;      /* 0: not asked yet, 1: no, 2: yes */
    if (known == 0) {
        unsigned a, b, c, d = 0;
        const bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & EDX_AMX_BF16) != 0 && (d & EDX_AMX_TILE) != 0;
        known = has && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? 2 : 1;
    }
    return known == 2;
}

bool cpu_has(tmx_isa isa)
{
    switch (isa) {
    case TMX_ISA_AUTO:
    case TMX_ISA_SCALAR: return true;
    case TMX_ISA_AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  /* F16C came before both */
    case TMX_ISA_AVX512:
        return cpu_has(TMX_ISA_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case TMX_ISA_AVX512_BF16: return cpu_has(TMX_ISA_AVX512) && __builtin_cpu_supports("avx512bf16");
    case TMX_ISA_AMX: return cpu_has(TMX_ISA_AVX512_BF16) && has_amx();
    }
    return false;
}

tmx_isa tmx_isa_best(void)
{
    tmx_isa best = TMX_ISA_SCALAR;
    for (int isa = TMX_ISA_AVX2; isa < N_ISA; isa++) {
        if (cpu_has((tmx_isa)isa)) best = (tmx_isa)isa;
    }
    return best;
}

tmx_isa cpu_isa_resolve(tmx_isa isa) { return isa == TMX_ISA_AUTO || !cpu_has(isa) ? tmx_isa_best() : isa; }

const char *tmx_isa_name(tmx_isa isa) { return (unsigned)isa < N_ISA ? isa_names[isa] : "?"; }

tmx_status tmx_isa_parse(const char *name, tmx_isa *isa, tmx_error *err)
{
    if (name == NULL || isa == NULL) return refuse(err, TMX_E_ARG, "tmx_isa_parse: NULL argument");
    for (int i = 0; i < N_ISA; i++) {
        if (strcmp(name, isa_names[i]) != 0) continue;
        if (!cpu_has((tmx_isa)i)) {
            return refuse(err, TMX_E_ARG, "isa: this CPU has no %s; its best is %s", name, tmx_isa_name(tmx_isa_best()));
        }
        *isa = (tmx_isa)i;
        return TMX_OK;
    }
    return refuse(err, TMX_E_ARG, "isa: unknown '%s'; one of auto, scalar, avx2, avx512, avx512bf16, amx", name);
}
