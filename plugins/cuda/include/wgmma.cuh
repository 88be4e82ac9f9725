// Hopper's tensor-core products of a warpgroup (four warps, the first one's index a multiple of 4), 64xNx16 with float32
// accumulation: sm_90a alone. The second operand, and where a descriptor names it the first, lie in shared memory in
// tiles of 128-byte rows; eight rows at an address that is a multiple of 1024 are one swizzled pattern: the 16-byte
// pieces of row r lie at piece ^ (r % 8).
//
// acc[n] has columns 8 n + pair, + 1 of rows 16 w + group (elements 0, 1) and 16 w + group + 8 (elements 2, 3), with w the
// warp among its four, group = lane / 4, pair = 2 * (lane % 4); a[0..3] are mma.cuh's fragments of rows 16 w to 16 w + 15.
//
// Products run beside the code that follows them: between wgmma_fence and the wgmma_wait that ends them neither acc nor a
// may be touched.
#pragma once

#include "element.cuh"
#include "shared.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool HAS_WGMMA = true;
#else
constexpr bool HAS_WGMMA = false;
#endif

constexpr unsigned WGMMA_ROW_BYTES = 128;
constexpr unsigned WGMMA_PATTERN_BYTES = 8 * WGMMA_ROW_BYTES;

// Where a 16-byte piece of a row lies in a tile.
__device__ __forceinline__ unsigned wgmma_offset(unsigned row, unsigned piece) {
    return row * WGMMA_ROW_BYTES + (piece ^ row % 8) * 16;
}

// The address of an operand in shared memory. Rows are 64 elements of the summed dimension, or, transposed, of the other
// one. tile_bytes: from a transposed operand's first 64 columns to the next.
__device__ __forceinline__ unsigned long long wgmma_descriptor(const void* shared, unsigned tile_bytes = 16) {
    constexpr unsigned long long SWIZZLE_128 = 1ull << 62;
    return SWIZZLE_128 | static_cast<unsigned long long>(WGMMA_PATTERN_BYTES / 16) << 32 |
           static_cast<unsigned long long>(tile_bytes / 16) << 16 | shared_address(shared) / 16;
}

// The same operand some bytes further.
__device__ __forceinline__ unsigned long long wgmma_advance(unsigned long long descriptor, unsigned bytes) {
    return descriptor + bytes / 16;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Order this warpgroup's earlier accesses of registers before the products that follow.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Close the group of products since the last commit.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Wait until at most N groups are still running.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Wait for all groups, but only once `value`, which is not negative, has been computed. Without the loop, which never
// turns, the compiler puts the wait first and the arithmetic that was to run beside the products behind it.
__device__ __forceinline__ void wgmma_wait_after(float value) {
    asm volatile(
        "{ .reg .pred again; setp.lt.f32 again, %0, 0f00000000; wait: wgmma.wait_group.sync.aligned 0; @again bra wait; }" ::"f"(
            value)
        : "memory");
}

// Keep the compiler from moving accesses of `registers` across this point.
template <int N>
__device__ __forceinline__ void wgmma_hold(float (&registers)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(registers[n][i])::"memory");
    }
}

template <int N>
__device__ __forceinline__ void wgmma_hold(unsigned (&registers)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(registers[n][i])::"memory");
    }
}

// Change how many registers each thread of this warpgroup has, to a multiple of 8.
template <int COUNT>
__device__ __forceinline__ void lower_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
__device__ __forceinline__ void raise_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#define WGMMA_REGISTERS_4 "{%0, %1, %2, %3}"
#define WGMMA_REGISTERS_8 "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define WGMMA_REGISTERS_16 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define WGMMA_REGISTERS_32 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define WGMMA_REGISTERS_64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
    "%59, %60, %61, %62, %63}"

#define WGMMA_SUMS_OF_TWO(n) \
    "+f"(acc[n][0]), "+f"(acc[n][1]), "+f"(acc[n][2]), "+f"(acc[n][3]), \
    "+f"(acc[n + 1][0]), "+f"(acc[n + 1][1]), "+f"(acc[n + 1][2]), "+f"(acc[n + 1][3])
