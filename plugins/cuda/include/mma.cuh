// Tensor-core products of one warp, 16x8x16 with float32 accumulation, and the loads of their operands.
//
// Fragments, with group = lane / 4 and pair = 2 * (lane % 4):
//   a[0] row group,     columns pair, pair + 1       a[1] row group + 8, same columns
//   a[2] row group,     columns pair + 8, pair + 9   a[3] row group + 8, same columns
//   b[0] rows pair, pair + 1 of column group         b[1] rows pair + 8, pair + 9 of column group
//   acc[0], acc[1] row group, columns pair, pair + 1 acc[2], acc[3] row group + 8, same columns
#pragma once

#include "element.cuh"
#include "shared.cuh"

// Four 8x8 matrices of 2-byte elements: lane l names row l % 8 (16 bytes) of matrix l / 8; r[i] gets elements
// (group, pair) and (group, pair + 1) of matrix i.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

// The same, each matrix transposed: r[i] gets elements (pair, group) and (pair + 1, group).
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

// Two matrices, named by lanes 0 to 15.
__device__ __forceinline__ void ldmatrix_x2(unsigned (&r)[2], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared))
                 : "memory");
}

// The transpose of an 8x8 matrix of 2-byte elements, two to a lane: elements (group, pair) and (group, pair + 1).
__device__ __forceinline__ unsigned transpose_8x8(unsigned elements) {
    unsigned result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(elements));
    return result;
}

// acc += a b, with a 16x16, b 16x8 and acc 16x8.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

template <>
__device__ __forceinline__ void mma_16x8x16<bfloat16>(float (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_16x8x16<float16>(float (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
