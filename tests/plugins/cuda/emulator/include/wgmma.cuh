// The emulator's wgmma.cuh. A product takes place where it is issued, one warp's 16 rows at a time: what the fences and
// waits are for is not seen here.
#pragma once

#include "element.cuh"
#include "shared.cuh"

constexpr bool HAS_WGMMA = true;
constexpr unsigned WGMMA_ROW_BYTES = 128;
constexpr unsigned WGMMA_PATTERN_BYTES = 8 * WGMMA_ROW_BYTES;

inline unsigned wgmma_offset(unsigned row, unsigned piece) { return row * WGMMA_ROW_BYTES + (piece ^ row % 8) * 16; }

inline unsigned long long wgmma_descriptor(const void* shared, unsigned tile_bytes = 16) {
    return 1ull << 62 | (WGMMA_PATTERN_BYTES / 16ull) << 32 | (tile_bytes / 16ull) << 16 | shared_address(shared) / 16;
}

inline unsigned long long wgmma_advance(unsigned long long descriptor, unsigned bytes) { return descriptor + bytes / 16; }

inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int N>
void wgmma_wait() {}
inline void wgmma_wait_after(float) {}
template <class Registers>
void wgmma_hold(Registers&) {}
template <int COUNT>
void lower_registers() {}
template <int COUNT>
void raise_registers() {}

namespace emulator {

// An element, `offset` bytes into an operand as if nothing were swizzled.
template <class T>
float operand(unsigned long long descriptor, unsigned offset) {
    unsigned address = static_cast<unsigned>(descriptor & 0x3fff) * 16 + offset;
    address ^= (address >> 7 & 7) << 4;
    T element;
    check_shared("wgmma", current->block->shared + address, 2, 2);
    std::memcpy(&element, current->block->shared + address, 2);
    return to_float(element);
}

// Element (row, k) of an operand whose rows are of the summed dimension.
template <class T>
float row_operand(unsigned long long descriptor, unsigned row, unsigned k) {
    const unsigned pattern = static_cast<unsigned>(descriptor >> 32 & 0x3fff) * 16;
    return operand<T>(descriptor, row / 8 * pattern + row % 8 * WGMMA_ROW_BYTES + k * 2);
}

// Element (k, column) of a transposed one.
template <class T>
float column_operand(unsigned long long descriptor, unsigned k, unsigned column) {
    const unsigned pattern = static_cast<unsigned>(descriptor >> 32 & 0x3fff) * 16;
    const unsigned tile = static_cast<unsigned>(descriptor >> 16 & 0x3fff) * 16;
    return operand<T>(descriptor, column / 64 * tile + k / 8 * pattern + k % 8 * WGMMA_ROW_BYTES + column % 64 * 2);
}

// `a(lanes, row, k)` and `b(k, column)` are the operands; every lane's sums are written through what it brought.
template <int N, class A, class B>
void wgmma(const char* name, float (&acc)[N][4], const unsigned* registers, bool add, A a, B b) {
    struct In {
        float (*acc)[4];
        const unsigned* registers;
    };
    const In in = {acc, registers};
    if (threadIdx.x / 128 * 128 + 128 > blockDim.x) fail("%s: no whole warpgroup", name);
    collective<char>(name, in, [&](const In* ins, char* outs, unsigned lanes) {
        for (unsigned row = 0; row < 16; ++row)
            for (unsigned column = 0; column < 8 * N; ++column) {
                double sum = 0;
                for (unsigned k = 0; k < 16; ++k) sum += double(a(ins, row, k)) * b(k, column);
                const unsigned lane = row % 8 * 4 + column % 8 / 2;
                float& target = ins[lane].acc[column / 8][row / 8 * 2 + column % 2];
                target = add ? target + float(sum) : float(sum);
            }
        for (unsigned lane = 0; lane < lanes; ++lane) outs[lane] = 0;
    });
}

}  // namespace emulator

template <class T, int N>
void wgmma_rows(float (&acc)[N][4], unsigned long long a, unsigned long long b, bool add) {
    const unsigned first = threadIdx.x / 32 % 4 * 16;
    emulator::wgmma("wgmma_rows", acc, nullptr, add,
                    [=](auto*, unsigned row, unsigned k) { return emulator::row_operand<T>(a, first + row, k); },
                    [=](unsigned k, unsigned column) { return emulator::row_operand<T>(b, column, k); });
}

template <class T, int N>
void wgmma_columns(float (&acc)[N][4], const unsigned (&a)[4], unsigned long long b, bool add) {
    emulator::wgmma("wgmma_columns", acc, a, add,
                    [](auto* ins, unsigned row, unsigned k) {
                        const unsigned word = ins[row % 8 * 4 + k % 8 / 2].registers[row / 8 + 2 * (k / 8)];
                        return to_float(T{static_cast<unsigned short>(word >> 16 * (k % 2))});
                    },
                    [=](unsigned k, unsigned column) { return emulator::column_operand<T>(b, k, column); });
}