#define WGMMA_SUMS_4 "+f"(acc[0][0]), "+f"(acc[0][1]), "+f"(acc[0][2]), "+f"(acc[0][3])
#define WGMMA_SUMS_8 WGMMA_SUMS_OF_TWO(0)
#define WGMMA_SUMS_16 WGMMA_SUMS_OF_TWO(0), WGMMA_SUMS_OF_TWO(2)
#define WGMMA_SUMS_32 WGMMA_SUMS_OF_TWO(0), WGMMA_SUMS_OF_TWO(2), WGMMA_SUMS_OF_TWO(4), WGMMA_SUMS_OF_TWO(6)
#define WGMMA_SUMS_64 WGMMA_SUMS_32, WGMMA_SUMS_OF_TWO(8), WGMMA_SUMS_OF_TWO(10), WGMMA_SUMS_OF_TWO(12), WGMMA_SUMS_OF_TWO(14)

// Operands behind the sums: a descriptor of each, or a's four registers and b's descriptor; then whether acc is added to.
#define WGMMA_OF_SHARED(columns, sums, type, a_, b_, add_)                                                       \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, " add_ ", 0; wgmma.mma_async.sync.aligned.m64n" columns     \
                 "k16.f32." type "." type " " WGMMA_REGISTERS_##sums ", " a_ ", " b_ ", add, 1, 1, 0, 0; }"      \
                 : WGMMA_SUMS_##sums                                                                             \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)))
#define WGMMA_OF_REGISTERS(columns, sums, type, a_, b_, add_)                                                    \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, " add_ ", 0; wgmma.mma_async.sync.aligned.m64n" columns     \
                 "k16.f32." type "." type " " WGMMA_REGISTERS_##sums ", " a_ ", " b_ ", add, 1, 1, 1; }"         \
                 : WGMMA_SUMS_##sums                                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)))

template <class T>
constexpr bool IS_BFLOAT16 = false;
template <>
constexpr bool IS_BFLOAT16<bfloat16> = true;

// acc (64, 8 N) = a b, plus acc where `add`: a (64, 16) and b (8 N, 16), rows of the summed dimension both.
template <class T, int N>
__device__ __forceinline__ void wgmma_rows(float (&acc)[N][4], unsigned long long a, unsigned long long b, bool add) {
    static_assert(N == 1 || N == 2 || N == 4 || N == 8 || N == 16, "the shapes that kernels here use");
    if constexpr (IS_BFLOAT16<T>) {
        if constexpr (N == 1) WGMMA_OF_SHARED("8", 4, "bf16", "%4", "%5", "%6");
        if constexpr (N == 2) WGMMA_OF_SHARED("16", 8, "bf16", "%8", "%9", "%10");
        if constexpr (N == 4) WGMMA_OF_SHARED("32", 16, "bf16", "%16", "%17", "%18");
        if constexpr (N == 8) WGMMA_OF_SHARED("64", 32, "bf16", "%32", "%33", "%34");
        if constexpr (N == 16) WGMMA_OF_SHARED("128", 64, "bf16", "%64", "%65", "%66");
    } else {
        if constexpr (N == 1) WGMMA_OF_SHARED("8", 4, "f16", "%4", "%5", "%6");
        if constexpr (N == 2) WGMMA_OF_SHARED("16", 8, "f16", "%8", "%9", "%10");
        if constexpr (N == 4) WGMMA_OF_SHARED("32", 16, "f16", "%16", "%17", "%18");
        if constexpr (N == 8) WGMMA_OF_SHARED("64", 32, "f16", "%32", "%33", "%34");
        if constexpr (N == 16) WGMMA_OF_SHARED("128", 64, "f16", "%64", "%65", "%66");
    }
}

// The same with a in registers, and b (16, 8 N): transposed.
template <class T, int N>
__device__ __forceinline__ void wgmma_columns(float (&acc)[N][4], const unsigned (&a)[4], unsigned long long b, bool add) {
    static_assert(N == 8 || N == 16, "the shapes that kernels here use");
    if constexpr (N == 16 && IS_BFLOAT16<T>) {
        WGMMA_OF_REGISTERS("128", 64, "bf16", "{%64, %65, %66, %67}", "%68", "%69");
    } else if constexpr (N == 16) {
        WGMMA_OF_REGISTERS("128", 64, "f16", "{%64, %65, %66, %67}", "%68", "%69");
    } else if constexpr (IS_BFLOAT16<T>) {
        WGMMA_OF_REGISTERS("64", 32, "bf16", "{%32, %33, %34, %35}", "%36", "%37");
    } else {
        WGMMA_OF_REGISTERS("64", 32, "f16", "{%32, %33, %34, %35}", "%36", "%37");
    }
}

#endif
