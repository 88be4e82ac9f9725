// The emulator's tensor_copy.cuh: a map holds its numbers in the open, see emulated_tensor in run.py.
#pragma once

#include "async_copy.cuh"

struct alignas(64) TensorMap {
    const unsigned char* address;
    unsigned long long strides[4];  // bytes; an element's is 2
    unsigned sizes[5], box[5];
    unsigned unused[12];
};
static_assert(sizeof(TensorMap) == 128);

struct CachePolicy {};
inline CachePolicy evict_first() { return {}; }
inline CachePolicy evict_normal() { return {}; }

struct BoxCorner {
    int at[5];
};

namespace emulator {

// The address of row `row` of a box, which is 128 bytes; null outside of the tensor.
inline const unsigned char* box_row(const TensorMap& map, const BoxCorner& first, unsigned row) {
    const unsigned char* source = map.address + first.at[0] * 2ll;
    for (unsigned dimension = 1; dimension < 5; ++dimension) {
        const long long at = first.at[dimension] + static_cast<long long>(row % map.box[dimension]);
        row /= map.box[dimension];
        if (at < 0 || at >= map.sizes[dimension]) return nullptr;
        source += at * static_cast<long long>(map.strides[dimension - 1]);
    }
    return source;
}

}  // namespace emulator

inline void copy_box(void* shared, const TensorMap* map, const BoxCorner& first, Mbarrier* barrier, CachePolicy) {
    static const unsigned char zeros[128] = {};
    const unsigned rows = map->box[1] * map->box[2] * map->box[3] * map->box[4];
    emulator::check_shared("copy_box", shared, rows * 128, 128);
    emulator::state_of("copy_box", barrier);
    if (map->box[0] != 64 || first.at[0] < 0 || first.at[0] + 64u > map->sizes[0])
        emulator::fail("copy_box: columns from %d are not in the tensor", first.at[0]);
    for (unsigned r = 0; r < rows; ++r) {
        const unsigned char* source = emulator::box_row(*map, first, r);
        for (unsigned piece = 0; piece < 8; ++piece) {
            auto* target = static_cast<unsigned char*>(shared) + r * 128;
            const unsigned pattern_row = static_cast<unsigned>(target - emulator::current->block->shared) / 128 % 8;
            target += (piece ^ pattern_row) * 16;
            std::memset(target, 0xff, 16);
            emulator::current->block->bulk_copies.push_back(
                {target, source == nullptr ? zeros : source + piece * 16, 16, true, barrier});
        }
    }
}

inline void copy_box(void* shared, const TensorMap* map, int row, int column, Mbarrier* barrier) {
    if (row < 0 || row + map->box[1] > map->sizes[1]) emulator::fail("copy_box: rows from %d are not in the matrix", row);
    copy_box(shared, map, {{column, row, 0, 0, 0}}, barrier, evict_first());
}

inline void prefetch_map(const TensorMap*) {}
