// Loads and stores that see other blocks' without ordering anything else: for words that say themselves what they hold.
#pragma once

__device__ __forceinline__ unsigned load_relaxed(const unsigned* global) {
    unsigned value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global) : "memory");
    return value;
}

// 8 or 16 bytes, aligned; each word is as new as it is, not all of them together.
__device__ __forceinline__ uint2 load_relaxed8(const unsigned* global) {
    uint2 value;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];"
                 : "=r"(value.x), "=r"(value.y)
                 : "l"(global)
                 : "memory");
    return value;
}

__device__ __forceinline__ uint4 load_relaxed16(const unsigned* global) {
    uint4 value;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(global)
                 : "memory");
    return value;
}

__device__ __forceinline__ void store_relaxed(unsigned* global, unsigned value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(global), "r"(value) : "memory");
}

// 8-byte words, aligned to as many bytes as they are together. Each is whole: what is written in one word is read in one.
__device__ __forceinline__ unsigned long long load_relaxed_word(const unsigned long long* global) {
    unsigned long long word;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(global) : "memory");
    return word;
}

__device__ __forceinline__ ulonglong2 load_relaxed_words(const unsigned long long* global) {
    ulonglong2 words;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(words.x), "=l"(words.y)
                 : "l"(global)
                 : "memory");
    return words;
}

__device__ __forceinline__ void store_relaxed_word(unsigned long long* global, unsigned long long word) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(global), "l"(word) : "memory");
}

__device__ __forceinline__ void store_relaxed_words(unsigned long long* global, ulonglong2 words) {
    asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(global), "l"(words.x), "l"(words.y) : "memory");
}

// In a loop that waits for another block's word: lets the emulator's other threads go on. Nothing on a GPU.
__device__ __forceinline__ void spin_pause() {
#ifdef SPIN_NANOSECONDS
    __nanosleep(SPIN_NANOSECONDS);
#endif
}

// Add 1, or go back to 0 from `last`; returns the old value. Ordered both ways, as add_acquire_release.
__device__ __forceinline__ unsigned increment_wrap(unsigned* global, unsigned last) {
    unsigned old;
    asm volatile("atom.inc.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(global), "r"(last) : "memory");
    return old;
}
