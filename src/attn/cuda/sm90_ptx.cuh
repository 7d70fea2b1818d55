/* sm90_ptx.cuh - Hopper's own instructions, one function each: mbarriers, tensor copies (TMA), wgmma, named barriers,
 * register quotas.  No logic.  PTX ISA 8.x, chapters "mbarrier", "cp.async.bulk.tensor", "wgmma", "setmaxnreg". */
#ifndef TMX_ATTN_SM90_PTX_CUH
#define TMX_ATTN_SM90_PTX_CUH

#include "base/device.h"

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

DEVICE uint32_t smem_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* ---------------------------------------------------------------- mbarrier */

DEVICE void mbarrier_init(uint64_t *bar, uint32_t n_arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(bar)), "r"(n_arrivals) : "memory");
}

/* Makes the initialised barriers visible to the copy engine. */
DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void mbarrier_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(bar)) : "memory");
}

/* Arrives, and makes the phase wait for n_bytes of copies too. */
DEVICE void mbarrier_arrive_expect(uint64_t *bar, uint32_t n_bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(bar)), "r"(n_bytes)
                 : "memory");
}

/* Arrives once all of this thread's earlier cp.async copies are there. */
DEVICE void mbarrier_arrive_copied(uint64_t *bar)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_address(bar)) : "memory");
}

/* Waits until the phase of the given parity is complete. */
DEVICE void mbarrier_wait(uint64_t *bar, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(smem_address(bar)), "r"(parity) : "memory");
}

/* ---------------------------------------------------------------- barriers among some warps, register quotas */

DEVICE void named_barrier_sync(int id, int n_threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

DEVICE void named_barrier_arrive(int id, int n_threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

template <int N_REGS> DEVICE void regs_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N_REGS)); }
template <int N_REGS> DEVICE void regs_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N_REGS)); }

/* ---------------------------------------------------------------- tensor copies */

DEVICE void tma_load_3d(void *to, const CUtensorMap *map, uint64_t *bar, int32_t x0, int32_t x1, int32_t x2)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
                 "[%2];" ::"r"(smem_address(to)), "l"(map), "r"(smem_address(bar)), "r"(x0), "r"(x1), "r"(x2)
                 : "memory");
}

DEVICE void tma_load_4d(void *to, const CUtensorMap *map, uint64_t *bar, int32_t x0, int32_t x1, int32_t x2, int32_t x3)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
                 "%6}], [%2];" ::"r"(smem_address(to)), "l"(map), "r"(smem_address(bar)), "r"(x0), "r"(x1), "r"(x2),
                 "r"(x3) : "memory");
}

/* Ordinary writes to shared memory become visible to wgmma and the copy engine. */
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* ---------------------------------------------------------------- wgmma */

/* Descriptor of a tile in shared memory, 128-byte swizzle: rows of 64 elements, 8 rows = 1024 bytes one after another.
 * n_bytes_between: from one block of 64 columns to the next; read only when the columns are not the summed axis. */
DEVICE uint64_t wgmma_descriptor(const void *tile, uint32_t n_bytes_between)
{
    return (uint64_t)(smem_address(tile) >> 4 & 0x3fff) | (uint64_t)(n_bytes_between >> 4) << 16
         | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* Values must be there at this point of the program: without it the compiler moves arithmetic behind a later wait. */
template <int N> DEVICE void settle(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

/* Waits until at most N_PENDING groups are in flight; naming the accumulators keeps their readers behind the wait. */
template <int N_PENDING, int N> DEVICE void wgmma_wait(float (&d)[N])
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N_PENDING) : "memory");
    settle(d);
}

/* The same where accumulators are still at work: none may be read yet. */
template <int N_PENDING> DEVICE void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N_PENDING) : "memory");
}

#define D24_NAMES \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23"
#define D24_REGS \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), \
    "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
    "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), \
    "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define D32_NAMES \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define D32_REGS \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), \
    "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
    "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), \
    "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), \
    "+f"(d[30]), "+f"(d[31])
#define D64_NAMES \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define D64_REGS \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), \
    "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
    "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), \
    "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), \
    "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), \
    "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), \
    "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), \
    "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), \
    "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

/* d[64][N] (+)= A[64][16] B[16][N], f32 sums.  A and B lie in shared memory with the summed axis contiguous.  Thread t of the
 * warpgroup holds rows 16 (t / 32) + t % 32 / 4 (in d[4 i], d[4 i + 1]) and 8 further (d[4 i + 2], d[4 i + 3]), columns
 * 8 i + 2 (t % 4) + {0, 1}. */
template <int N, typename T> DEVICE void wgmma_ss(float *d, uint64_t a, uint64_t b, bool accumulate)
{
    constexpr bool is_bf16 = __is_same(T, __nv_bfloat16);
    if constexpr (N == 48) {
        if constexpr (is_bf16) {
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %26, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {" D24_NAMES "}, %24, %25, p, 1, 1, 0, 0;\n}"
                     : D24_REGS : "l"(a), "l"(b), "r"((int)accumulate));
        } else {
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %26, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n48k16.f32.f16.f16 {" D24_NAMES "}, %24, %25, p, 1, 1, 0, 0;\n}"
                     : D24_REGS : "l"(a), "l"(b), "r"((int)accumulate));
        }
    } else {
        static_assert(N == 128, "widths of a score step");
        if constexpr (is_bf16) {
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" D64_NAMES "}, %64, %65, p, 1, 1, 0, 0;\n}"
                     : D64_REGS : "l"(a), "l"(b), "r"((int)accumulate));
        } else {
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" D64_NAMES "}, %64, %65, p, 1, 1, 0, 0;\n}"
                     : D64_REGS : "l"(a), "l"(b), "r"((int)accumulate));
        }
    }
}

/* The same with A in registers (as two neighbouring 8-column blocks of D, rounded and packed, lie there), and B [16][N] with N
 * contiguous. */
template <int N, typename T> DEVICE void wgmma_rs(float *d, const uint32_t *a, uint64_t b, bool accumulate)
{
    constexpr bool is_bf16 = __is_same(T, __nv_bfloat16);
    if constexpr (N == 64) {
        if constexpr (is_bf16) {
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" D32_NAMES
                     "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
                     : D32_REGS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
        } else {
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" D32_NAMES
                     "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
                     : D32_REGS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
        }
    } else {
        static_assert(N == 128, "head_dim");
        if constexpr (is_bf16) {
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" D64_NAMES
                     "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
                     : D64_REGS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
        } else {
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" D64_NAMES
                     "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
                     : D64_REGS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
        }
    }
}

#endif
