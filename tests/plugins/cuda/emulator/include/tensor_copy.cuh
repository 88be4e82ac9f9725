// The emulator's tensor_copy.cuh: a map holds its numbers in the open, see emulated_rows in run.py.
#pragma once

#include "async_copy.cuh"

struct alignas(64) TensorMap {
    const unsigned char* address;
    unsigned long long rows;
    unsigned columns, box_rows;
    unsigned unused[26];
};
static_assert(sizeof(TensorMap) == 128);

inline void copy_box(void* shared, const TensorMap* map, int row, int column, Mbarrier* barrier) {
    emulator::check_shared("copy_box", shared, map->box_rows * 128, 128);
    emulator::state_of("copy_box", barrier);
    if (row < 0 || row + map->box_rows > map->rows || column < 0 || column + 64u > map->columns)
        emulator::fail("copy_box: box (%d, %d) is not in the matrix", row, column);
    for (unsigned r = 0; r < map->box_rows; ++r)
        for (unsigned piece = 0; piece < 8; ++piece) {
            auto* target = static_cast<unsigned char*>(shared) + r * 128;
            const unsigned pattern_row = static_cast<unsigned>(target - emulator::current->block->shared) / 128 % 8;
            target += (piece ^ pattern_row) * 16;
            const unsigned char* source = map->address + ((row + r) * 1ull * map->columns + column + piece * 8) * 2;
            std::memset(target, 0xff, 16);
            emulator::current->block->bulk_copies.push_back({target, source, 16, true, barrier});
        }
}
