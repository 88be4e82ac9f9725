// The emulator's element.cuh: the same conversions in C++.
#pragma once

struct bfloat16 {
    unsigned short bits;
};

struct float16 {
    unsigned short bits;
};

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }
inline float to_float(float16 value) { return float(std::bit_cast<_Float16>(value.bits)); }

template <class T>
T from_float(float value);

template <>
inline float from_float<float>(float value) { return value; }

template <>
inline bfloat16 from_float<bfloat16>(float value) {
    if (std::isnan(value)) return {0x7fff};
    const unsigned bits = __float_as_uint(value);
    return {static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <>
inline float16 from_float<float16>(float value) {
    if (std::isnan(value)) return {0x7fff};
    return {std::bit_cast<unsigned short>(static_cast<_Float16>(value))};
}

template <class T>
float2 unpack2(unsigned word) {
    return {to_float(T{static_cast<unsigned short>(word)}), to_float(T{static_cast<unsigned short>(word >> 16)})};
}

template <class T>
unsigned pack2(float low, float high) {
    return from_float<T>(low).bits | unsigned(from_float<T>(high).bits) << 16;
}

inline uint4 load16(const void* address) {
    emulator::check_global("load16", address, 16);
    uint4 value;
    std::memcpy(&value, address, 16);
    return value;
}

inline uint4 load_stream16(const void* global) {
    return load16(global);
}

inline void store16(void* address, uint4 value) {
    emulator::check_global("store16", address, 16);
    std::memcpy(address, &value, 16);
}
