// The emulator's mma.cuh: the fragments of the PTX ISA, products in float, sums in double.
#pragma once

#include "element.cuh"
#include "shared.cuh"

namespace emulator {

template <unsigned N>
struct Words {
    unsigned word[N];
};

template <unsigned N>
void ldmatrix(const char* name, unsigned (&r)[N], const void* shared, bool transposed) {
    if (current->lane < 8 * N) check_shared(name, shared, 16, 16);
    const auto* row = static_cast<const unsigned char*>(shared);
    using Row = const unsigned char*;
    const auto words = collective<Words<N>>(name, row, [&](const Row* rows, Words<N>* outs, unsigned lanes) {
        for (unsigned lane = 0; lane < lanes; ++lane)
            for (unsigned i = 0; i < N; ++i) {
                const unsigned group = lane / 4, pair = 2 * (lane % 4);
                unsigned short low, high;
                std::memcpy(&low, transposed ? rows[8 * i + pair] + 2 * group : rows[8 * i + group] + 2 * pair, 2);
                std::memcpy(&high, transposed ? rows[8 * i + pair + 1] + 2 * group : rows[8 * i + group] + 2 * pair + 2, 2);
                outs[lane].word[i] = low | unsigned(high) << 16;
            }
    });
    for (unsigned i = 0; i < N; ++i) r[i] = words.word[i];
}

template <class T>
float half_of(unsigned word, unsigned half) {
    return to_float(T{static_cast<unsigned short>(word >> (16 * half))});
}

// Element (row, column) of the 16x16 operand whose fragments the lanes brought as words 0 to 3.
template <class T>
float element_a(const Words<6>* ins, unsigned row, unsigned column) {
    const unsigned lane = row % 8 * 4 + column % 8 / 2;
    return half_of<T>(ins[lane].word[row / 8 + 2 * (column / 8)], column % 2);
}

// Element (row, column) of the 16x8 operand, words 4 and 5.
template <class T>
float element_b(const Words<6>* ins, unsigned row, unsigned column) {
    return half_of<T>(ins[column * 4 + row % 8 / 2].word[4 + row / 8], row % 2);
}

}  // namespace emulator

inline void ldmatrix_x4(unsigned (&r)[4], const void* shared) { emulator::ldmatrix("ldmatrix_x4", r, shared, false); }
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared) {
    emulator::ldmatrix("ldmatrix_x4_trans", r, shared, true);
}
inline void ldmatrix_x2(unsigned (&r)[2], const void* shared) { emulator::ldmatrix("ldmatrix_x2", r, shared, false); }
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* shared) {
    emulator::ldmatrix("ldmatrix_x2_trans", r, shared, true);
}

inline unsigned transpose_8x8(unsigned elements) {
    return emulator::collective<unsigned>("transpose_8x8", elements, [](const unsigned* ins, unsigned* outs, unsigned lanes) {
        for (unsigned lane = 0; lane < lanes; ++lane) {
            const unsigned group = lane / 4, pair = 2 * (lane % 4), shift = group % 2 * 16;
            const unsigned low = ins[pair * 4 + group / 2] >> shift, high = ins[(pair + 1) * 4 + group / 2] >> shift;
            outs[lane] = (low & 0xffffu) | high << 16;
        }
    });
}

template <class T>
void mma_16x8x16(float (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    using In = emulator::Words<6>;
    struct Sums {
        float sum[4];
    };
    const In in = {{a[0], a[1], a[2], a[3], b[0], b[1]}};
    const auto sums = emulator::collective<Sums>("mma_16x8x16", in, [](const In* ins, Sums* outs, unsigned lanes) {
        for (unsigned lane = 0; lane < lanes; ++lane)
            for (unsigned i = 0; i < 4; ++i) {
                const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
                double sum = 0;
                for (unsigned k = 0; k < 16; ++k)
                    sum += double(emulator::element_a<T>(ins, row, k)) * emulator::element_b<T>(ins, k, column);
                outs[lane].sum[i] = float(sum);
            }
    });
    for (unsigned i = 0; i < 4; ++i) acc[i] += sums.sum[i];
}
