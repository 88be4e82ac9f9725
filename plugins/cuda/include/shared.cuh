// The dynamic shared memory of a block, and its 32-bit addresses as PTX takes them.
// The only shared memory a kernel here may use: its size is the launch's, and the host emulator hands out the same.
#pragma once

extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];

// Start of the block's dynamic shared memory, aligned to 1024 bytes.
__device__ __forceinline__ unsigned char* shared_memory() {
    return dynamic_shared_memory;
}

// A pointer into shared memory as the 32-bit address that ldmatrix, cp.async and mbarrier take.
__device__ __forceinline__ unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}
